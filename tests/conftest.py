"""Shared fixtures: a tiny model, and an elchat home of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from elchat.gpt import GPT, GPTConfig
from elchat.training.reporter import Reporter

TINY = GPTConfig(
    vocab_size=128,
    n_layers=2,
    d_model=32,
    d_ff=64,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    max_positions=64,
    rope_theta=1e4,
    norm_eps=1e-5,
)


def make_tiny(config: GPTConfig = TINY, seed: int = 0) -> GPT:
    """A randomly initialised model, large enough weights for its logits to differ."""
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(seed), std=0.2)
    return model


@pytest.fixture(scope="session")
def _kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _kernels: Path) -> None:
    """Nothing of the user's is touched; only compiled kernels are shared, to build them once."""
    monkeypatch.setenv("ELCHAT_HOME", str(tmp_path / "elchat-home"))
    monkeypatch.setenv("ELCHAT_NATIVE_DIR", str(_kernels))


@pytest.fixture(autouse=True)
def _silent_reporters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A simulated kill leaves the heartbeat of its reporter going; it must not outlive the test."""
    made: list[Reporter] = []
    build = Reporter.__init__

    def remembered(self: Reporter, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(Reporter, "__init__", remembered)
    yield
    for reporter in made:
        reporter.close()


@pytest.fixture
def tiny_model() -> GPT:
    return make_tiny()
