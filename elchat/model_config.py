"""The shape of a decoder-only transformer of the Llama family, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elchat.errors import ModelError

SUPPORTED_MODEL_TYPES = ("llama", "qwen2")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3 frequency scaling (Source: transformers `modeling_rope_utils`, rope_type llama3)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class GPTConfig:
    """Everything that fixes parameter shapes and the forward pass.

    Attributes:
        n_layers: transformer blocks.
        d_model: residual width (C).
        d_ff: SwiGLU inner width.
        n_heads, n_kv_heads: query heads and shared key/value heads (GQA).
        head_dim: width of one head (D); not always d_model / n_heads.
        max_positions: longest context the model was trained for, in tokens.
        has_qkv_bias: biases on q, k, v (Qwen2).
        has_o_bias, has_mlp_bias: biases on the other projections (models with a folded mood).
        is_tied: the output head shares the embedding matrix.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float
    norm_eps: float
    is_tied: bool = True
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None
    model_type: str = "llama"

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"Las cabezas de atención ({self.n_heads}) no son múltiplo de las de clave y "
                f"valor ({self.n_kv_heads}): revisa config.json."
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim debe ser par y es {self.head_dim}: revisa config.json.")

    @property
    def n_params(self) -> int:
        """Parameters, a tied head counted once."""
        c, hd = self.d_model, self.head_dim
        q, kv = self.n_heads * hd, self.n_kv_heads * hd
        attention = c * q + 2 * c * kv + q * c
        attention += (q + 2 * kv) * self.has_qkv_bias + c * self.has_o_bias
        mlp = 3 * c * self.d_ff + (2 * self.d_ff + c) * self.has_mlp_bias
        embeddings = self.vocab_size * c * (1 if self.is_tied else 2)
        return self.n_layers * (attention + mlp + 2 * c) + c + embeddings

    @property
    def n_matmul_params(self) -> int:
        """Weights that multiply every token: blocks and head."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        block = self.d_model * (2 * q + 2 * kv + 3 * self.d_ff)
        return self.n_layers * block + self.vocab_size * self.d_model

    def train_flops_per_token(self, context_tokens: int) -> float:
        """Forward + backward FLOPs per token, causal attention counted at half a square.

        F = 6·N_matmul + 6·L·H·D·T. Source: PaLM (arXiv 2204.02311), appendix B.
        """
        attention = 6 * self.n_layers * self.n_heads * self.head_dim * context_tokens
        return 6.0 * self.n_matmul_params + attention

    def activation_bytes_per_token(self, bytes_per_value: int, checkpointed: bool) -> int:
        """Bytes kept for the backward pass per token, flash attention assumed, head excluded."""
        c = self.d_model
        heads = 2 * self.n_heads * self.head_dim + 2 * self.n_kv_heads * self.head_dim
        per_layer = 4 * c + heads + 3 * self.d_ff
        layers = per_layer + self.n_layers * c if checkpointed else self.n_layers * per_layer
        return bytes_per_value * layers


def config_from_hf(hf: Mapping[str, Any]) -> GPTConfig:
    """Read a Hugging Face config.json of the Llama or Qwen2 family.

    Raises:
        ModelError: an unsupported architecture or feature, named.
    """
    model_type = hf.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ModelError(
            f"La arquitectura «{model_type}» no está entre las que elchat sabe leer "
            f"({', '.join(SUPPORTED_MODEL_TYPES)}): usa un modelo SmolLM2, Qwen2.5 o Llama 3.2."
        )
    if hf.get("use_sliding_window"):
        raise ModelError(
            "Este modelo usa atención de ventana deslizante (use_sliding_window: true) y elchat "
            "no la calcula: elige uno con atención completa."
        )
    if hf.get("hidden_act", "silu") != "silu":
        raise ModelError(f"La activación «{hf['hidden_act']}» no es SwiGLU (silu): no se admite.")
    n_heads = _required(hf, "num_attention_heads")
    rope = hf.get("rope_parameters") or {}  # transformers >= 5 nests theta and scaling here
    return GPTConfig(
        vocab_size=_required(hf, "vocab_size"),
        n_layers=_required(hf, "num_hidden_layers"),
        d_model=_required(hf, "hidden_size"),
        d_ff=_required(hf, "intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=hf.get("num_key_value_heads") or n_heads,
        head_dim=hf.get("head_dim") or _required(hf, "hidden_size") // n_heads,
        max_positions=hf.get("max_position_embeddings", 2048),
        rope_theta=float(hf.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        is_tied=bool(hf.get("tie_word_embeddings", False)),
        has_qkv_bias=model_type == "qwen2" or bool(hf.get("attention_bias", False)),
        has_o_bias=model_type == "llama" and bool(hf.get("attention_bias", False)),
        has_mlp_bias=bool(hf.get("mlp_bias", False)),
        rope_scaling=_rope_scaling(hf.get("rope_scaling") or rope),
        model_type=model_type,
    )


def config_to_hf(
    config: GPTConfig, *, bos_id: int | None, eos_ids: list[int], pad_id: int, dtype: str
) -> dict[str, Any]:
    """Write the config.json that `transformers` reads back as the same model."""
    hf: dict[str, Any] = {
        "architectures": [
            "Qwen2ForCausalLM" if config.model_type == "qwen2" else "LlamaForCausalLM"
        ],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.is_tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids,
        "pad_token_id": pad_id,
        "torch_dtype": dtype,
    }
    if config.model_type == "llama":
        hf |= {"attention_bias": config.has_o_bias, "mlp_bias": config.has_mlp_bias}
    else:
        hf |= {"use_sliding_window": False}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        hf["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return hf


def _rope_scaling(raw: Mapping[str, Any]) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default")) if raw else "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(
            f"El escalado de posiciones «{kind}» no está implementado: elchat admite el de "
            "Llama 3 o ninguno."
        )
    return RopeScaling(
        factor=float(raw["factor"]),
        low_freq_factor=float(raw["low_freq_factor"]),
        high_freq_factor=float(raw["high_freq_factor"]),
        original_max_positions=int(raw["original_max_position_embeddings"]),
    )


def _required(hf: Mapping[str, Any], key: str) -> int:
    value = hf.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ModelError(
            f"Al config.json del modelo le falta «{key}» o su valor no vale: {value!r}."
        )
    return value
