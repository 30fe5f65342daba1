"""Memory of training without training: what must be exact is, and the rest moves as it should."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import bench_memory
from cli import preflight
from cli.main import main
from elchat import bases, config, estimate
from elchat.config import StageSection
from elchat.training.device import ComputePlan
from elchat.training.footprint import measure
from tests import toys
from tests.unit.test_fused import needs_kernels

ROOT = Path(__file__).parents[2]
SHAPE = toys.config("smollm", n_layers=4, d_model=128, d_ff=256, head_dim=32)
WIDER = toys.config("smollm", n_layers=6, d_model=256, d_ff=512, head_dim=64, max_positions=256)


def footprint(
    rows: int = 2,
    *,
    precision: str = "fp32",
    checkpointed: bool = False,
    blocks: str = "plain",
    **stage,
):
    settings = StageSection(context_tokens=64, batch_tokens=64 * 8, **stage)
    return measure(
        SHAPE,
        settings,
        rows=rows,
        precision=precision,
        checkpointed=checkpointed,
        blocks=blocks,
    )


def test_state_is_exact_to_the_byte():
    found = footprint()
    n = SHAPE.n_params
    assert found.weights == 4 * n
    assert found.gradients == 4 * n
    assert 8 * n <= found.optimizer <= 8 * n + 512 * 8 * SHAPE.n_layers  # and a counter each
    assert found.total == sum(asdict(found).values())


def test_activations_grow_with_rows_and_shrink_by_recomputing_and_by_bf16():
    one, two, four = footprint(1), footprint(2), footprint(4)
    moved = [f.total for f in (one, two, four)]
    assert moved[0] < moved[1] < moved[2]
    assert four.activations - two.activations == pytest.approx(
        2 * (two.activations - one.activations), rel=0.1
    )
    assert footprint(4, checkpointed=True).activations < four.activations / 2
    formula = estimate.memory(SHAPE, "A", 4 * 64, bytes_per_value=4)
    assert four.activations == pytest.approx(formula.activations, rel=0.6)


@pytest.mark.parametrize("adapter", [{}, {"adapter": {"method": "lora", "rank": 4}}])
@pytest.mark.parametrize("blocks", ["fused", "fused-int8"])
def test_the_kernels_keep_less_between_the_passes(adapter, blocks):
    plain = footprint(8, precision="bf16", **adapter)
    ours = footprint(8, precision="bf16", blocks=blocks, **adapter)
    assert ours.activations < 0.9 * plain.activations
    assert (ours.weights, ours.optimizer) == (plain.weights, plain.optimizer)


def test_in_8_bits_the_kernels_keep_less_still():
    found = {kind: footprint(8, precision="bf16", blocks=kind) for kind in ("fused", "fused-int8")}
    assert found["fused-int8"].activations < 0.9 * found["fused"].activations


@needs_kernels
@pytest.mark.parametrize("blocks", ["fused", "fused-int8"])
def test_the_kernels_count_is_what_torch_hands_out(blocks):
    """The same pass with data, by the profiler's account of allocations."""
    settings = StageSection(context_tokens=256, batch_tokens=4 * 256)
    said = measure(WIDER, settings, rows=2, precision="bf16", checkpointed=False, blocks=blocks)
    compute = ComputePlan("cpu", "bf16", 1, 1.0, "tabla")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        bench_memory.train(WIDER, 256, 2, False, compute, blocks)
    assert said.total == pytest.approx(bench_memory.peak_allocated(profile), rel=0.1)


def test_what_is_not_trained_has_neither_gradient_nor_moments():
    whole, adapted = footprint(), footprint(adapter={"method": "lora", "rank": 4})
    assert adapted.gradients < whole.gradients / 10
    assert adapted.optimizer < whole.optimizer / 10
    small = footprint(optimizer_state="int8")
    assert small.optimizer < whole.optimizer / 2


def test_linear_in_rows():
    pair = (estimate.Memory(1, 2, 3, 10, 4), estimate.Memory(1, 2, 3, 17, 5))
    assert estimate.Measured(*pair).at(3) == estimate.Memory(1, 2, 3, 24, 6)


def test_a_measured_model_fits_by_what_was_measured():
    shape = bases.get("smollm2-135m").shape
    gpu = estimate.hardware.gpu_by_id("NVIDIA GeForce RTX 4090")
    gib = 2**30
    state, row = 2 * gib, 3 * gib
    plain = estimate.Measured(
        estimate.Memory(state, 0, 0, row, 0), estimate.Memory(state, 0, 0, 2 * row, 0)
    )
    found = estimate.fit(gpu, shape, 2048, measured={False: plain})
    room = (estimate.usable_vram_gib(gpu) - 1.4) / 1.06
    assert found is not None
    assert found.rows == int((room - 2) // 3)
    huge = estimate.Memory(30 * gib, 0, 0, row, 0)
    other = estimate.Measured(huge, estimate.Memory(30 * gib, 0, 0, 2 * row, 0))
    assert estimate.fit(gpu, shape, 2048, measured={False: other}) is None
    both = estimate.fit(gpu, shape, 2048, measured={False: other, True: plain})
    assert both is not None
    assert both.is_checkpointed


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration over a toy model's folder."""
    shape = asdict(SHAPE)
    folder = tmp_path / "base"
    folder.mkdir()
    raw = {
        "model_type": "llama", "vocab_size": shape["vocab_size"], "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (tmp_path / "textos").mkdir()
    (tmp_path / "textos" / "a.txt").write_text("Hola.", encoding="utf-8")
    path = tmp_path / "x.yaml"
    path.write_text(
        f"name: x\nmodel: {{base: {folder}}}\ndata: {{cpt: [{{path: textos}}]}}\n"
        "training: {cpt: {context_tokens: 64, batch_tokens: 256}, sft: {enabled: false}}\n"
        "compute: {gpus: [NVIDIA L4], cloud: [secure]}\n",
        encoding="utf-8",
    )
    return path


def test_the_command_says_memory_by_kind_speed_and_why(tiny: Path, capsys):
    assert main(["estimate", str(tiny)]) == 0
    page = capsys.readouterr()
    assert page.err == ""
    for words in ("pesos", "gradientes", "optimizador", "activaciones", "MFU", "L4", "sin datos"):
        assert words in page.out, page.out
    assert main(["estimate", str(tiny), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["is_memory_measured"]
    assert told["local"]["memory"]["weights"] == 4 * SHAPE.n_params
    assert 0 < told["offers"][0]["mfu"] < 1


def test_without_torch_the_formula_stands_in(tiny: Path, capsys, monkeypatch):
    monkeypatch.setattr(
        preflight, "script_argv", lambda *_: [sys.executable, "-c", "raise ImportError('torch')"]
    )
    assert main(["estimate", str(tiny)]) == 0
    page = capsys.readouterr()
    assert "la memoria sale de la fórmula" in page.err
    assert "pesos" in page.out


def test_quick_starts_no_process(tiny: Path, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "measure", lambda *_: pytest.fail("--quick no mide"))
    assert main(["estimate", "--config", str(tiny), "--quick"]) == 0


def test_the_script_answers_what_is_asked_and_no_more():
    raw = {"name": "x", "model": {"base": "a/b"}, "data": {"cpt": [{"hub": "a/b"}]},
           "training": {"sft": {"enabled": False}, "cpt": {"context_tokens": 64,
                                                           "batch_tokens": 128}}}  # fmt: skip
    asked = {
        "shape": asdict(SHAPE), "cpu": True, "gpu": False,
        "config": config.parse(raw, origin="x").model_dump(mode="json"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "scripts.footprint"], input=json.dumps(asked),
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["gpu"] is None
    assert answer["cpu"]["weights"] == 4 * SHAPE.n_params
