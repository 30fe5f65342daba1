"""A folder written at once: whoever dies half way leaves the old one or the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elchat.files import atomic_dir

DYING = """
import os, sys
from pathlib import Path
from elchat import files

path, instant = Path(sys.argv[1]), int(sys.argv[2])
real, calls = os.replace, iter(range(99))

def replace(*args):
    if next(calls) == instant:
        os._exit(9)
    real(*args)

os.replace = replace
with files.atomic_dir(path) as folder:
    (folder / "a").write_text("nuevo")
os._exit(9)
"""


def write(path: Path, text: str) -> None:
    with atomic_dir(path) as folder:
        (folder / "a").write_text(text)


@pytest.mark.parametrize(("instant", "left"), [(0, "viejo"), (1, None), (2, "nuevo")])
def test_killed_at_any_instant_nothing_is_lost_and_the_next_one_cleans_up(tmp_path, instant, left):
    path = tmp_path / "modelo"
    write(path, "viejo")
    words = [sys.executable, "-c", DYING, str(path), str(instant)]
    assert subprocess.run(words).returncode == 9
    assert (path / "a").read_text() == left if left else not path.exists()
    with pytest.raises(KeyError), atomic_dir(path):  # what was put aside comes back
        raise KeyError
    assert (path / "a").read_text() == (left or "viejo")
    assert os.listdir(tmp_path) == ["modelo"]
    write(path, "otro")
    assert (path / "a").read_text() == "otro"
    assert os.listdir(tmp_path) == ["modelo"]
