"""Deleting machines past the deadline written in their names, whoever rented them.

The fourth layer of the budget's guard: it needs no run folder and no state, so a scheduled job on
any computer can do it while the laptop that rented is off.
"""

from __future__ import annotations

from dataclasses import dataclass

from cli.cloud import strays
from cli.cloud.record import parse_name
from cli.runpod_client import RunpodClient, RunpodError


@dataclass(frozen=True)
class Reaped:
    """A machine that should not exist any more.

    Attributes:
        is_gone: RunPod no longer knows it.
    """

    id: str
    name: str
    usd_per_h: float
    late_s: float
    is_gone: bool
    problem: str | None = None


def reap(client: RunpodClient, now: float, *, is_dry_run: bool = False) -> list[Reaped]:
    """Delete every `elchat-*` pod whose deadline has passed."""
    found = []
    for pod in client.list_pods():
        parsed = parse_name(pod.name)
        if parsed is None or now < parsed[1]:
            continue
        is_gone, problem = False, None
        if not is_dry_run:
            try:
                client.delete_pod(pod.id)
                is_gone = client.get_pod(pod.id) is None
                if is_gone:
                    strays.charge(pod.name, now)
            except RunpodError as error:
                problem = str(error)
        late_s = now - parsed[1]
        found.append(Reaped(pod.id, pod.name, pod.cost or 0.0, late_s, is_gone, problem))
    return found
