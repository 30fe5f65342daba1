"""The ledger against RunPod's bill. The bill posts late; it replaces the estimate once settled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from cli import output
from cli.cloud import record
from cli.cloud.ledger import Ledger, Rent
from cli.runpod_client import AuthRefused, Forbidden, RunpodClient, RunpodError
from elchat.runs import Run

SETTLED_S = 24 * 3600.0  # a day after a machine is gone its bill is taken as final
COLUMNS = ("máquina", "GPU", "nube", "horas", "$/h", "calculado", "facturado")


@dataclass(frozen=True)
class MachineCost:
    """One machine.

    Attributes:
        billed_usd: None when RunPod has not posted anything (yet).
        is_settled: whether that figure is final.
    """

    pod: str
    gpu: str
    cloud: str
    hours: float
    usd_per_h: float
    estimated_usd: float
    billed_usd: float | None
    is_settled: bool


@dataclass(frozen=True)
class Comparison:
    """Every machine of a run.

    Attributes:
        problem: why RunPod was not asked or did not answer.
    """

    run: str
    budget_usd: float | None
    spent_usd: float
    machines: list[MachineCost]
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def summary(self) -> str:
        """The total, and how far the bill is from the estimate."""
        text = f"Gasto: {output.dollars(self.spent_usd)} de {output.dollars(self.budget_usd)}."
        billed = [item for item in self.machines if item.billed_usd is not None]
        if self.problem:
            return f"{text} Lo facturado no se pudo leer: {self.problem}."
        if not billed:
            return f"{text} RunPod todavía no ha facturado nada; suele tardar unas horas."
        charged = sum(item.billed_usd or 0.0 for item in billed)
        estimated = sum(item.estimated_usd for item in billed)
        return (
            f"{text} RunPod ha facturado {output.dollars(charged)} por lo que aquí se calculó en "
            f"{output.dollars(estimated)}."
        )


def compare(run: Run, now: float, *, client: RunpodClient | None) -> Comparison:
    """Read the bill of each machine; a settled one goes into the ledger."""
    ledger, known = Ledger(run.path), record.load(run)
    is_asked = client is not None or run.provider == "local"
    problem = None if is_asked else "no se ha preguntado a RunPod"
    machines = []
    for rent in ledger.rents():
        billed = rent.billed_usd
        if client is not None and rent.pod_id and billed is None:
            try:
                billed = _billed(client, rent)
            except (AuthRefused, Forbidden):
                problem = "RunPod rechaza la clave RUNPOD_API_KEY"
            except RunpodError as error:
                problem = str(error).rstrip(".")
        is_settled = rent.until is not None and now > rent.until + SETTLED_S
        if billed is not None and is_settled and rent.billed_usd is None:
            ledger.bill(rent.pod, billed)
        machines.append(
            MachineCost(
                pod=rent.pod,
                gpu=rent.gpu,
                cloud=rent.cloud,
                hours=rent.hours(now),
                usd_per_h=rent.usd_per_h,
                estimated_usd=rent.estimated_usd(now),
                billed_usd=billed,
                is_settled=is_settled,
            )
        )
    budget = known.budget_usd if known else None
    return Comparison(run.id, budget, ledger.spent(now), machines, problem)


def row(item: MachineCost) -> list[str]:
    """A row of the table (see COLUMNS)."""
    charged = output.dollars(item.billed_usd)
    return [
        item.pod,
        item.gpu,
        "segura" if item.cloud == "secure" else "comunidad",
        output.number(item.hours, 2),
        output.number(item.usd_per_h, 3),
        output.number(item.estimated_usd, 3) + " $",
        charged if item.billed_usd is None or item.is_settled else charged + " (hasta ahora)",
    ]


def _billed(client: RunpodClient, rent: Rent) -> float | None:
    start = datetime.fromtimestamp(rent.since - 3600, timezone.utc).strftime("%Y-%m-%dT%H:00:00Z")
    records = client.pod_billing(str(rent.pod_id), start)
    return sum(item.totalAmount for item in records) if records else None
