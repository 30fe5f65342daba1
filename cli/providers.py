"""Where runs execute. Every place keeps the same promises over the same run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from elchat.errors import AuthError, ConfigError
from elchat.runs import Run, State, Status


@dataclass(frozen=True)
class Terms:
    """What the user allows a rented run, over its configuration.

    Attributes:
        budget_usd: limit of the whole run, in place of the configuration's or the earlier one.
        max_restarts: machines that may be rented again by themselves after a loss.
        wait_capacity_s: how long to wait for a free GPU; None gives up at once.
    """

    budget_usd: float | None = None
    max_restarts: int = 0
    wait_capacity_s: float | None = None


class Provider(Protocol):
    """A place that runs the worker on a run folder.

    Every method may be called from any process: nothing is kept in memory between calls.
    """

    name: str

    def submit(self, run: Run, terms: Terms | None = None) -> None:
        """Start the worker of a new run and return once it lives.

        Raises:
            ProviderError: it could not start, or died at once.
        """

    def status(self, run: Run) -> tuple[State, Status]:
        """What the run is doing; brings status.json up to date first where it is remote."""

    def advance(self, run: Run) -> tuple[State, Status]:
        """`status`, and whatever looking after the run asks for now; followers call this."""

    def logs(
        self, run: Run, *, lines: int | None, follow: bool, until: Callable[[], bool] | None = None
    ) -> Iterator[str]:
        """The last `lines` lines of the log (all when None); with `follow`, those to come."""

    def stop(
        self, run: Run, *, now: bool = False, on_wait: Callable[[State, Status], None] | None = None
    ) -> State:
        """Have the worker save and end; with `now`, end it at once. Idempotent.

        Raises:
            ProviderError: it does not end.
        """

    def resume(self, run: Run, terms: Terms | None = None) -> None:
        """Start the worker again on an ended or dead run.

        Raises:
            RunError: the run is already done, or alive on this machine.
        """

    def fetch(self, run: Run) -> Path:
        """Bring the finished model to this machine and return its folder.

        Raises:
            RunError: there is no finished model yet.
        """


def get_provider(name: str) -> Provider:
    """The provider a configuration or a run names.

    Raises:
        ConfigError: an unknown name.
    """
    if name == "local":
        from cli.local_provider import LocalProvider

        return LocalProvider()
    if name == "runpod":
        from cli.runpod_provider import RunpodProvider

        return RunpodProvider()
    raise ConfigError(f"No existe el proveedor «{name}»: usa local o runpod.")


def provider_for(injected: Any, name: str) -> Provider:
    """A provider by name, from the mapping given to `cli.main.main` if there is one."""
    if injected is not None and name in injected:
        return injected[name]()
    return get_provider(name)


def require_runpod_key() -> str:
    """The account key from the environment, never from a file.

    Raises:
        AuthError: it is not set; the message names both ways forward.
    """
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    if not key:
        raise AuthError(
            "Esta configuración alquila una GPU en RunPod y falta la clave RUNPOD_API_KEY.",
            hint="Con cuenta de RunPod: export RUNPOD_API_KEY=tu_clave   y repite la orden.\n"
            "  → Sin cuenta ni gasto: elchat train --config configs/training_demo.yaml "
            "(unos 10 minutos)\n"
            "    o, con tus datos y tu máquina: elchat train --config "
            "configs/training_local.yaml",
        )
    return key
