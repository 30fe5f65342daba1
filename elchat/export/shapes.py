"""The same model in a shape that the formats of others can say."""

from __future__ import annotations

from dataclasses import replace

import torch

from elchat.gpt import GPT
from elchat.model_config import GPTConfig
from elchat.weights import LoadedModel


def expressible(loaded: LoadedModel) -> LoadedModel:
    """Give a model the biases its architecture says all together, with zeros where it has none.

    Hugging Face's Qwen2 has biases on q, k and v alone, its Llama on all four projections of
    attention or on none. A model with other biases (a mood folded into them) is written as a Llama
    with zeros added: the function is the same to the bit.
    """
    config = loaded.model.config
    wanted = expressible_config(config)
    if wanted == config:
        return loaded
    with torch.device("meta"):
        model = GPT(wanted)
    state = loaded.model.state_dict()
    sample = loaded.model.model.norm.weight
    for name, parameter in model.state_dict().items():
        if name not in state:
            state[name] = torch.zeros(parameter.shape, dtype=sample.dtype, device=sample.device)
    model.load_state_dict(state, assign=True)
    return replace(loaded, model=model.eval())


def expressible_config(config: GPTConfig) -> GPTConfig:
    """The nearest shape that both Hugging Face and llama.cpp have."""
    is_qwen2 = config.has_qkv_bias and not (config.has_o_bias or config.has_mlp_bias)
    if config.model_type == "qwen2" and is_qwen2:
        return config
    has_attention_bias = config.has_qkv_bias or config.has_o_bias
    return replace(
        config, model_type="llama", has_qkv_bias=has_attention_bias, has_o_bias=has_attention_bias
    )
