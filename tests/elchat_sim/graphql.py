"""The GraphQL that is left: the balance, the pod mutations of old clients, and dead ones.

Operations are recognised by name, arguments by their place in the text or in `variables`: enough
for every client seen, without a GraphQL library.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from . import models
from .catalog import gpus
from .placement import Refusal
from .pods import Pod

if TYPE_CHECKING:
    from .world import World

SPOT_IS_DEAD = "There are no instances available with the request specifications"
_ARGUMENT = r"\b{name}\s*:\s*\"((?:[^\"\\]|\\.)*)\""
_NUMBER = r"\b{name}\s*:\s*(\d+)"


def answer(world: World, body: bytes, pod_of_key: Pod | None) -> dict[str, Any]:
    """Execute one GraphQL request: always an HTTP 200, with `data` or `errors`."""
    try:
        request = json.loads(body)
        query, variables = str(request["query"]), request.get("variables") or {}
    except (ValueError, KeyError, TypeError):
        return _error("Must provide query string.", "BAD_REQUEST")
    call = _Call(query, variables)
    if pod_of_key is not None and not _pod_may(world, call, pod_of_key):
        return _error("not authorized", "UNAUTHORIZED")
    try:
        return _execute(world, call)
    except Refusal as refusal:
        return _error(refusal.detail, "INTERNAL_SERVER_ERROR")


class _Call:
    def __init__(self, query: str, variables: dict[str, Any]) -> None:
        self.query = query
        given = variables.get("input", variables)
        self.input: dict[str, Any] = given if isinstance(given, dict) else {}

    def names(self, operation: str) -> bool:
        return re.search(rf"\b{operation}\b", self.query) is not None

    def text(self, name: str) -> str | None:
        if name in self.input:
            return str(self.input[name])
        found = re.search(_ARGUMENT.format(name=name), self.query)
        return json.loads(f'"{found[1]}"') if found else None

    def number(self, name: str, default: int) -> int:
        if name in self.input:
            return int(self.input[name])
        found = re.search(_NUMBER.format(name=name), self.query)
        return int(found[1]) if found else default


def _pod_may(world: World, call: _Call, pod: Pod) -> bool:
    is_own_action = call.names("podStop") or call.names("podTerminate")
    return world.faults.pod_key.graphql and is_own_action and call.text("podId") == pod.id


def _execute(world: World, call: _Call) -> dict[str, Any]:
    if call.names("podRentInterruptable") or call.names("podBidResume"):
        return _error(SPOT_IS_DEAD, "INTERNAL_SERVER_ERROR")
    if call.names("podFindAndDeployOnDemand"):
        return {"data": {"podFindAndDeployOnDemand": _deploy(world, call)}}
    if call.names("podTerminate"):
        world.terminate(_pod(world, call, "terminate"))
        return {"data": {"podTerminate": None}}
    if call.names("podStop"):
        pod = _pod(world, call, "stop")
        if pod.status not in ("EXITED", "ERROR"):
            world.stop(pod)
        return {"data": {"podStop": {"id": pod.id, "desiredStatus": "EXITED"}}}
    if call.names("podResume"):
        pod = _pod(world, call, "resume")
        world.start(pod)
        return {"data": {"podResume": {"id": pod.id, "desiredStatus": "RUNNING"}}}
    if call.names("myself"):
        return {"data": {"myself": _myself(world)}}
    if call.names("gpuTypes"):
        return {"data": {"gpuTypes": _gpu_types(world)}}
    return _error("Cannot query field.", "GRAPHQL_VALIDATION_FAILED")


def _myself(world: World) -> dict[str, Any]:
    return {
        "id": "user_elchat_sim",
        "email": "elchat@example.org",
        "clientBalance": world.balance,
        "currentSpendPerHr": world.ledger.rate(),
        "spendLimit": world.faults.account.spend_limit_usd_per_h,
        "pubKey": "\n".join(world.ssh_keys),
        "pods": [
            {
                "id": pod.id,
                "name": pod.name,
                "desiredStatus": "EXITED" if pod.status == "EXITED" else "RUNNING",
                "costPerHr": pod.compute_usd_per_h,
                "runtime": None,
            }
            for pod in world.live_pods()
        ],
    }


def _gpu_types(world: World) -> list[dict[str, Any]]:
    return [
        {
            "id": gpu.id,
            "displayName": gpu.name,
            "memoryInGb": gpu.memory_gb,
            "securePrice": world.catalog.price(gpu, "SECURE"),
            "communityPrice": world.catalog.price(gpu, "COMMUNITY"),
        }
        for gpu in gpus().values()
    ]


def _deploy(world: World, call: _Call) -> dict[str, Any]:
    """Rent the old way. `stopAfter` and `terminateAfter` are accepted: nobody acts on them."""
    volume_gb = call.number("volumeInGb", 0)
    mounts: dict[str, Any] = {}
    if volume_gb:
        path = call.text("volumeMountPath") or "/workspace"
        mounts = {"persistent": {"size": max(10, volume_gb), "path": path}}
    env = {item["key"]: item["value"] for item in call.input.get("env", [])}
    request = models.CreatePod(
        name=call.text("name") or "my pod",
        image=call.text("imageName") or "",
        args=call.text("dockerArgs") or "",
        ports=(call.text("ports") or "").split(",") if call.text("ports") else [],
        env=env,
        disk=call.number("containerDiskInGb", 50),
        gpu=models.CreateGpu(
            id=call.text("gpuTypeId") or "", count=max(1, call.number("gpuCount", 1))
        ),
        mounts=models.Mounts(**mounts),
    )
    pod = world.create(request)
    return {"id": pod.id, "desiredStatus": "RUNNING", "costPerHr": pod.compute_usd_per_h}


def _pod(world: World, call: _Call, verb: str) -> Pod:
    pod = world.pods.get(call.text("podId") or "")
    if pod is None or not pod.is_live:
        raise Refusal(404, f"pod not found to {verb}")
    return pod


def _error(message: str, code: str) -> dict[str, Any]:
    return {"errors": [{"message": message, "extensions": {"code": code}}], "data": None}
