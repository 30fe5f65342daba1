from __future__ import annotations

import shutil
import subprocess

import pytest
import torch

from elchat import checkpoint
from elchat.errors import CheckpointError, DiskError

MODEL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
OPTIM = {"a.exp_avg": torch.full((2, 3), 0.5)}


def write(root, step):
    return checkpoint.save(
        root,
        step,
        model={k: v + step for k, v in MODEL.items()},
        optimizer=OPTIM,
        meta={"note": "ñ", "nested": {"x": [1, 2.5]}},
    )


def test_round_trip(tmp_path):
    found = checkpoint.load(write(tmp_path, 7))
    assert found.step == 7
    assert found.meta["note"] == "ñ"
    assert torch.equal(found.model["a"], MODEL["a"] + 7)
    assert torch.equal(found.optimizer["a.exp_avg"], OPTIM["a.exp_avg"])


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_seen_and_the_previous_one_is_used(tmp_path, name, damage):
    write(tmp_path, 1)
    target = write(tmp_path, 2) / name
    data = target.read_bytes()
    if damage == "truncate":
        target.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        middle = len(data) - 10
        target.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        target.unlink()
    warnings = []
    found = checkpoint.load_newest(tmp_path, warn=warnings.append)
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert "step_000002" in warnings[0]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    (write(tmp_path, 1) / "meta.json").write_text("{")
    with pytest.raises(CheckpointError, match="Ninguno de los 1"):
        checkpoint.load_newest(tmp_path, warn=lambda _: None)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "nothing", warn=lambda _: None) is None


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    paths = [write(tmp_path, step) for step in range(1, 6)]
    checkpoint.prune(tmp_path, keep_last=2, keep=paths[0])
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == [
        "step_000001",
        "step_000004",
        "step_000005",
    ]


def test_killed_while_pruning_nothing_unreadable_is_left(tmp_path, monkeypatch):
    """Found by the hundred faults: a checkpoint that had lost its weights and kept its name."""
    for step in (1, 2, 3):
        write(tmp_path, step)
    remove = shutil.rmtree

    def die(path, **options):
        if options:
            return remove(path, **options)
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.prune(tmp_path, keep_last=1)
    for path in checkpoint.list_checkpoints(tmp_path):
        checkpoint.load(path)
    checkpoint.prune(tmp_path, keep_last=1)
    write(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000004"]


def test_leftovers_of_a_killed_writer_are_removed_and_never_listed(tmp_path):
    leftover = tmp_path / ".step_000009.tmp"
    leftover.mkdir()
    assert checkpoint.list_checkpoints(tmp_path) == []
    write(tmp_path, 1)
    assert not leftover.exists()


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr("elchat.files.free_bytes", lambda _: 1000)
    with pytest.raises(DiskError, match="No hay sitio en el disco"):
        write(tmp_path, 2)
    found = checkpoint.load_newest(tmp_path, warn=lambda _: None)
    assert found is not None
    assert found.step == 1


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_disk_that_fills_while_writing(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        monkeypatch.setattr(checkpoint, "require_free_space", lambda *_: None)
        write(disk, 1)
        with pytest.raises(DiskError, match="El disco se llenó"):
            checkpoint.save(disk, 2, model={"big": torch.zeros(600_000)}, optimizer={}, meta={})
        assert [p.name for p in disk.iterdir()] == ["step_000001"]
        assert checkpoint.load(disk / "step_000001").step == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
