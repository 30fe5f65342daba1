"""What a rented machine installs: nothing, all but the image's own torch, or everything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.cloud import bundle

SCRIPT = Path(bundle.__file__).parents[1] / "pod" / "setup.sh"
PYTHON = """#!/bin/sh
case "$2" in
*safetensors*) exit {all} ;;
*2.13.0*) exit {torch} ;;
esac
"""
UV = """#!/bin/sh
echo "$@" >> "$CALLS"
for word; do last=$word; done
case "$1" in
venv) mkdir -p "$last/bin"; ln -s "$TRUE" "$last/bin/python" ;;
pip) cat "$last" >> "$CALLS" ;;
esac
"""


def tool(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def set_up(tmp_path: Path, *, has_all: bool, has_torch: bool) -> tuple[str, str]:
    """(the Python it chose, what it asked of uv)."""
    tools, root = tmp_path / "bin", tmp_path / "root"
    tools.mkdir()
    tool(tools, "python3", PYTHON.format(all=int(not has_all), torch=int(not has_torch)))
    tool(tools, "uv", UV)
    run = root / "home" / "runs" / "uno"
    run.mkdir(parents=True)
    (run / "requirements.txt").write_text("torch==2.13.0\ntorchdata>=0.1\npyarrow>=18\n")
    calls = tmp_path / "calls"
    done = subprocess.run(
        ["bash", str(SCRIPT), str(root), "uno"],
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "TRUE": shutil.which("true") or "",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    chosen = done.stdout.splitlines()[-1].replace(str(root), "ROOT")
    return chosen, calls.read_text() if calls.exists() else ""


def test_a_python_with_everything_is_used_as_it_is(tmp_path: Path):
    assert set_up(tmp_path, has_all=True, has_torch=True) == ("python3", "")


def test_the_torch_of_the_image_is_not_downloaded_again(tmp_path: Path):
    chosen, calls = set_up(tmp_path, has_all=False, has_torch=True)
    assert chosen == "ROOT/venv/bin/python"
    assert "--system-site-packages" in calls
    assert "pyarrow>=18" in calls
    assert "torchdata>=0.1" in calls
    assert "torch==2.13.0" not in calls


def test_without_it_everything_is_installed(tmp_path: Path):
    chosen, calls = set_up(tmp_path, has_all=False, has_torch=False)
    assert chosen == "ROOT/venv/bin/python"
    assert "--system-site-packages" not in calls
    assert "torch==2.13.0" in calls


@pytest.mark.parametrize("word", ["cu1290", "torch2130"])
def test_the_image_brings_the_torch_that_is_pinned(word: str):
    assert word in bundle.IMAGE
