"""Cleaning on datatrove's executors, for corpora that one machine would take days to clean.

`run_local` uses `LocalPipelineExecutor`. On a cluster with a shared folder, give `pipeline` to
`SlurmPipelineExecutor` or `RayPipelineExecutor`, which take the same steps; then the usual
preparation finds the pieces in the spool. Needs the optional extra `elchat[datatrove]`.

As a script (`python -m elchat.data.datatrove_jobs`) it runs one executor told through its standard
input, and ends with that pipe.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import multiprocess
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from elchat import config as config_module
from elchat import paths
from elchat.data.sources import SourceReader
from elchat.data.spool import Piece, Spool
from elchat.errors import DataError

POLL_S = 0.2
DIED = 3  # exit code: the system killed a worker, which datatrove would wait for without end


class CleanPieces(PipelineStep):
    """Cleans the pieces of a plan that are not in the spool yet; each task, its share."""

    type, name = "elchat", "limpieza"

    def __init__(self, spool: Spool, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self.spool, self.pieces = spool, list(pieces)

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        """Make this task's pieces; an unusable input is left for whoever reads it to say so."""
        for piece in self.pieces[rank::world_size]:
            with self.track_time("piece"):
                try:
                    counts = self.spool.make(piece)
                except DataError as error:
                    logger.warning(str(error))
                    continue
            for reason, count in counts.items():
                self.stat_update(reason, value=count, unit="piece")
        return data


def pipeline(config: Path) -> list[PipelineStep]:
    """The steps that clean the texts of a configuration, for any of datatrove's executors.

    Example:
        >>> SlurmPipelineExecutor(pipeline(Path("mi.yaml")), tasks=500, ...).run()
    """
    data = config_module.load(config).data
    spool = Spool(data.cleaning, data.cleaning.near_duplicate_similarity > 0)
    pieces = []
    for source in data.cpt:
        reader = SourceReader(source, "cpt")
        pieces += spool.pieces(reader, [file.identity() for file in reader.files])
    return [CleanPieces(spool, pieces)]


def run_local(
    spool: Spool,
    pieces: Sequence[Piece],
    *,
    workers: int,
    tasks: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Clean the pieces that are missing with a `LocalPipelineExecutor`, in a process of its own.

    Stopped or killed, the finished pieces stay: calling again goes on from there.

    Args:
        workers: processes at once.
        tasks: shares of the pieces; by default one a piece.
        progress: called with the pieces there are and all of them.

    Raises:
        DataError: the executor failed; its log is named.
    """
    missing = [piece for piece in pieces if not piece.path.exists()]
    if not missing:
        return
    folder = paths.spool_dir() / "datatrove"
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "executor.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "elchat.data.datatrove_jobs"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(),
        )
    try:
        assert process.stdin is not None
        pickle.dump((spool, missing, workers, tasks or len(missing), str(folder)), process.stdin)
        process.stdin.flush()
        while process.poll() is None and not should_stop():
            progress(sum(piece.path.exists() for piece in pieces), len(pieces))
            time.sleep(POLL_S)
    finally:
        is_whole = process.poll() == 0
        _end(process)
    if not is_whole and not should_stop():
        reason = "a uno de sus procesos lo mató el sistema, ¿memoria agotada?"
        raise DataError(
            "La limpieza con datatrove se cortó"
            + (f": {reason}" if process.returncode == DIED else f" (registro: {log_path})."),
            hint="Repite la orden con menos procesos: lo ya limpio no se repite.",
        )
    for piece in pieces:
        for leftover in piece.path.parent.glob(f".{piece.path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)


def main() -> int:
    """Run the executor that comes through standard input."""
    spool, pieces, workers, tasks, folder = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    threading.Thread(target=_end_with_a_worker, daemon=True).start()
    executor = LocalPipelineExecutor(
        [CleanPieces(spool, pieces)],
        tasks=min(tasks, len(pieces)),
        workers=min(workers, tasks, len(pieces)),
        logging_dir=folder,
        skip_completed=False,  # a piece that is there costs a task nothing
    )
    executor.run()
    return 0


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the executor and all its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_with_the_pipe() -> None:
    while os.read(0, 1):  # not sys.stdin: a fork would inherit its lock, held for ever
        pass
    os.killpg(0, signal.SIGKILL)


def _end_with_a_worker() -> None:
    """Leave when a process of the pool was killed: the pool would wait for its task for ever."""
    seen = set()
    while True:
        seen |= set(multiprocess.active_children())
        if {child.exitcode or 0 for child in seen} - {0, -signal.SIGTERM}:  # the pool's own way
            os._exit(DIED)
        time.sleep(POLL_S)


if __name__ == "__main__":
    from elchat.data import datatrove_jobs

    sys.exit(datatrove_jobs.main())  # classes pickled under the name the tasks know
