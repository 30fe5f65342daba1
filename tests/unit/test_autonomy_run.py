"""A whole run with autonomy on, and its control without: the real stages on a toy."""

from __future__ import annotations

import json

import pytest
import torch

from elchat import config, runs
from elchat.autonomy import Settings, store
from elchat.weights import load_model, save_hf
from scripts import autonomy_stages
from scripts import run as run_script
from tests import tiny_run, toys

KNOBS = {"stochastic_depth": 0.5, "noise_scale": 0.02, "mood_dim": 16, "stochastic_temp_var": 0.2}


def new_run(folder, name, knobs, **autonomy):
    raw = tiny_run.raw_config(folder, max_epochs=0.5)
    raw["training"] |= knobs
    raw["autonomy"] = {"mood_tokens": 300, **autonomy}
    return runs.create(config.parse(raw, origin="tiny"), provider="local", name=name)


def test_a_run_with_autonomy_trains_with_it_and_leaves_a_mood_beside_the_model(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(autonomy_stages, "COMPOSED", 8)
    monkeypatch.setattr(autonomy_stages, "ABLATION_TOKENS", 60)
    save_hf(toys.loaded("smollm", max_positions=900), tmp_path / "base", dtype=torch.float32)
    tiny_run.write_texts(tmp_path)
    weights = {}
    for name, knobs, edition in (
        ("full", KNOBS, "full"),
        ("frozen", KNOBS, "frozen"),
        ("control", {}, "full"),
    ):
        run = new_run(tmp_path, name, knobs, edition=edition)
        assert run_script.main([str(run.path)]) == 0
        loaded = load_model(run.model_path)
        weights[name] = loaded.model.state_dict()
        autonomy = store.load(run.model_path, loaded.model.config)
        assert (autonomy.mood is not None) == bool(knobs)
        if knobs:
            manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
            assert "model/autonomy.safetensors" in manifest["files"]
            assert autonomy.settings.stochastic_depth == 0.5
            assert autonomy.skippable
            assert autonomy.volition is not None  # taught when silence is apt
            assert autonomy.mood.shape.dim == 16
    same = [torch.equal(weights["frozen"][k], weights["control"][k]) for k in weights["control"]]
    moved = [torch.equal(weights["full"][k], weights["control"][k]) for k in weights["control"]]
    assert all(same)  # the frozen edition's weights are those of the run without autonomy
    assert not all(moved)


@pytest.mark.parametrize(("depth", "factor", "trained"), [(0.05, 8.0, 0.4), (0.5, 8.0, 1.0)])
def test_training_skips_more_than_the_chat_will_and_never_beyond_certainty(
    tmp_path, depth, factor, trained
):
    raw = tiny_run.raw_config(tmp_path)
    raw["training"] |= {"stochastic_depth": depth}
    raw["autonomy"] = {"training_depth_factor": factor}
    parsed = config.parse(raw, origin="tiny")
    model = toys.loaded("smollm").model
    knobs = autonomy_stages.knobs_of(parsed, "cpt", model, [model.config.n_layers - 1])
    assert knobs is not None
    assert knobs.p_max == pytest.approx(trained)
    assert Settings.from_config(parsed).stochastic_depth == depth
