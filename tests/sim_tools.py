"""What the tests of the simulator share: a client that is judged, a pod that boots."""

from __future__ import annotations

from typing import Any

import httpx

from elchat_sim import FaultScript, Simulator, parse
from elchat_sim.openapi import checked

L40S = "NVIDIA L40S"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIElchat elchat"
POD: dict[str, Any] = {
    "name": "elchat-prueba-1-d1795400000",
    "image": "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
    "gpu": {"id": L40S, "count": 1},
    "disk": 20,
    "ports": ["22/tcp"],
    "env": {"PUBLIC_KEY": KEY},
    "mounts": {"persistent": {"size": 20, "path": "/workspace"}},
}


def simulator(script: dict[str, Any] | None = None, **options: Any) -> Simulator:
    return Simulator(parse(script) if script else FaultScript(), **options)


def client(sim: Simulator, key: str | None = None, **options: Any) -> httpx.Client:
    """A client on the virtual clock; the official specification judges it where it is at hand."""
    headers = {"authorization": f"Bearer {key or sim.faults.account.key}", "user-agent": "elchat/0"}
    return httpx.Client(
        transport=checked(sim.transport()),
        base_url="https://api.runpod.io",
        headers=headers,
        trust_env=False,
        **options,
    )


def create(api: httpx.Client, **changes: Any) -> str:
    """Rent the usual pod; its id."""
    answer = api.post("/v2/pods", json={**POD, **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def boot(sim: Simulator, api: httpx.Client, **changes: Any) -> dict[str, Any]:
    """Rent a pod and wait for it on the virtual clock; the pod as the API tells it."""
    pod_id = create(api, **changes)
    for _ in range(200):
        pod = api.get(f"/v2/pods/{pod_id}").json()
        if pod["ssh"]["direct"] is not None:
            sim.sleep(30)
            return pod
        sim.sleep(5)
    raise AssertionError(f"the pod never became ready: {pod['status']}")
