"""Reading a run's log.txt, as it is or as it grows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from elchat.runs import Run

POLL_S = 0.1
TAIL_BYTES = 1 << 20


def lines(
    run: Run,
    *,
    count: int | None,
    follow: bool,
    until: Callable[[], bool] | None = None,
    poll_s: float = POLL_S,
) -> Iterator[str]:
    """The last `count` lines (all when None); with `follow`, those to come until `until()`."""
    found, partial, position = _tail(run, count)
    yield from found
    while follow:
        is_last = until is not None and until()
        if run.log_path.exists():
            with open(run.log_path, "rb") as handle:
                handle.seek(position)
                partial += handle.read()
                position = handle.tell()
        *whole, partial = partial.split(b"\n")
        yield from map(_decode, whole)
        if is_last:
            break
        time.sleep(poll_s)
    if partial:
        yield _decode(partial)


def text(run: Run, count: int) -> str:
    """The last lines, indented, for a message."""
    found, partial, _ = _tail(run, count)
    found += [_decode(partial)] if partial else []
    return "\n".join(f"    {line}" for line in found) or "    (vacío)"


def _tail(run: Run, count: int | None) -> tuple[list[str], bytes, int]:
    """Last whole lines of the log, the unfinished one, and where reading ended.

    Reads at most the last MB when a number of lines is given.
    """
    if not run.log_path.exists():
        return [], b"", 0
    with open(run.log_path, "rb") as handle:
        if count is not None:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - TAIL_BYTES))
        *whole, partial = handle.read().split(b"\n")
        position = handle.tell()
    if count is not None:
        whole = whole[-count:] if count > 0 else []
    return [_decode(line) for line in whole], partial, position


def _decode(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")
