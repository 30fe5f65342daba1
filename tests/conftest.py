"""Shared fixtures: a tiny model, and an elchat home of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elchat.gpt import GPT, GPTConfig

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


@pytest.fixture
def tiny_model() -> GPT:
    return make_tiny()
