"""Watching a run until it ends: a redrawn bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from cli import views
from cli.output import note, print_json, say
from cli.providers import Provider
from elchat.runs import Run, State, Status

POLL_S = 0.5
PLAIN_LINE_S = 10.0
ENDED: tuple[State, ...] = ("done", "stopped", "failed", "dead")


def follow(run: Run, provider: Provider, *, as_json: bool = False) -> int:
    """Show progress until the run ends and return the exit code: 0 done, 1 anything else.

    Ctrl-C detaches: the run goes on, and the reader is told how to see and stop it.
    """
    out = sys.stderr if as_json else sys.stdout
    try:
        with _display(out) as show:
            state, status = _watch(run, provider, show)
    except KeyboardInterrupt:
        print(detached_text(run), file=out, flush=True)
        if as_json:
            print_json(views.as_dict(run, *provider.status(run)))
        return 0
    return report_end(run, provider, state, status, as_json=as_json)


def wait_for_end(run: Run, provider: Provider) -> tuple[State, Status]:
    """Show progress until the run ends, and its end. Ctrl-C leaves it working."""
    with _display(sys.stderr) as show:
        return _watch(run, provider, show)


def report_end(
    run: Run, provider: Provider, state: State, status: Status, *, as_json: bool = False
) -> int:
    """Say how the run ended and what to type next."""
    if as_json:
        print_json(views.as_dict(run, state, status))
        return 0 if state == "done" else 1
    if state == "done":
        say(f"Terminada: {run.id}")
        say(f"  modelo:  {provider.fetch(run)}")
        report = views.report_path(run)
        if report is not None:
            say(f"  informe: {report}")
        say(f"  habla con él: elchat chat {run.id}")
        return 0
    messages = {
        "failed": f"«{run.id}» falló: {status.message or 'el registro dice por qué'}",
        "stopped": f"«{run.id}» se detuvo. {status.message or 'Su estado quedó guardado.'}",
        "dead": f"«{run.id}» murió: su proceso desapareció sin despedirse."
        if run.provider == "local"
        else f"«{run.id}» se quedó sin máquina: {status.message}",
    }
    note(messages[state])
    if state != "stopped":
        note(f"Final de su registro ({run.log_path}):")
        for line in provider.logs(run, lines=5, follow=False):
            note(f"    {line}")
    note(f"  → Continúa donde estaba: elchat resume {run.id}")
    return 1


def leave(run: Run, provider: Provider, *, as_json: bool) -> int:
    """Say what a run left to itself is doing, and return the exit code."""
    state, status = provider.status(run)
    if state in ENDED:
        return report_end(run, provider, state, status, as_json=as_json)
    print_json(views.as_dict(run, state, status)) if as_json else say(detached_text(run))
    return 0


def detached_text(run: Run) -> str:
    """What to know when leaving a run that goes on."""
    text = (
        f"La ejecución «{run.id}» sigue en marcha.\n"
        f"  verla:     elchat status {run.id}      elchat logs -f {run.id}\n"
        f"  detenerla: elchat stop {run.id}"
    )
    if run.provider != "local":
        from cli.cloud import show

        text = "\n".join(filter(None, [text, show.going_on(run)]))
    return text


def _watch(
    run: Run, provider: Provider, show: Callable[[State, Status], None]
) -> tuple[State, Status]:
    while True:
        state, status = provider.advance(run)
        if state in ENDED:
            # The last word may have been written between the two readings.
            return provider.status(run)
        show(state, status)
        time.sleep(POLL_S)


@contextlib.contextmanager
def _display(out: TextIO) -> Iterator[Callable[[State, Status], None]]:
    if out.isatty():
        with _bar(out) as show:
            yield show
    else:
        yield _plain_lines(out)


def _plain_lines(out: TextIO) -> Callable[[State, Status], None]:
    """A line at every change of stage and every ten seconds, without control codes."""
    last_stage: str | None = None
    last_line, last_time = "", float("-inf")

    def show(state: State, status: Status) -> None:
        nonlocal last_stage, last_line, last_time
        is_due = time.monotonic() - last_time >= PLAIN_LINE_S
        if status.stage is None or not (is_due or status.stage != last_stage):
            return
        line = views.progress_line(status)
        if state == "stalled":
            line += " · " + views.state_text(state, status)
        if line != last_line:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=out, flush=True)
        last_stage, last_line, last_time = status.stage, line, time.monotonic()

    return show


@contextlib.contextmanager
def _bar(out: TextIO) -> Iterator[Callable[[State, Status], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.description}", markup=False),
        console=Console(file=out),
    )
    with progress:
        task = progress.add_task("arrancando", total=None)

        def show(state: State, status: Status) -> None:
            line = views.progress_line(status)
            if state == "stalled":
                line += " · " + views.state_text(state, status)
            progress.update(
                task,
                total=status.total_steps or None,
                completed=status.step,
                description=line if status.stage else "arrancando",
            )

        yield show
