"""Where runs execute. Every place keeps the same promises over the same run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from elchat.errors import AuthError, ConfigError, ProviderError
from elchat.runs import Run, State, Status


class Provider(Protocol):
    """A place that runs the worker on a run folder.

    Every method may be called from any process: nothing is kept in memory between calls.
    """

    name: str

    def submit(self, run: Run) -> None:
        """Start the worker of a new run and return once it lives.

        Raises:
            ProviderError: it could not start, or died at once.
        """

    def status(self, run: Run) -> tuple[State, Status]:
        """What the run is doing; brings status.json up to date first where it is remote."""

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

    def resume(self, run: Run) -> None:
        """Start the worker again on an ended or dead run.

        Raises:
            RunError: the run is alive or already done.
        """

    def fetch(self, run: Run) -> Path:
        """Bring the finished model to this machine and return its folder.

        Raises:
            RunError: there is no finished model yet.
        """


def get_provider(name: str) -> Provider:
    """The provider a configuration or a run names.

    Raises:
        AuthError: a cloud provider without its key.
        ConfigError: an unknown name.
    """
    if name == "local":
        from cli.local_provider import LocalProvider

        return LocalProvider()
    if name == "runpod":
        require_runpod_key()
        raise ProviderError(
            "El proveedor RunPod todavía no está en esta versión de elchat.",
            hint="Entrena en esta máquina: elchat train --config configs/training_demo.yaml",
        )
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
