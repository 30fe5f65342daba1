"""Adapters start as the model they adapt, train only themselves and merge into plain weights."""

from __future__ import annotations

import pytest
import torch

from elchat.config import AdapterSection
from elchat.gpt import GPT
from elchat.training import adapters
from tests import toys

METHODS = ("lora", "dora", "qlora")


def adapted(method: str, family: str = "qwen", **changes) -> tuple[GPT, GPT]:
    """A toy model and the same with fresh adapters."""
    plain, model = (toys.loaded(family).model for _ in range(2))
    adapters.add_adapters(model, AdapterSection(method=method, rank=4, **changes), seed=0)
    return plain, model


def shake(model: GPT) -> None:
    """Give every adapter something to say."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize(("method", "tolerance"), [("lora", 1e-6), ("dora", 1e-4), ("qlora", 0.06)])
def test_a_fresh_adapter_changes_nothing_but_the_rounding_of_its_base(method, tolerance):
    plain, model = adapted(method)
    expected, found = plain(toys.ids()), model(toys.ids())
    assert (found - expected).square().mean().sqrt() <= tolerance * expected.std()


@pytest.mark.parametrize("family", toys.FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_are_an_ordinary_model_that_says_the_same(method, family):
    plain, model = adapted(method, family)
    shake(model)
    ids = toys.ids()
    with torch.no_grad():
        expected = model(ids)
        assert not torch.allclose(expected, plain(ids), atol=1e-2)
        plain.load_state_dict(adapters.merged_state_dict(model))
        torch.testing.assert_close(plain(ids), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_only_adapters_learn(method):
    _, model = adapted(method, targets=["q_proj", "down_proj"])
    model(toys.ids()).square().mean().backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning
    assert all("lora_" in name for name in learning)
    assert {name.split(".")[-2] for name in learning} == {"q_proj", "down_proj"}


def test_eight_bit_codes_keep_a_matrix_within_half_a_code():
    weight = torch.randn(33, 100) * torch.logspace(-3, 1, 33)[:, None]
    codes, scales = adapters.quantise_int8(weight)
    error = (adapters.dequantise_int8(codes, scales) - weight).abs()
    limit = scales.repeat_interleave(adapters.INT8_BLOCK, 1)[:, :100] / 2
    assert (error <= limit * 1.001).all()
    assert codes.dtype == torch.int8


@pytest.mark.parametrize(
    ("part", "frozen"),
    [
        ("embeddings", {"model.embed_tokens.weight"}),
        ("layers:0-1", {f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)}),
        ("layers:2", {"model.layers.2.mlp.up_proj.weight"}),
        ("norms", {"model.norm.weight", "model.layers.1.input_layernorm.weight"}),
        ("head", {"lm_head.weight"}),
    ],
)
def test_frozen_parts_get_no_gradient(part, frozen):
    model = toys.loaded("smollm", is_tied=False).model
    adapters.freeze(model, [part])
    model(toys.ids()).square().mean().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert frozen <= without
    assert without != {name for name, _ in model.named_parameters()}


def test_embedding_noise_acts_in_training_only():
    model = toys.loaded("smollm").model
    ids = toys.ids()
    plain = model(ids)
    adapters.add_embedding_noise(model, 5.0)
    assert torch.equal(model.eval()(ids), plain)
    model.train()
    first = model.model.embed_tokens(ids)
    reach = 5.0 / (ids.shape[1] * model.config.d_model) ** 0.5
    moved = (first - model.model.embed_tokens.weight[ids]).abs()
    assert 0.8 * reach < moved.max() <= reach
    assert not torch.equal(first, model.model.embed_tokens(ids))
