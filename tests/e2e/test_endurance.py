"""What real machines do, to a real worker: see endurance.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_run

ENDURANCE = Path(__file__).with_name("endurance.py")


@pytest.mark.parametrize(
    "faults",
    [6, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_faults_change_no_weight_and_break_no_checkpoint(tmp_path, faults):
    tiny_run.prepare(tmp_path / "materials")
    root, before = Path(__file__).parents[2], os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, str(ENDURANCE), str(tmp_path / "materials"), str(faults)],
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
