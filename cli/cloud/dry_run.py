"""`elchat train --dry-run` for a rented run: offers, deadlines and the request, nothing sent."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import output, preflight
from cli.cloud import bundle, money, quote, show
from cli.cloud.context import Job
from cli.cloud.ledger import Ledger
from cli.cloud.record import PREFIX, Machine, Record
from elchat import estimate
from elchat.config import Config
from elchat.errors import AuthError, NetworkError
from elchat.runs import Run

RUN_ID = "EJECUCIÓN"


@dataclass(frozen=True)
class RentedPlan:
    """What would be asked for.

    Attributes:
        label: where the prices come from.
        request: body of the first request, None when no offer is usable.
    """

    config: Config
    offers: list[quote.Offer]
    balance_usd: float | None
    label: str
    request: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "prices": self.label,
            "balance_usd": self.balance_usd,
            "offers": show.offers_json(self.offers),
            "request": self.request,
        }

    def show(self) -> None:
        """For people; the long start command is cut."""
        show.print_quote(
            self.offers,
            budget_usd=self.config.compute.budget_usd,
            balance_usd=self.balance_usd,
            label=self.label,
        )
        if self.request is None:
            return
        short = {**self.request, "args": self.request["args"][:40] + "..."}
        output.say()
        output.say("Petición que alquilaría la primera (POST /v2/pods):")
        output.say(json.dumps(short, ensure_ascii=False, indent=2))
        output.say("(args es la guardia, cli/pod/guard.py, entera en --json)")


def make(config: Config, place: Any) -> RentedPlan:
    """The plan with live prices, or with dated ones, labelled so, when there is no network or key.

    Raises:
        ElchatError: what would also refuse the real command, network and key apart.
    """
    try:
        asked = place.quote(config)
        offers, balance, label = asked.offers, asked.balance_usd, "precios de ahora mismo"
    except (NetworkError, AuthError) as error:
        prices = quote.observed_prices(config.compute.cloud)
        shape = preflight.model_shape(config.model.base)
        budget = config.compute.budget_usd or 0.0
        offers = quote.offers(config, shape, prices, now=time.time(), remaining_usd=budget)
        balance, label = None, f"precios observados en {estimate.PRICES_OBSERVED}, sin conexión"
        output.note(f"AVISO: {error}")
    usable = [offer for offer in offers if offer.problem is None]
    return RentedPlan(
        config, offers, balance, label, _request(config, usable[0]) if usable else None
    )


def _request(config: Config, offer: quote.Offer) -> dict[str, Any]:
    """The request for one offer, with the run's secrets and key left as words."""
    now = time.time()
    budget = config.compute.budget_usd or 0.0
    wanted = quote.wanted_s(config, 0.0)
    window = money.window(now, budget, offer.usd_per_h, training_s=wanted)
    assert window is not None
    machine = Machine(
        name=f"{PREFIX}{RUN_ID}-1-d{int(window.deadline)}",
        gpu=offer.gpu,
        cloud=offer.cloud,
        usd_per_h=offer.usd_per_h,
        disk_usd_per_h=quote.disk_rate(config),
        token="(se sortea)",
        **{key: value for key, value in vars(window).items() if key != "worst_usd"},
    )
    run = Run(Path(RUN_ID), now, "runpod", config.name, config.sha256)
    job = Job(
        run=run,
        config=config,
        record=Record(budget_usd=budget, machine=machine),
        ledger=Ledger(run.path),
        client=None,  # type: ignore[arg-type]  # nothing is asked
        remote=_NoKey(),  # type: ignore[arg-type]
        clock=lambda: now,
        say=output.note,
    )
    return bundle.pod_request(job)


class _NoKey:
    """The run's key does not exist before the run does."""

    def public_key(self) -> str:
        return "(clave ssh-ed25519 propia de la ejecución)"
