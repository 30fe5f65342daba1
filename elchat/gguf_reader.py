"""GGUF files (llama.cpp's container) read into Hugging Face names, shapes and layout.

Only the quantisation formulas come from the `gguf` package; its reader builds one NumPy array per
vocabulary string and takes 4 s on a 49,152-token file that this one parses in 0.1 s.

Three things change on the way in: names (blk.0.attn_q -> model.layers.0.self_attn.q_proj), the rows
of q and k for architecture `llama` (llama.cpp interleaves the rotary pairs, Hugging Face splits
them in halves), and the vocabulary (rebuilt as a tokenizer.json).

Source: ggml `docs/gguf.md`; llama.cpp `convert_hf_to_gguf.py` (LlamaModel.permute, rope_freqs).
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from elchat.errors import ModelError
from elchat.model_config import GPTConfig, RopeScaling

ARCHITECTURES = ("llama", "qwen2")
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLIT = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `shape` is in row-major order; `offset` is from the file's start."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GGUFFile:
    """A parsed GGUF: metadata now, tensors when asked."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    config: GPTConfig

    def iter_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, fp32 tensor) one at a time, dequantised and un-permuted."""
        with open(self.path, "rb") as handle:
            for info in self.tensors.values():
                name = _hf_name(info.name)
                if name is None:
                    continue
                values = _read_values(handle, info, self.path)
                yield name, self._to_hf_layout(name, values)

    def tokenizer_json(self) -> str:
        """The vocabulary as a Hugging Face tokenizer.json."""
        return build_tokenizer_json(self.metadata, str(self.path))

    def _to_hf_layout(self, name: str, values: np.ndarray) -> Tensor:
        heads = None
        if self.config.model_type == "llama":
            if ".q_proj." in name:
                heads = self.config.n_heads
            elif ".k_proj." in name:
                heads = self.config.n_kv_heads
        return torch.from_numpy(values if heads is None else unpermute(values, heads))


def open_gguf(path: Path) -> GGUFFile:
    """Parse the header of a GGUF file.

    Raises:
        ModelError: not a GGUF, truncated, or an architecture elchat does not compute.
    """
    try:
        with (
            open(path, "rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            metadata, tensors = _Cursor(view, path).parse()
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise ModelError(f"No se puede leer {path}: {error}.") from None
    config = _config(metadata, tensors, path)
    return GGUFFile(path, metadata, tensors, config)


def read_gguf(path: Path) -> tuple[GPTConfig, dict[str, Tensor], str, Mapping[str, Any]]:
    """Read a whole GGUF: shape, fp32 tensors in Hugging Face names, tokenizer.json, metadata.

    Holds every tensor in fp32; `open_gguf(path).iter_tensors()` holds one at a time.
    """
    file = open_gguf(path)
    return file.config, dict(file.iter_tensors()), file.tokenizer_json(), file.metadata


def unpermute(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of q and k.

    Each head's D rows come as pairs (0, D/2), (1, D/2 + 1)...: for D = 4, rows [0, 2, 1, 3] go back
    to [0, 1, 2, 3]. Works on weights [H·D, C] and biases [H·D].
    """
    rest = values.shape[1:]
    paired = values.reshape(n_heads, values.shape[0] // n_heads // 2, 2, *rest)
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(values.shape)


def build_tokenizer_json(metadata: Mapping[str, Any], where: str) -> str:
    """Rebuild tokenizer.json from GGUF metadata.

    Raises:
        ModelError: a vocabulary that is not one of SmolLM2's, Qwen2.5's or Llama 3's kind.
    """
    prefix = "tokenizer.ggml."
    kind, pre = metadata.get(f"{prefix}model"), str(metadata.get(f"{prefix}pre"))
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"El vocabulario de {where} ({kind}/{pre}) no está entre los que elchat sabe "
            f"reconstruir ({', '.join(PRE_TOKENIZERS)}): usa la versión en formato Hugging Face."
        )
    tokens = metadata.get(f"{prefix}tokens") or []
    types = metadata.get(f"{prefix}token_type") or [NORMAL] * len(tokens)
    if not tokens or len(types) != len(tokens):
        raise ModelError(f"El vocabulario de {where} está incompleto.")
    vocab = _vocab(tokens, types)
    added = [
        _added_token(i, token, t == CONTROL)
        for i, (token, t) in enumerate(zip(tokens, types, strict=True))
        if t in (CONTROL, USER_DEFINED)
    ]
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": _post_processor(metadata, tokens),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in metadata.get(f"{prefix}merges") or []],
        },
    }
    return json.dumps(spec, ensure_ascii=False)


def _vocab(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Make the BPE's own table: the normal tokens, and the added ones that lie among them.

    `tokenizers` gives an added token the id this table has for it, or else the next free one after
    the table: SmolLM2's special ids 0-16 must be here, Llama's 128,000 and up must not.
    """
    normal = [i for i, kind in enumerate(types) if kind == NORMAL]
    last = normal[-1] if normal else -1
    wanted = (NORMAL, CONTROL, USER_DEFINED)
    return {tokens[i]: i for i in range(last + 1) if types[i] in wanted}


class _Cursor:
    """A bounds-checked reader over the mapped file, little-endian."""

    def __init__(self, view: mmap.mmap, path: Path) -> None:
        self._view, self._path, self._at = view, path, 0

    def parse(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self._take(4) != b"GGUF":
            raise ModelError(f"{self._path} no es un archivo GGUF.")
        version = self._scalar("I")
        if version not in (2, 3):
            raise ModelError(f"{self._path} es GGUF versión {version}; elchat lee la 2 y la 3.")
        n_tensors, n_keys = self._scalar("Q"), self._scalar("Q")
        metadata = {}
        for _ in range(n_keys):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        headers = [self._tensor_header() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._truncated()
        data_start = -(-self._at // alignment) * alignment
        return metadata, {h[0]: self._locate(*h, data_start) for h in headers}

    def _locate(
        self, name: str, dims: tuple[int, ...], kind: int, offset: int, data_start: int
    ) -> TensorInfo:
        try:
            quant = GGMLQuantizationType(kind)
        except ValueError:
            raise ModelError(
                f"El tensor {name} de {self._path} usa una cuantización desconocida ({kind}): "
                "actualiza el paquete gguf."
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[quant]
        n_bytes = math.prod(dims) // block * block_bytes
        if dims[0] % block or data_start + offset + n_bytes > len(self._view):
            raise self._truncated()
        return TensorInfo(name, dims[::-1], quant, data_start + offset, n_bytes)

    def _tensor_header(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dims = self._string(), self._scalar("I")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._truncated()
        dims = tuple(self._scalar("Q") for _ in range(n_dims))
        return name, dims, self._scalar("I"), self._scalar("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self._truncated()
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[kind])
            return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self._take(size * count)))
        if kind != _STRING:
            raise self._truncated()
        return [self._string() for _ in range(count)]

    def _string(self) -> str:
        try:
            return self._take(self._scalar("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise self._truncated() from None

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._view):
            raise self._truncated()
        data = self._view[self._at : end]
        self._at = end
        return data

    def _truncated(self) -> ModelError:
        return ModelError(
            f"{self._path} está dañado o incompleto (se esperaba más contenido): bórralo y bájalo "
            "de nuevo."
        )


def _read_values(handle: Any, info: TensorInfo, path: Path) -> np.ndarray:
    handle.seek(info.offset)
    data = np.frombuffer(handle.read(info.n_bytes), dtype=np.uint8)
    if data.size != info.n_bytes:
        raise ModelError(f"{path} está incompleto: el tensor {info.name} termina antes de tiempo.")
    try:
        if info.kind == GGMLQuantizationType.F32:
            values = data.view(np.float32).copy()
        elif info.kind == GGMLQuantizationType.F16:
            values = data.view(np.float16).astype(np.float32)
        else:
            rows = math.prod(info.shape[:-1])
            values = dequantize(data.reshape(rows, -1), info.kind)
    except NotImplementedError:
        raise ModelError(
            f"El tensor {info.name} de {path} está cuantizado como {info.kind.name} y elchat no "
            "sabe deshacerlo: usa Q8_0, Q4_1, Q4_K o el modelo sin cuantizar."
        ) from None
    return np.ascontiguousarray(values, dtype=np.float32).reshape(info.shape)


def _hf_name(name: str) -> str | None:
    """Hugging Face name of a llama.cpp tensor; None for the ones that are tables."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    if name.startswith("rope_freqs."):
        return None
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{BLOCK_NAMES[parts[2]]}.{parts[3]}"
    return name  # the caller reports it as unexpected


def _config(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: Path
) -> GPTConfig:
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ModelError(
            f"La arquitectura «{arch}» de {path} no está entre las que elchat sabe leer "
            f"({', '.join(ARCHITECTURES)}): usa un modelo SmolLM2, Qwen2.5 o Llama 3.2."
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ModelError(f"A {path} le falta el dato {arch}.{key}.")
        if not isinstance(value, int | float) or not value > 0:
            raise ModelError(
                f"El dato {arch}.{key} de {path} no es un número positivo e igual en todas las "
                "capas: elige otro modelo o bájalo de nuevo."
            )
        return value

    _refuse_features(metadata, arch, path)
    if "token_embd.weight" not in tensors:
        raise ModelError(f"A {path} le falta el tensor token_embd.weight.")
    d_model, n_heads = get("embedding_length"), get("attention.head_count")
    n_kv_heads = get("attention.head_count_kv", n_heads)
    head_dim = get("attention.key_length", d_model // n_heads)
    theta = float(get("rope.freq_base", 10_000.0))
    return GPTConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        n_layers=get("block_count"),
        d_model=d_model,
        d_ff=get("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        max_positions=get("context_length"),
        rope_theta=theta,
        norm_eps=_shortest_float(get("attention.layer_norm_rms_epsilon")),
        is_tied="output.weight" not in tensors,
        has_qkv_bias="blk.0.attn_q.bias" in tensors,
        has_o_bias="blk.0.attn_output.bias" in tensors,
        has_mlp_bias="blk.0.ffn_down.bias" in tensors,
        rope_scaling=_rope_scaling(metadata, tensors, head_dim, theta, path),
        model_type=arch,
    )


def _refuse_features(metadata: Mapping[str, Any], arch: str, path: Path) -> None:
    refused = {
        "attention.sliding_window": "atención de ventana deslizante",
        "expert_count": "mezcla de expertos",
    }
    for key, what in refused.items():
        if metadata.get(f"{arch}.{key}"):
            raise ModelError(f"{path} usa {what} y elchat no la calcula: elige otro modelo.")
    scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none" and metadata.get(f"{arch}.rope.scaling.factor", 1.0) != 1.0:
        raise ModelError(
            f"{path} usa el escalado de posiciones «{scaling}»: elchat admite el de Llama 3 o "
            "ninguno."
        )


def _rope_scaling(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    head_dim: int,
    theta: float,
    path: Path,
) -> RopeScaling | None:
    """Recover Llama 3's scaling from the table of divisors llama.cpp stores instead of it.

    The largest divisor is the factor; the rest must follow from Llama 3's own constants (1, 4,
    8,192), the only ones published.
    """
    info = tensors.get("rope_freqs.weight")
    if info is None:
        return None
    with open(path, "rb") as handle:
        divisors = _read_values(handle, info, path)
    scaling = RopeScaling(float(divisors.max()), 1.0, 4.0, 8_192)
    expected = llama3_divisors(scaling, head_dim, theta)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ModelError(
            f"El escalado de posiciones de {path} no es el de Llama 3: usa la versión en formato "
            "Hugging Face."
        )
    return scaling


def llama3_divisors(scaling: RopeScaling, head_dim: int, theta: float) -> np.ndarray:
    """Compute what llama.cpp divides each rotary frequency by, [D/2] fp32.

    1 for short waves, `factor` for long ones, a blend between.
    """
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    original = scaling.original_max_positions
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / scaling.factor + blend)).astype(np.float32)


def _shortest_float(value: float) -> float:
    """Undo the widening of an fp32: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _added_token(token_id: int, content: str, is_special: bool) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": is_special,
    }


def _post_processor(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """Write the bos that Llama's tokenizer puts before a text; elchat itself never applies it."""
    if not metadata.get("tokenizer.ggml.add_bos_token"):
        return None
    bos_id = metadata["tokenizer.ggml.bos_token_id"]
    bos = tokens[bos_id]
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _split_then_bytes(numbers: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": _SPLIT % numbers},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
    }  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    },
    "qwen2": _split_then_bytes(r"\p{N}"),
    "llama-bpe": _split_then_bytes(r"\p{N}{1,3}"),
}
