"""The compiled kernels under each set of instructions, and the layout they read."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch

from elchat import native
from elchat.engine import Engine
from elchat.hooks import Film, LayerEffect
from elchat.native import builder, library
from elchat.panels import interleaved, panels
from elchat.quantize import pack
from elchat.runner import Rows
from tests import toys
from tests.unit.test_engine import make_engine, prompt

PROCESSORS = ("x86-64-v3", "x86-64")  # AVX2, and plain loops


def logits_of(weights: Any, family: str) -> torch.Tensor:
    """A prompt in two chunks, then one token beside it."""
    runner = make_engine(family, "compiled", weights).runner(2, 64)
    every = range(runner.config.n_layers)
    ids = prompt(0, 23)
    with torch.inference_mode():
        for start, end in ((0, 9), (9, 23)):
            runner.run_layers(runner.embed([ids[start:end]]), Rows((0,), (start,)), every)
        x = runner.run_layers(runner.embed([[3], [5]]), Rows((0, 1), (23, 0)), every)
        return runner.finish(x[:, -1])[1]


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.skipif(platform.machine() != "x86_64", reason="instrucciones de x86-64")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_instruction_set_computes_the_same(processor, monkeypatch):
    cases = [(w, f) for w in ("fp32", "int8", "int4") for f in ("qwen", "llama")]
    monkeypatch.setattr(native.load(), "has_bf16", False)  # others keep keys and values in fp32
    here = [logits_of(*case) for case in cases]
    compiler = builder.find_compiler()
    assert compiler is not None
    other = library.Library(builder.built(library.SOURCE, compiler, processor))
    monkeypatch.setattr(native, "load", lambda: other)
    for case, expected in zip(cases, here, strict=True):
        # Rounding to 8 bits may turn a last bit of difference into a whole step.
        bound = 1e-4 if case[0] == "fp32" else 2e-2
        apart = (logits_of(*case) - expected).abs().max() / expected.abs().max()
        assert apart < bound, case


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_cache_in_bf16_loses_what_its_rounding_does(family, monkeypatch):
    lib = native.load()
    assert lib is not None
    if not lib.has_bf16:
        pytest.skip("este procesador no multiplica en bf16")
    half = logits_of("int8", family)
    monkeypatch.setattr(lib, "has_bf16", False)
    whole = logits_of("int8", family)
    apart = (half - whole).std() / whole.std()
    assert 0 < apart < 0.15  # random weights magnify it; a fault gives 1 or more


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
def test_what_another_sequence_left_is_never_read():
    """Positions past the end, and the second half of a pair of values, may hold anything."""
    loaded = make_engine("qwen", "compiled", "int8").runner(2, 64)
    every, ids = range(loaded.config.n_layers), prompt(0, 23)
    with torch.inference_mode():
        x = loaded.run_layers(loaded.embed([ids]), Rows((0,), (0,)), every)
        expected = loaded.finish(x[0, -1:])[1]
        for cached in (loaded._k, loaded._v):
            cached[:, 1] = torch.nan
        x = loaded.run_layers(loaded.embed([ids]), Rows((1,), (0,)), every)
        assert torch.equal(loaded.finish(x[0, -1:])[1], expected)


class TokenEffects:
    """Other effects for each token of each layer."""

    def __init__(self, n_tokens: int, width: int) -> None:
        dice = torch.Generator().manual_seed(0)

        def rows() -> torch.Tensor:
            return 0.1 * torch.randn(1, n_tokens, width, generator=dice)

        keep = torch.rand(1, n_tokens, 1, generator=dice) < 0.7
        self.effects = [
            LayerEffect(keep, False, rows(), Film(rows(), rows(), rows())) for _ in range(3)
        ]

    def effect(self, layer: int) -> LayerEffect:
        return self.effects[layer]


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize("is_hooked", [False, True])
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_states_nobody_needs_are_not_computed_and_change_nothing(weights, is_hooked):
    ids = prompt(0, 23)

    def read(n_kept: int | None) -> tuple[torch.Tensor, Any]:
        runner = make_engine("qwen", "compiled", weights).runner(1, 64)
        hook = TokenEffects(len(ids), runner.config.d_model) if is_hooked else None
        x = runner.embed([ids])
        every = range(runner.config.n_layers)
        with torch.inference_mode():
            return runner.run_layers(x, Rows((0,), (0,)), every, hook, n_kept=n_kept)[0], runner

    whole, expected = read(None)
    for n_kept in (0, 1, 5, 23):
        found, runner = read(n_kept)
        assert torch.equal(found[23 - n_kept :], whole[23 - n_kept :])
        assert n_kept == 23 or not torch.equal(found[: 23 - n_kept], whole[: 23 - n_kept])
        assert torch.equal(runner._k, expected._k)
        assert torch.equal(runner._v, expected._v)


@pytest.mark.parametrize("kind", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("n", [64, 71])
def test_panels_hold_the_matrix(kind, n):
    weight = torch.randn(n, 96, generator=torch.Generator().manual_seed(0))
    packed = pack(weight, kind)
    found = panels(packed, torch.arange(n).float())
    assert found.bias is not None
    assert found.bias.view(-1)[:n].tolist() == list(range(n))
    assert found.bias.view(-1)[n:].tolist() == [0.0] * (-n % 32)
    if kind == "fp32":
        assert torch.equal(found.data.transpose(1, 2).reshape(-1, 96)[:n], weight)
        return
    if kind == "int8":
        grid = found.data.transpose(1, 2).reshape(-1, 96)[:n].to(torch.int16) - 128
        assert torch.equal(grid.to(torch.int8), packed.integers())
        return
    low, high = found.data & 15, found.data >> 4  # [P, K / 8, 32, 4]
    grid = torch.stack((low, high), dim=3).permute(0, 2, 1, 3, 4).reshape(-1, 96)
    assert torch.equal(grid[:n].to(torch.int8) - 8, packed.integers())
    assert found.scales is not None
    assert packed.scales is not None
    assert torch.equal(found.scales.transpose(1, 2).reshape(-1, 3)[:n], packed.scales)


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_embeddings_are_rows_of_the_head(weights):
    loaded = toys.loaded("smollm")
    expected = pack(loaded.model.head_weight_VC, weights).dequantize()
    runner = make_engine("smollm", "compiled", weights).runner(1, 16)
    ids = [[0, 31, 32, 447], [5, 5, 100, 64]]
    assert torch.equal(runner.embed(ids), expected[torch.tensor(ids)])


def test_interleaved_rows_alternate_by_sixteen():
    gate, up = torch.zeros(48, 2), torch.ones(48, 2)
    mixed = interleaved(gate, up)[:, 0].view(3, 2, 16)
    assert mixed[:, 0].sum() == 0
    assert mixed[:, 1].sum() == 48


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", toys.FAMILIES)
def test_compiled_equals_the_model_of_the_same_weights(weights, family):
    """Against plain torch over the very weights, rounded: only activations differ."""
    if native.why_not() is not None:
        pytest.skip(str(native.why_not()))
    loaded = toys.loaded(family)
    model = loaded.model
    with torch.no_grad():
        head = pack(model.head_weight_VC, "int8" if weights == "int4" else weights)
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(pack(module.weight, weights).dequantize())
        model.model.embed_tokens.weight.copy_(head.dequantize())
        ids = [*prompt(0, 23), 3]
        expected = model(torch.tensor([ids]))[0, -1]
    got = logits_of(weights, family)[0]
    apart = (got - expected).std() / expected.std()
    # Random weights of this size magnify what 8-bit activations lose; a fault gives 1 or more.
    assert apart < (1e-5 if weights == "fp32" else 0.15)


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(14, 2, 16), (8, 8, 24), (4, 1, 40)])
def test_any_group_of_heads_fits(heads, kv_heads, head_dim):
    shape = dict(n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim)
    loaded = toys.loaded("qwen", **shape)
    ids = prompt(0, 40)
    with torch.no_grad():
        expected = loaded.model(torch.tensor([ids]))[0]
    engine = Engine(loaded.model, loaded.tokenizer, loaded.chat, compile=True, threads=2)
    runner = engine.runner(1, 64)
    with torch.inference_mode():
        x = runner.run_layers(runner.embed([ids]), Rows((0,), (0,)), range(3))
        got = runner.finish(x[0])[1]
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
