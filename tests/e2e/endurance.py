"""One tiny run through many random faults, compared with the same run left in peace.

    python endurance.py MATERIALS FAULTS SEED [--kernels]

Faults: kill -9, SIGTERM, a disk that fills up (writes past a size fail), a checkpoint file cut
short, a reader that stalls, and batches whose loss is NaN (the same ones in both runs: a batch
belongs to the data). With --kernels every layer runs on the kernels of training, its way back in
8 bits, which the materials must allow. Prints one JSON object. Fails if a worker ends badly without
a sentence, if a checkpoint nobody damaged cannot be read, or if the final weights differ.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elchat import checkpoint
from elchat.data.loader import PackedLoader
from elchat.errors import CheckpointError
from elchat.files import read_json, sha256_file
from elchat.runs import Run
from elchat.training import fused
from elchat.training.loop import Loop
from tests import tiny_run
from tests.e2e import killer

LONGEST_S = 2.5
DISK_BYTES = 250_000  # less than a checkpoint, more than everything else that is written
STALL_S = 600.0
FAULTS = ("kill", "term", "disk", "stall", "cut")  # a cut needs a checkpoint, so it comes last
KERNELS = "--kernels" in sys.argv
PRECISION = "bf16" if KERNELS else "fp32"
NAN_EVERY = 17  # steps, far enough apart to be skipped one by one


def poison() -> None:
    """Some batches have no finite loss; and kernels asked for are not left for being slow."""
    if KERNELS:
        fused.gains = lambda config: (2.0, 3.0)
    real = Loop._forward_backward

    def forward_backward(self: Loop, batch: Any) -> Any:
        result = real(self, batch)
        is_bad = self.progress.step % NAN_EVERY == NAN_EVERY - 1
        return (math.nan, math.nan) if result is not None and is_bad else result

    Loop._forward_backward = forward_backward  # type: ignore[method-assign]


def fill_disk() -> None:
    """No file of this process may grow past a size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, resource.RLIM_INFINITY))


def stall(after: int) -> Callable[[], None]:
    """The reader hangs once it has given `after` steps."""

    def install() -> None:
        real, given = PackedLoader.next_step, iter(range(10**6))

        def next_step(self: PackedLoader, n_rows: int) -> Any:
            if next(given) >= after:
                time.sleep(STALL_S)
            return real(self, n_rows)

        PackedLoader.next_step = next_step  # type: ignore[method-assign]

    return install


class Torture:
    """Applies faults to one run and keeps the account."""

    def __init__(self, run: Run, chance: random.Random) -> None:
        self.run, self.chance = run, chance
        self.counts: Counter[str] = Counter()
        self.sentences: Counter[str] = Counter()
        self.damaged: set[Path] = set()

    def once(self, fault: str) -> bool:
        """One start of the worker with one fault; False if it reached the end of the run first."""
        if fault == "cut" and not self._cut():
            fault = "kill"
        install = {"disk": fill_disk, "stall": stall(self.chance.randrange(30))}.get(fault)
        child = killer.start(self.run, lambda: (poison(), install() if install else None))  # type: ignore[arg-type, func-returns-value]
        code = self._until_training(child) if self.chance.random() < 0.7 else None
        if code is None:
            code = killer.wait(child, self.chance.uniform(0.1, LONGEST_S))
        if code is None:
            code = self._end(child, fault)
        self.counts[fault] += 1
        self._check(code)
        return self.run.status().outcome != "done"

    def finish(self) -> None:
        """Leave the run in peace until its end, doing what its sentences say."""
        for _ in range(5):
            code = killer.wait(killer.start(self.run, poison), None)
            self._check(code)
            if self.run.status().outcome == "done":
                return
        raise AssertionError(self.run.status().message)

    def _until_training(self, child: int) -> int | None:
        """Wait for a word of the training loop, so that faults do not only meet beginnings."""
        path = self.run.metrics_path
        told = path.stat().st_size if path.exists() else 0
        for _ in range(300):
            code = killer.wait(child, 0.1)
            if code is not None or (path.exists() and path.stat().st_size > told):
                return code
        return None

    def _end(self, child: int, fault: str) -> int | None:
        """Stop a worker as its fault says; None after kill -9."""
        if fault in ("kill", "cut"):
            killer.kill(child)
            return None
        code = None
        if fault == "disk":  # it must meet the full disk by itself, or end
            code = killer.wait(child, 20.0)
        # the second is obeyed whatever goes on: a stalled reader never sees the first
        for patience_s in (1.0 if fault == "stall" else 30.0, 30.0):
            if code is None:
                os.kill(child, signal.SIGTERM)
                code = killer.wait(child, patience_s)
        if code is None:
            killer.kill(child)
        assert code is not None, f"{fault}: no obedece a dos SIGTERM"
        return code

    def _check(self, code: int | None) -> None:
        """A bad end has a sentence; whatever nobody damaged can be read."""
        for path in self.run.checkpoints_path.glob("*/step_*"):
            if path in self.damaged:
                continue
            checkpoint.load(path)
        self.damaged = {path for path in self.damaged if path.exists() and not _is_whole(path)}
        if code is None or code == 0:
            return
        status = self.run.status()
        message = status.message or ""
        assert status.outcome in ("failed", "stopped"), (code, status)
        assert message, code
        assert "inesperado" not in message, message + self.run.log_path.read_text()[-3000:]
        self.sentences[message.replace(str(self.run.path), "EJECUCIÓN")] += 1
        if "bórralos para empezar" in message:  # the advice is followed
            for stage in self.run.checkpoints_path.iterdir():
                if all(path in self.damaged for path in checkpoint.list_checkpoints(stage)):
                    shutil.rmtree(stage)

    def _cut(self) -> bool:
        """Cut a random file of the newest checkpoint of a stage; False if there is none."""
        stages = [s for s in self.run.checkpoints_path.glob("*") if checkpoint.list_checkpoints(s)]
        if not stages:
            return False
        newest = checkpoint.list_checkpoints(self.chance.choice(stages))[-1]
        target = self.chance.choice(sorted(newest.iterdir()))
        size = target.stat().st_size
        if not size:
            return False
        os.truncate(target, self.chance.randrange(size))
        self.damaged.add(newest)
        return True


def _is_whole(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except CheckpointError:
        return False
    return True


def weights_of(run: Run) -> str:
    return sha256_file(run.model_path / "model.safetensors")


def blocks_of(run: Run) -> set[str]:
    """How the layers of every stage were computed."""
    return {read_json(path)["blocks"] for path in (run.path / "stages").glob("*.plan.json")}


def main() -> None:
    folder, n_faults = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(int(sys.argv[3]))
    epochs = 2 if n_faults < 20 else 6
    calm = tiny_run.new_run(folder, "tranquila", max_epochs=epochs, precision=PRECISION)
    assert killer.wait(killer.start(calm, poison), None) == 0, calm.log_path.read_text()[-2000:]
    skipped = calm.log_path.read_text().count("saltado")
    assert skipped, "sin lotes NaN no se prueba nada"
    total: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    n_runs = 0
    while sum(total.values()) < n_faults:
        run = tiny_run.new_run(folder, f"azotada-{n_runs}", max_epochs=epochs, precision=PRECISION)
        torture = Torture(run, chance)
        n_runs += 1
        for _ in range(n_faults - sum(total.values())):
            unseen = [fault for fault in FAULTS if not (total + torture.counts)[fault]]
            if not torture.once(unseen[0] if unseen else chance.choice(FAULTS)):
                break
        if torture.run.status().outcome != "done":
            torture.finish()
        assert blocks_of(run) == blocks_of(calm) == {"fused-int8" if KERNELS else "plain"}
        assert weights_of(run) == weights_of(calm), "los pesos finales no son los mismos"
        total += torture.counts
        sentences += torture.sentences
    print(
        json.dumps(
            {
                "faults": dict(total), "nan_batches": skipped, "runs": n_runs,
                "sentences": dict(sentences),
            },
            ensure_ascii=False,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
