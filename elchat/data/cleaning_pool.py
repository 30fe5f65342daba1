"""Documents cleaned in several processes, in order; the result never depends on how many.

A worker is `python -m elchat.data.cleaning_pool`, told what to do through its standard input. It
imports no torch, forks nothing that has threads, and ends with the pipe if its parent is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rensa import RMinHash

from elchat.config import CleaningSection
from elchat.data.clean import Cleaner
from elchat.data.dedup import minhash, text_digest
from elchat.data.sources import Document
from elchat.errors import DataError

CHUNK_CHARS = 1 << 18
CHUNK_DOCUMENTS = 256
MAX_PROCESSES = 16
BYTES_PER_PROCESS = 8_000_000  # less text than this is cleaned before a process has started


@dataclass(frozen=True)
class Cleaned:
    """What cleaning and the duplicate filter need to know of a document.

    Attributes:
        text: repaired, or None if rejected.
        n_bytes: of its UTF-8.
        counts: why it was rejected.
        boilerplate_lines: dropped from it.
        digest: `text_digest`.
        sketch: `minhash`, if asked for.
    """

    text: str | None
    n_bytes: int
    counts: Counter[str]
    boilerplate_lines: int
    digest: bytes
    sketch: RMinHash | None


def process_count(wanted: int | None, n_bytes: int) -> int:
    """Processes to use: as asked, or one per core as far as the text is worth them."""
    if wanted is not None:
        return max(1, wanted)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, MAX_PROCESSES, n_bytes // BYTES_PER_PROCESS))


class CleaningPool:
    """Cleans streams of documents; with one process, in this one. `close` ends the others."""

    def __init__(self, section: CleaningSection, *, with_sketch: bool, processes: int) -> None:
        self._section = section
        self._with_sketch = with_sketch
        self.processes = processes
        self._workers: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.communicate()

    def clean(
        self, documents: Iterator[Document], language: str
    ) -> Generator[tuple[Document, Cleaned], None, None]:
        """Each document with what cleaning made of it, in order.

        Raises:
            DataError: a language nobody can recognise, or a worker that died.
        """
        Cleaner(self._section, language)  # refuses an unknown language before anything starts
        if self.processes <= 1:
            job = CleaningJob(self._section, language, self._with_sketch)
            for document in documents:
                yield document, job.clean(document.text)
            return
        self._start()
        assert self._threads is not None
        under_way: deque[tuple[list[Document], Future[list[Cleaned]]]] = deque()
        for chunk in itertools.chain(_chunks(documents), itertools.repeat(None, 1)):
            if chunk is not None:
                task = (language, [document.text for document in chunk])
                under_way.append((chunk, self._threads.submit(self._ask, task)))
            while under_way and (chunk is None or len(under_way) > 2 * self.processes):
                done, future = under_way.popleft()
                yield from zip(done, future.result(), strict=True)

    def _start(self) -> None:
        if self._workers:
            return
        self._threads = ThreadPoolExecutor(self.processes, "elchat-cleaning")
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        for _ in range(self.processes):
            worker = subprocess.Popen(
                [sys.executable, "-m", "elchat.data.cleaning_pool"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
            self._workers.append(worker)
            assert worker.stdin is not None
            pickle.dump((self._section, self._with_sketch), worker.stdin)
            self._idle.put(worker)

    def _ask(self, task: tuple[str, list[str]]) -> list[Cleaned]:
        worker = self._idle.get()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            pickle.dump(task, worker.stdin, pickle.HIGHEST_PROTOCOL)
            worker.stdin.flush()
            answer: list[Cleaned] | Exception = pickle.load(worker.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise DataError(
                "Un proceso de limpieza terminó sin avisar (¿memoria agotada?): repite la orden "
                "con menos procesos."
            ) from None
        finally:
            self._idle.put(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer


class CleaningJob:
    """Cleans the texts of one language."""

    def __init__(self, section: CleaningSection, language: str, with_sketch: bool) -> None:
        self._cleaner = Cleaner(section, language)
        self._with_sketch = with_sketch

    def clean(self, text: str) -> Cleaned:
        """Clean one text; nothing here depends on the texts before it."""
        self._cleaner.boilerplate_lines = 0
        clean = self._cleaner.clean(text)
        counts, self._cleaner.counts = self._cleaner.counts, Counter()
        if clean is None:
            return Cleaned(None, 0, counts, 0, b"", None)
        return Cleaned(
            text=clean,
            n_bytes=len(clean.encode("utf-8")),
            counts=counts,
            boilerplate_lines=self._cleaner.boilerplate_lines,
            digest=text_digest(clean),
            sketch=minhash(clean) if self._with_sketch else None,
        )


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    held = 0
    for document in documents:
        chunk.append(document)
        held += len(document.text)
        if held >= CHUNK_CHARS or len(chunk) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def main() -> int:
    """Clean what comes through standard input until it ends."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the answers
    jobs: dict[str, CleaningJob] = {}
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        section, with_sketch = pickle.load(source)
        while True:
            language, texts = pickle.load(source)
            try:
                job = jobs.setdefault(language, CleaningJob(section, language, with_sketch))
                answer: Any = [job.clean(text) for text in texts]
            except Exception as error:  # the parent raises it
                answer = error
            pickle.dump(answer, sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()
    return 0


if __name__ == "__main__":
    from elchat.data import cleaning_pool

    sys.exit(cleaning_pool.main())  # classes pickled under the name the parent knows
