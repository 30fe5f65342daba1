"""Optimizers: compressed moments follow the exact ones, and every state survives a save."""

from __future__ import annotations

import pytest
import torch

from elchat.config import StageSection
from elchat.errors import CheckpointError
from elchat.training.optim import build_optimizer
from elchat.training.small_adamw import (
    decode_signed,
    decode_unsigned,
    encode_signed,
    encode_unsigned,
    round_to_bf16,
)
from tests.conftest import make_tiny

VARIANTS = [
    {},
    {"optimizer_state": "bf16"},
    {"optimizer_state": "int8"},
    {"optimizer": "muon", "weight_decay": 0.1},
]


def train(settings: dict, steps: int, seed: int = 0, rate: float = 3e-3):
    """A tiny model after some steps on one fixed batch, its optimizer and its losses."""
    torch.manual_seed(seed)
    model = make_tiny()
    optimizer = build_optimizer(model, StageSection(**settings))
    optimizer.set_learning_rate(rate)
    ids = torch.randint(0, 128, (8, 32), generator=torch.Generator().manual_seed(1))
    losses = [one_step(model, optimizer, ids) for _ in range(steps)]
    return model, optimizer, losses, ids


def one_step(model, optimizer, ids) -> float:
    logits = model(ids)[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 128), ids[:, 1:].reshape(-1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize("state", ["bf16", "int8"])
def test_compressed_moments_learn_as_the_exact_ones(state):
    _, _, exact, _ = train({}, 40)
    _, _, small, _ = train({"optimizer_state": state}, 40)
    assert exact[-1] < 0.6 * exact[0]
    assert small[-1] == pytest.approx(exact[-1], rel=0.06)


@pytest.mark.parametrize(("state", "most"), [("bf16", 0.52), ("int8", 0.3)])
def test_compressed_moments_take_less_memory(state, most):
    def size(settings) -> int:
        model, optimizer, _, _ = train(settings, 1)
        return sum(t.numel() * t.element_size() for t in optimizer.tensors(model).values())

    assert size({"optimizer_state": state}) < most * size({})


def test_muon_takes_the_matrices_of_the_blocks_and_learns():
    model, optimizer, losses, _ = train({"optimizer": "muon"}, 40)
    names = {name for name in optimizer.tensors(model) if name.endswith("momentum_buffer")}
    assert names == {
        f"{name}.momentum_buffer"
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embed_tokens" not in name
    }
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_saved_state_continues_to_the_bit(settings):
    model, optimizer, _, ids = train(settings, 5)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    tensors = {name: t.clone() for name, t in optimizer.tensors(model).items()}
    torch.manual_seed(9)
    one_step(model, optimizer, ids)
    again = make_tiny(seed=3)
    again.load_state_dict(weights)
    restored = build_optimizer(again, StageSection(**settings))
    restored.load_tensors(again, tensors)
    restored.set_learning_rate(3e-3)
    torch.manual_seed(9)
    one_step(again, restored, ids)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_of_another_optimizer_is_refused():
    model, optimizer, _, _ = train({"optimizer": "muon"}, 1)
    with pytest.raises(CheckpointError, match="otro optimizador"):
        build_optimizer(model, StageSection()).load_tensors(model, optimizer.tensors(model))


def test_rounding_is_right_on_average_and_within_one_code():
    torch.manual_seed(0)
    x = torch.randn(512) * torch.logspace(-6, 2, 512)
    mean = torch.stack([round_to_bf16(x).float() for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, x, rtol=2e-3, atol=0)
    signed = torch.stack([decode_signed(*encode_signed(x), x.shape) for _ in range(400)]).mean(0)
    near = x.abs() > x.abs().max() / 2**15
    torch.testing.assert_close(signed[near], x[near], rtol=2e-2, atol=0)
    square = x.square()
    back = decode_unsigned(*encode_unsigned(square), square.shape)
    near = square > square.max() / 2**35
    torch.testing.assert_close(back[near], square[near], rtol=0.13, atol=0)
    assert decode_unsigned(*encode_unsigned(torch.zeros(9)), torch.Size([9])).eq(0).all()
