"""`elchat stop --all`: every run that goes on, and every machine of ours on RunPod."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import typer

from cli import output
from cli.cloud import record, strays
from cli.providers import provider_for
from cli.runpod_client import AuthRefused, RunpodClient, RunpodError
from elchat import runs
from elchat.errors import ConfigError, ElchatError, ProviderError
from elchat.runs import Run

GONE_WAIT_S = 5.0
GONE_TRIES = 24


def run(injected: Any, *, is_now: bool, is_confirmed: bool, as_json: bool) -> None:
    """Stop everything and say what became of each.

    Raises:
        ConfigError: nobody is there to confirm.
        ProviderError: something is still there.
    """
    alive = [item for item in runs.list_runs() if _is_alive(injected, item)]
    client = _client(injected)
    loose = strays.find(client, time.time()) if client else []
    if not as_json:
        for item in alive:
            output.say(f"ejecución {item.id} ({item.provider})")
        for stray in loose:
            rate = output.number(stray.usd_per_h, 2)
            output.say(f"máquina suelta {stray.name} a {rate} $/h")
    if not alive and not loose:
        output.print_json([]) if as_json else output.say("No hay nada en marcha.")
        return
    if not is_confirmed:
        _confirm()
    answer = [_stop(injected, item, is_now) for item in alive]
    answer += [_delete(client, stray) for stray in loose if client is not None]
    if client is not None:
        strays.find(client, time.time())
    if as_json:
        output.print_json(answer)
    else:
        for entry in answer:
            output.say(f"{entry['name']}: {entry['result']}")
    bad = [entry["name"] for entry in answer if not entry["ok"]]
    if bad:
        raise ProviderError(
            f"Siguen en marcha: {', '.join(bad)}.", hint="Repite la orden: elchat stop --all --now"
        )


def _confirm() -> None:
    if not (sys.stdin.isatty() and output.is_terminal()):
        raise ConfigError(
            "Parar todo borra máquinas y aquí no hay nadie a quien preguntar.",
            hint="Si estás de acuerdo, repite: elchat stop --all --yes",
        )
    if not typer.confirm("¿Parar y borrar todo eso?", default=False):
        raise typer.Abort()


def _client(injected: Any) -> RunpodClient | None:
    """RunPod's API if there is a key; without one only what runs here can be stopped."""
    if injected is None and not os.environ.get("RUNPOD_API_KEY", "").strip():
        return None
    try:
        client = getattr(provider_for(injected, "runpod"), "client", None)
        if client is not None:
            client.list_pods()
    except AuthRefused:
        from cli.runpod_provider import wrong_key

        raise wrong_key() from None
    except RunpodError as error:
        raise ProviderError(f"RunPod no responde ({error}).", hint="Repite la orden.") from None
    return client


def _is_alive(injected: Any, item: Run) -> bool:
    try:
        if item.provider == "runpod":
            known = record.load(item)
            return known is not None and known.phase not in record.ENDED
        state, _ = provider_for(injected, item.provider).status(item)
    except ElchatError:
        return False
    return state in ("pending", "running", "stalled")


def _stop(injected: Any, item: Run, is_now: bool) -> dict[str, Any]:
    try:
        state = provider_for(injected, item.provider).stop(item, now=is_now)
    except ElchatError as error:
        return {"name": item.id, "result": str(error), "ok": False}
    return {"name": item.id, "result": output.STATES[state], "ok": True}


def _delete(client: RunpodClient, stray: strays.Stray) -> dict[str, Any]:
    """Delete a machine and wait until RunPod no longer knows it."""
    for _ in range(GONE_TRIES):
        try:
            client.delete_pod(stray.id)
            if client.get_pod(stray.id) is None:
                strays.charge(stray.name, time.time())
                return {"name": stray.name, "result": "borrada", "ok": True}
        except RunpodError as error:
            output.note(f"{stray.name}: {error} Se insiste.")
        time.sleep(GONE_WAIT_S)
    return {"name": stray.name, "result": "NO SE PUDO BORRAR", "ok": False}
