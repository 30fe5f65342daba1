"""The hook of the layers: nothing asked is the plain model to the bit, and each effect bites."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from elchat.gpt import GPT, KVCache
from elchat.hooks import Film, LayerEffect
from tests.conftest import TINY

IDS = torch.arange(2 * 12).reshape(2, 12) % TINY.vocab_size
C = TINY.d_model


@dataclass
class Hook:
    """The same effect on some layers."""

    applied: LayerEffect | None
    layers: tuple[int, ...] = tuple(range(TINY.n_layers))

    def effect(self, layer: int) -> LayerEffect | None:
        return self.applied if layer in self.layers else None


@pytest.fixture
def model() -> GPT:
    model = GPT(TINY)
    model.init_weights(torch.Generator().manual_seed(0), std=0.2)
    return model.eval()


def film(value: float) -> Film:
    return Film(*(torch.full((1, 1, C), value) for _ in range(3)))


ZEROS = LayerEffect(
    keep_BT1=torch.ones(2, 1, 1, dtype=torch.bool), noise_BTC=torch.zeros(1, 1, C), film=film(0.0)
)


@torch.no_grad()
def test_effects_of_zero_are_the_plain_model_to_the_bit(model):
    plain = model(IDS)
    assert torch.equal(model(IDS, hook=Hook(None)), plain)
    assert torch.equal(model(IDS, hook=Hook(ZEROS)), plain)


@torch.no_grad()
@pytest.mark.parametrize(
    "effect",
    [
        LayerEffect(is_skipped=True),
        LayerEffect(noise_BTC=torch.full((1, 1, C), 0.01)),
        LayerEffect(film=film(0.01)),
    ],
)
def test_every_effect_changes_the_logits(model, effect):
    assert not torch.allclose(model(IDS, hook=Hook(effect, (1,))), model(IDS))


@torch.no_grad()
def test_a_row_that_skips_leaves_its_neighbour_alone(model):
    keep = torch.tensor([True, False])[:, None, None]
    mixed = model(IDS, hook=Hook(LayerEffect(keep_BT1=keep), (1,)))
    skipped = model(IDS, hook=Hook(LayerEffect(is_skipped=True), (1,)))
    assert torch.equal(mixed[0], model(IDS)[0])
    assert torch.equal(mixed[1], skipped[1])


@torch.no_grad()
def test_skipped_layers_are_written_through(model):
    """Decoding token by token under a mask equals recomputing the whole under the same mask."""
    hook = Hook(LayerEffect(is_skipped=True), (1,))
    cache = KVCache(TINY, 2, 12)
    steps = [model(IDS[:, i : i + 1], cache=cache, hook=hook) for i in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), model(IDS, hook=hook), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_in_two_passes_equal_one(model):
    plan = model.plan(IDS)
    x_BTC = model.model.embed_tokens(IDS)
    for part in (range(1), range(1, TINY.n_layers)):
        x_BTC = model.run_layers(x_BTC, plan, part)
    assert torch.equal(model.model.norm(x_BTC), model.hidden(IDS))
