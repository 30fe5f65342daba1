"""What commands say of a run, as a dict for programs and as lines for people."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.output import STAGES, STATES, dollars, duration, number, percent, when
from elchat.runs import HEARTBEAT_STALE_S, Run, State, Status
from elchat.runs import STAGES as STAGE_ORDER


def as_dict(run: Run, state: State, status: Status) -> dict[str, Any]:
    """The run for `--json`."""
    return {
        "run": run.id,
        "path": str(run.path),
        "provider": run.provider,
        "config": run.config_name,
        "created": run.created,
        "state": state,
        "status": asdict(status),
        "model": str(run.model_path) if state == "done" else None,
        "report": str(report_path(run) or "") or None,
        "next": next_command(run, state),
        **({} if run.provider == "local" else {"cloud": _show().as_dict(run, time.time())}),
    }


def as_fields(run: Run, state: State, status: Status) -> list[tuple[str, str]]:
    """The run for a two-column table."""
    pairs = [
        ("estado", state_text(state, status, is_local=run.provider == "local")),
        ("configuración", f"{run.config_name} ({run.provider})"),
        ("creada", when(run.created)),
        ("etapa", stage_text(status)),
        ("paso", step_text(status)),
        ("pérdida", number(status.loss, 3)),
        ("bits por byte", number(status.bits_per_byte, 3)),
        ("tokens/s", number(status.tokens_per_s)),
        ("MFU", percent(status.mfu)),
        ("falta", duration(status.eta_s) if state == "running" else "—"),
    ]
    if run.provider == "local":
        pairs.append(("gasto", spent_text(run, status)))
    else:
        pairs += _show().as_fields(run, time.time())
    if status.message:
        pairs.append(("mensaje", status.message))
    pairs.append(("carpeta", str(run.path)))
    if state == "done":
        pairs.append(("modelo", str(run.model_path)))
        report = report_path(run)
        if report is not None:
            pairs.append(("informe", str(report)))
    pairs.append(("siguiente orden", next_command(run, state)))
    return pairs


def progress_line(status: Status) -> str:
    """One line of progress: 'preentrenamiento · paso 12/72 · pérdida 2,345 · ...'."""
    parts = [stage_text(status)]
    if status.total_steps:
        parts.append(f"paso {step_text(status)}")
    if status.loss is not None:
        parts.append(f"pérdida {number(status.loss, 3)}")
    if status.bits_per_byte is not None:
        parts.append(f"{number(status.bits_per_byte, 3)} bits/byte")
    if status.tokens_per_s is not None:
        parts.append(f"{number(status.tokens_per_s)} tokens/s")
    if status.mfu is not None:
        parts.append(f"MFU {percent(status.mfu)}")
    if status.eta_s is not None:
        parts.append(f"faltan {duration(status.eta_s)}")
    if status.usd_spent:
        parts.append(dollars(status.usd_spent))
    if status.message and not status.total_steps:
        parts.append(status.message)
    return " · ".join(parts)


def state_text(state: State, status: Status, *, is_local: bool = True) -> str:
    """The state, with what the reader should know about it."""
    text = STATES[state]
    if not is_local and state == "dead":
        return "sin máquina"
    if state == "stalled":
        silence_s = time.time() - status.heartbeat
        alive = "el proceso vive; " if is_local else ""
        text += f" desde hace {duration(silence_s)} ({alive}lo normal es menos de "
        text += f"{duration(HEARTBEAT_STALE_S)})"
    elif state == "dead":
        text += " (el proceso desapareció sin despedirse)"
    return text


def stage_text(status: Status) -> str:
    """'preentrenamiento (2/6)'."""
    if status.stage is None:
        return "—"
    name = STAGES.get(status.stage, status.stage)
    if status.stage not in STAGE_ORDER:
        return name
    return f"{name} ({STAGE_ORDER.index(status.stage) + 1}/{len(STAGE_ORDER)})"


def step_text(status: Status) -> str:
    """'12/72'."""
    return f"{status.step}/{status.total_steps}" if status.total_steps else "—"


def spent_text(run: Run, status: Status) -> str:
    """Money spent so far and its limit."""
    if run.provider == "local":
        return "0 $ (máquina propia)"
    limit = f" de {dollars(status.usd_limit)}" if status.usd_limit is not None else ""
    return dollars(status.usd_spent) + limit


def _show() -> Any:
    """The module about rented runs, which costs its import only when there is one."""
    from cli.cloud import show

    return show


def report_path(run: Run) -> Path | None:
    """The report of a run, in whichever form it was written."""
    for name in ("report.html", "report.md"):
        if (run.path / name).exists():
            return run.path / name
    return None


def next_command(run: Run, state: State) -> str:
    """What to type next."""
    if state == "done":
        return f"elchat chat {run.id}"
    if state in ("stopped", "failed", "dead"):
        return f"elchat resume {run.id}"
    return f"elchat logs -f {run.id}" if run.provider == "local" else f"elchat attach {run.id}"
