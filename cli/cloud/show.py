"""What commands say of a rented run: its machine, its money, the offers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cli import output
from cli.cloud import quote, record
from cli.cloud.ledger import Ledger
from elchat.runs import Run

PHASES = {
    "planned": "eligiendo máquina",
    "creating": "pidiendo la máquina",
    "booting": "esperando a que arranque la máquina",
    "running": "entrenando en la máquina alquilada",
    "fetching": "trayendo el resultado",
    "deleting": "borrando la máquina",
    "done": "terminada; no queda ninguna máquina",
    "stopped": "detenida; no queda ninguna máquina",
    "failed": "fallida; no queda ninguna máquina",
    "lost": "la máquina se perdió",
    "budget": "parada por el límite de gasto",
}


def as_dict(run: Run, now: float) -> dict[str, Any] | None:
    """The rented side of a run for `--json`; None when nothing was ever rented."""
    known = record.load(run)
    if known is None:
        return None
    ledger = Ledger(run.path)
    return {
        "phase": known.phase,
        "message": known.message,
        "budget_usd": known.budget_usd,
        "usd_spent": round(ledger.spent(now), 4),
        "restarts_left": known.restarts_left,
        "machine": known.machine.model_dump(exclude={"token"}) if known.machine else None,
    }


def as_fields(run: Run, now: float) -> list[tuple[str, str]]:
    """The rented side of a run for a two-column table."""
    known = record.load(run)
    if known is None:
        return []
    pairs = [("nube", PHASES[known.phase])]
    if known.machine is not None:
        machine = known.machine
        where = {"secure": "nube segura", "community": "comunidad"}.get(machine.cloud, "")
        pairs.append(("máquina", f"{machine.gpu}, {where} ({machine.id or 'sin identificador'})"))
        pairs.append(("precio", f"{output.number(machine.usd_per_h, 2)} $/h, disco incluido"))
        pairs.append(("se borra como tarde", output.when(machine.deadline)))
    if known.message:
        pairs.append(("motivo", known.message))
    spent = Ledger(run.path).spent(now)
    limit = output.dollars(known.budget_usd)
    pairs.append(("gasto", f"{output.dollars(spent)} de {limit}"))
    return pairs


def going_on(run: Run) -> str:
    """What is left running when a command is left, and how to stop it."""
    known = record.load(run)
    if known is None or known.phase in record.ENDED:
        return ""
    if known.machine is None:
        return "  alquilado: nada todavía"
    machine = known.machine
    rented = f"  alquilado: {machine.name} a {output.number(machine.usd_per_h, 2)} $/h; "
    if known.phase in ("creating", "booting"):
        return (
            f"{rented}todavía no entrena, y sin nadie que la prepare se borra sola como tarde el "
            f"{output.when(machine.job_by)}\n  prepararla: elchat attach {run.id}"
        )
    return (
        f"{rented}su guardia la borra como tarde el {output.when(machine.deadline)}\n"
        f"  resultado: se recoge con elchat attach {run.id}"
    )


def print_quote(
    offers: list[quote.Offer],
    *,
    budget_usd: float | None,
    balance_usd: float | None,
    label: str,
) -> None:
    """The table of offers and what the limit means."""
    title = f"Ofertas de RunPod ({label}), en el orden en que se piden"
    output.table(title, quote.COLUMNS, [quote.row(offer) for offer in offers])
    balance = "desconocido" if balance_usd is None else output.dollars(balance_usd)
    output.say(
        f"Límite duro: {output.dollars(budget_usd)}; saldo de la cuenta: {balance}. «Como mucho» "
        "incluye el arranque y lo que tarde en borrarse; todos los precios, el disco."
    )


def offers_json(offers: list[quote.Offer]) -> list[dict[str, Any]]:
    """The offers for programs."""
    return [asdict(offer) for offer in offers]
