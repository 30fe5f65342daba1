"""Freeze a mood into plain weights: the result is an ordinary model that has that mood for ever.

    norm(x) · w · (1 + gain)  =  norm(x) · w',            w' = w (1 + gain)
    mlp(y) + shift            =  mlp'(y),                 down_proj.bias' = down_proj.bias + shift

Qwen2 has no biases in its MLP, so a folded Qwen2 is written as a Llama with biases: same sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from elchat.errors import DataError
from elchat.model_config import GPTConfig

# What a name means on the axes, between -1 and 1; what is not written is 0.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "neutro": {},
    "alegre": {"valence": 0.7, "arousal": 0.4, "warmth": 0.4, "playfulness": 0.3},
    "triste": {"valence": -0.7, "arousal": -0.4, "dominance": -0.3},
    "sereno": {"valence": 0.3, "arousal": -0.6, "warmth": 0.3},
    "entusiasta": {"valence": 0.6, "arousal": 0.8, "curiosity": 0.4},
    "seco": {"valence": -0.3, "verbosity": -0.7, "warmth": -0.6},
    "formal": {"formality": 0.8, "playfulness": -0.4},
    "juguetón": {"playfulness": 0.8, "valence": 0.4, "formality": -0.5},
    "curioso": {"curiosity": 0.8, "arousal": 0.3},
    "cálido": {"warmth": 0.8, "valence": 0.3},
}


def preset(name: str) -> Mapping[str, float]:
    """The axes of a named mood.

    Raises:
        DataError: no such name.
    """
    plain = str.maketrans("áéíóú", "aeiou")
    by_name = {key.translate(plain): axes for key, axes in PRESETS.items()}
    axes = by_name.get(name.strip().lower().translate(plain))
    if axes is None:
        raise DataError(f"No hay un humor «{name}»: los que hay son {', '.join(PRESETS)}.")
    return axes


def fold(
    config: GPTConfig, state: Mapping[str, Tensor], film_L3C: Tensor
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """A model whose plain forward pass equals ours with that mood on every token.

    Args:
        config: shape of the model.
        state: its weights; not changed, those untouched are shared with the result.
        film_L3C: attention gain, mlp gain and shift of every layer (`Mood.film_L3C`).

    Returns:
        The shape (with MLP biases) and the weights of the folded model.
    """
    is_qwen = config.model_type == "qwen2"
    folded_config = replace(
        config, has_mlp_bias=True, has_o_bias=config.has_o_bias or is_qwen, model_type="llama"
    )
    folded = dict(state)
    for layer, film_3C in enumerate(film_L3C):
        prefix = f"model.layers.{layer}."
        norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
        for name, gain_C in zip(norms, film_3C[:2], strict=True):
            weight = state[prefix + name]
            folded[prefix + name] = (weight.float() * (1 + gain_C)).to(weight.dtype)
        _add_biases(folded, prefix, config, folded_config)
        bias = folded[prefix + "mlp.down_proj.bias"]
        folded[prefix + "mlp.down_proj.bias"] = (bias.float() + film_3C[2]).to(bias.dtype)
    return folded_config, folded


def _add_biases(
    state: dict[str, Tensor], prefix: str, config: GPTConfig, folded: GPTConfig
) -> None:
    dtype = state[prefix + "input_layernorm.weight"].dtype
    sizes = {
        "mlp.gate_proj": config.d_ff,
        "mlp.up_proj": config.d_ff,
        "mlp.down_proj": config.d_model,
    }
    if folded.has_o_bias:
        sizes["self_attn.o_proj"] = config.d_model
    for name, size in sizes.items():
        state.setdefault(f"{prefix}{name}.bias", torch.zeros(size, dtype=dtype))
