"""Compilation is a choice that is measured, recorded and never fatal."""

from __future__ import annotations

import shutil
import time

import pytest
import torch

from elchat.gpt import GPT
from elchat.training import compiled
from tests import toys


class Passes:
    """A pass whose speed depends on whether the blocks are compiled; nothing is compiled."""

    def __init__(self, model: GPT, plain_s: float, compiled_s: float) -> None:
        self.model, self.plain_s, self.compiled_s = model, plain_s, compiled_s
        self.n_run = 0

    def __call__(self) -> None:
        self.n_run += 1
        is_compiled = self.model.model.layers[0]._compiled_call_impl is not None
        time.sleep(self.compiled_s if is_compiled else self.plain_s)


def choose(plain_s: float, compiled_s: float, **changes) -> tuple[compiled.Choice, bool, int]:
    model = toys.loaded("smollm").model
    passes = Passes(model, plain_s, compiled_s)
    asked = {"mode": "auto", "device": "cpu", "minutes": None} | changes
    choice = compiled.choose(model, passes, **asked)
    return choice, model.model.layers[0]._compiled_call_impl is not None, passes.n_run


def test_what_is_faster_is_kept_and_recorded():
    choice, is_compiled, _ = choose(0.02, 0.01)
    assert choice.is_compiled
    assert is_compiled
    assert choice.gain is not None
    assert choice.gain > 1.5


def test_what_is_not_faster_is_undone():
    choice, is_compiled, _ = choose(0.01, 0.012)
    assert not choice.is_compiled
    assert not is_compiled


@pytest.mark.parametrize("changes", [{"mode": "never"}, {"minutes": 10.0}])
def test_nothing_is_tried_where_it_cannot_pay(changes):
    choice, is_compiled, n_run = choose(0.0, 0.0, **changes)
    assert (choice.is_compiled, is_compiled, n_run) == (False, False, 0)


def test_a_compiler_that_fails_is_one_sentence_and_training_goes_on(monkeypatch):
    monkeypatch.setattr(compiled, "compile_blocks", lambda model: 1 / 0)
    choice, is_compiled, _ = choose(0.0, 0.0, mode="always")
    assert not choice.is_compiled
    assert not is_compiled
    assert "ZeroDivisionError" in choice.reason


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="hace falta un compilador de C++")
def test_compiled_blocks_compute_what_plain_ones_do():
    torch.manual_seed(0)
    model, ids = toys.loaded("qwen").model.train(), toys.ids()
    plain = model(ids)
    compiled.compile_blocks(model)
    torch.testing.assert_close(model(ids), plain, atol=1e-4, rtol=1e-4)
