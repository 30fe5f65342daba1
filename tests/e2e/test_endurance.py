"""What real machines do, to a real worker: see endurance.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elchat import checkpoint
from elchat.files import sha256_file
from scripts import run as worker
from tests import tiny_run
from tests.unit.test_fused import needs_kernels

ENDURANCE = Path(__file__).with_name("endurance.py")


@pytest.mark.parametrize("on_kernels", [False, pytest.param(True, marks=needs_kernels)])
@pytest.mark.parametrize(
    "faults",
    [6, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_faults_change_no_weight_and_break_no_checkpoint(tmp_path, faults, on_kernels):
    tiny_run.prepare(tmp_path / "materials", **({"head_dim": 64} if on_kernels else {}))
    words = [str(tmp_path / "materials"), str(faults), "0", *(["--kernels"] * on_kernels)]
    root, before = Path(__file__).parents[2], os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, str(ENDURANCE), *words],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), before])},
        timeout=280 if faults < 20 else 3500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert sum(told["faults"].values()) >= faults
    assert len(told["faults"]) >= 4


def test_a_result_cut_short_after_its_stage_ended_is_made_again(tmp_path):
    """Found by the hundred faults: the sentence said a resume would repeat the stage."""
    tiny_run.prepare(tmp_path / "materials")
    run = tiny_run.new_run(tmp_path / "materials", "cortada", max_epochs=1)
    assert worker.main([str(run.path)]) == 0
    expected = sha256_file(run.model_path / "model.safetensors")
    final = checkpoint.list_checkpoints(run.checkpoints_path / "cpt")[-1] / "model.safetensors"
    final.write_bytes(final.read_bytes()[:99])
    for stage in ("sft", "export"):
        (run.path / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(run.checkpoints_path / "sft")
    assert worker.main([str(run.path)]) != 0
    message = run.status().message or ""
    if "bórralos" in message:
        shutil.rmtree(run.checkpoints_path / "cpt")
        assert worker.main([str(run.path)]) != 0
    assert "elchat resume la repite" in (run.status().message or "")
    assert worker.main([str(run.path)]) == 0
    assert sha256_file(run.model_path / "model.safetensors") == expected
