from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from elchat.training import loss as loss_module
from elchat.training.loss import summed_cross_entropy


@pytest.fixture(params=[7, 1 << 24], ids=["one row per chunk", "one chunk"])
def _chunk(request, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", request.param)


@pytest.mark.usefixtures("_chunk")
def test_value_and_gradients_equal_plain_cross_entropy():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 9, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (2, 9), generator=generator)
    targets[0, 3:6] = -100
    plain = F.cross_entropy(
        (hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    expected = torch.autograd.grad(plain, (hidden, weight))
    ours = summed_cross_entropy(hidden, weight, targets)
    actual = torch.autograd.grad(ours / 4 * 4, (hidden, weight))
    torch.testing.assert_close(ours, plain.detach(), rtol=1e-5, atol=1e-5)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_nothing_supervised_is_zero_and_differentiable():
    hidden = torch.randn(1, 4, 8, requires_grad=True)
    weight = torch.randn(10, 8, requires_grad=True)
    loss = summed_cross_entropy(hidden, weight, torch.full((1, 4), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.abs().sum() == 0


def test_bf16_hidden_states_keep_an_fp32_weight_gradient():
    hidden = torch.randn(1, 6, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(12, 8, requires_grad=True)
    summed_cross_entropy(hidden, weight, torch.randint(0, 12, (1, 6))).backward()
    assert weight.grad.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16
