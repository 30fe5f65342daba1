"""What each path of the API does, once the request is known to be allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from pydantic import BaseModel, ValidationError

from . import billing, models
from .catalog import gpus
from .logstream import LogStream
from .placement import Refusal
from .pods import ACTIONS, Pod
from .world import pod_body

if TYPE_CHECKING:
    from .world import World

Model = TypeVar("Model", bound=BaseModel)


@dataclass
class Request:
    """A request as both transports see it; header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Response:
    """An answer, and how the network treats it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: LogStream | None = None
    hang_s: float = 0.0
    is_unreachable: bool = False  # no connection at all
    is_dropped: bool = False  # the connection breaks within the answer


def json_response(body: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(body).encode(), {"content-type": "application/json"})


Handler = Callable[["World", Request, str], Response]


def list_pods(world: World, request: Request, _: str) -> Response:
    limit, offset = _page(request.query)
    pods = sorted(world.live_pods(), key=lambda pod: (-pod.created_at, -pod.number))
    page = pods[offset : offset + limit]
    has_next = offset + limit < len(pods)
    bodies = [pod_body(world, pod) for pod in page]
    pagination = {"nextCursor": f"c{offset + limit}" if has_next else None, "hasNextPage": has_next}
    return json_response({"pods": bodies, "pagination": pagination})


def create_pod(world: World, request: Request, _: str) -> Response:
    kind = models.CreatePodNewer if world.faults.is_newer_spec else models.CreatePod
    pod = world.create(_with_template(parse(kind, request)))
    return json_response(pod_body(world, pod), 201)


def get_pod(world: World, request: Request, pod_id: str) -> Response:
    pod = world.pods.get(pod_id)
    if pod is None or pod.is_vanished:
        raise not_found()
    if pod.deleted_at is not None:
        if world.now >= pod.deleted_at + pod.lifecycle.teardown_s:
            raise not_found()
        if pod.lifecycle.teardown_view == "null":
            return json_response(None)
    return json_response(pod_body(world, pod))


def update_pod(world: World, request: Request, pod_id: str) -> Response:
    pod = _live(world, pod_id)
    change = parse(models.UpdatePod, request)
    given = change.model_dump(exclude_unset=True)
    if change.mounts is not None and not _is_same_mount(change.mounts, pod.request.mounts):
        raise Refusal(400, "mount kind and volumeId cannot be changed")
    pod.name = given.pop("name", pod.name)
    pod.is_locked = given.pop("locked", pod.is_locked)
    given.pop("templateId", None)
    if "mounts" in given:
        given["mounts"] = change.mounts
    if given:
        pod.request = pod.request.model_copy(update=given)
        pod.env = {**(pod.request.env or {})} if "env" in given else pod.env
        if pod.status == "RUNNING":  # an edit resets the container
            world.restart(pod)
    return json_response(pod_body(world, pod))


def delete_pod(world: World, request: Request, pod_id: str) -> Response:
    world.terminate(_live(world, pod_id))
    return Response(204)


def pod_action(world: World, request: Request, pod_id: str) -> Response:
    pod = _live(world, pod_id)
    action = parse(models.PodActionRequest, request).action
    if action not in ACTIONS[pod.status]:
        raise Refusal(409, f"action {action} is not valid for a pod that is {pod.status}")
    if action == "terminate":
        world.terminate(pod)
        return Response(204)
    if pod.is_locked and action != "start":
        raise Refusal(409, "pod is locked")
    {"start": world.start, "stop": world.stop, "restart": world.restart}[action](pod)
    return json_response(pod_body(world, pod))


def pod_logs(world: World, request: Request, pod_id: str) -> Response:
    pod = world.pods.get(pod_id)
    if pod is None or pod.is_vanished:
        raise not_found()
    kept = world.faults.logs.system_kept_s
    if pod.deleted_at is not None and world.now >= pod.deleted_at + kept:
        raise not_found()
    if world.faults.logs.mode == "refused":
        raise Refusal(400, "request could not be processed")
    stream = LogStream(world, pod, request.query, request.headers.get("last-event-id"))
    return Response(200, headers={"content-type": "text/event-stream"}, stream=stream)


def list_gpus(world: World, request: Request, _: str) -> Response:
    world.catalog.count_read()
    return json_response({"gpus": world.catalog.gpu_list(_availability(request.query))})


def get_gpu(world: World, request: Request, gpu_id: str) -> Response:
    gpu = gpus().get(gpu_id)
    if gpu is None:
        raise not_found()
    world.catalog.count_read()
    return json_response(world.catalog.gpu_body(gpu, _availability(request.query)))


def list_data_centers(world: World, request: Request, _: str) -> Response:
    has_gpus = "GPU_AVAILABILITY" in request.query.get("include", "").split(",")
    regions = set(filter(None, request.query.get("regions", "").split(",")))
    found = world.catalog.data_centers(has_gpus)
    kept = [center for center in found if not regions or center["region"] in regions]
    return json_response({"dataCenters": kept})


def get_data_center(world: World, request: Request, center_id: str) -> Response:
    has_gpus = "GPU_AVAILABILITY" in request.query.get("include", "").split(",")
    return _one(world.catalog.data_centers(has_gpus), center_id)


def list_cpus(world: World, request: Request, _: str) -> Response:
    return json_response({"cpus": world.catalog.cpus("include" in request.query)})


def get_cpu(world: World, request: Request, cpu_id: str) -> Response:
    return _one(world.catalog.cpus("include" in request.query), cpu_id)


def list_templates(world: World, request: Request, _: str) -> Response:
    return json_response({"templates": TEMPLATES})


def get_template(world: World, request: Request, template_id: str) -> Response:
    return _one(TEMPLATES, template_id)


def list_volumes(world: World, request: Request, _: str) -> Response:
    bodies = [models.dump(volume) for volume in world.volumes.values()]
    return json_response({"networkVolumes": bodies})


def create_volume(world: World, request: Request, _: str) -> Response:
    body = parse(models.CreateVolume, request)
    supported = [center["id"] for center in world.catalog.data_centers(False)]
    if body.dataCenter not in supported:
        listed = ", ".join(supported)
        raise Refusal(400, f"data center {body.dataCenter} has no network volumes; use: {listed}")
    return json_response(models.dump(world.create_volume(body)), 201)


def get_volume(world: World, request: Request, volume_id: str) -> Response:
    return json_response(models.dump(_volume(world, volume_id)))


def update_volume(world: World, request: Request, volume_id: str) -> Response:
    volume = _volume(world, volume_id)
    return json_response(
        models.dump(world.update_volume(volume, parse(models.UpdateVolume, request)))
    )


def delete_volume(world: World, request: Request, volume_id: str) -> Response:
    _volume(world, volume_id)
    if any(pod.network_volume_id == volume_id for pod in world.live_pods()):
        raise Refusal(400, "network volume is attached to a pod")
    world.delete_volume(volume_id)
    return Response(204)


def get_ssh_keys(world: World, request: Request, _: str) -> Response:
    return json_response({"keys": world.ssh_keys})


def put_ssh_keys(world: World, request: Request, _: str) -> Response:
    world.ssh_keys = list(parse(models.UpdateSshKeys, request).keys)
    return json_response({"keys": world.ssh_keys})


def pod_billing(world: World, request: Request, _: str) -> Response:
    return json_response(billing.pod_billing(world, request.query))


def volume_billing(world: World, request: Request, _: str) -> Response:
    return json_response(billing.volume_billing(world, request.query))


TEMPLATES: list[dict[str, Any]] = [
    {
        "id": template_id,
        "name": name,
        "image": "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
        "args": "",
        "disk": 20,
        "mounts": {"persistent": {"size": 20, "path": "/workspace"}},
        "ports": ["22/tcp"],
        "env": {"FROM_TEMPLATE": "1"},
        "registry": None,
        "serverless": is_serverless,
        "public": True,
        "category": "NVIDIA",
        "startSsh": True,
        "startJupyter": False,
        "allowedCudaVersions": [],
    }
    for template_id, name, is_serverless in (
        ("simpytorch", "PyTorch", False),
        ("simserverless", "Serverless", True),
    )
]


def parse(kind: type[Model], request: Request) -> Model:
    """The request's body.

    Raises:
        Refusal: 400 for what is not JSON, 422 with `errors` for what breaks the contract.
    """
    try:
        raw = json.loads(request.body)
    except ValueError:
        raise Refusal(400, "request body is not valid JSON") from None
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        listed = models.violations(error)
        raise Refusal(422, "Request validation failed.", errors=listed) from None


def not_found() -> Refusal:
    return Refusal(404, "resource not found")


def _one(bodies: list[dict[str, Any]], wanted: str) -> Response:
    for body in bodies:
        if body["id"] == wanted:
            return json_response(body)
    raise not_found()


def _live(world: World, pod_id: str) -> Pod:
    pod = world.pods.get(pod_id)
    if pod is None or not pod.is_live:
        raise not_found()
    return pod


def _volume(world: World, volume_id: str) -> models.Volume:
    if volume_id not in world.volumes:
        raise not_found()
    return world.volumes[volume_id]


def _page(query: dict[str, str]) -> tuple[int, int]:
    limit, cursor = query.get("limit", "1000"), query.get("cursor", "c0")
    if not limit.isdigit() or not 1 <= int(limit) <= 1000:
        raise Refusal(422, "Request validation failed.", errors=["query.limit: not valid"])
    if not (cursor.startswith("c") and cursor[1:].isdigit()):
        raise Refusal(422, "Request validation failed.", errors=["query.cursor: malformed"])
    return int(limit), int(cursor[1:])


def _availability(query: dict[str, str]) -> dict[str, str] | None:
    """The filters, when availability is asked for; they are refused without it."""
    filters = ("product", "count", "cloud", "countryCodes", "cudaVersions", "minCudaVersion")
    given = [name for name in filters if name in query]
    if query.get("include") is None:
        if given:
            raise Refusal(400, f"{given[0]} is only valid with include=AVAILABILITY")
        return None
    if query["include"] != "AVAILABILITY":
        raise Refusal(422, "Request validation failed.", errors=["query.include: not valid"])
    if "product" not in query:
        raise Refusal(400, "product is required with include=AVAILABILITY")
    if "cudaVersions" in query and "minCudaVersion" in query:
        raise Refusal(400, "cudaVersions and minCudaVersion are mutually exclusive")
    if not query.get("count", "1").isdigit() or query.get("cloud") not in (
        None, "SECURE", "COMMUNITY"
    ):  # fmt: skip
        raise Refusal(422, "Request validation failed.", errors=["query: not valid"])
    return query


def _is_same_mount(new: models.Mounts, old: models.Mounts) -> bool:
    if (new.persistent is None) != (old.persistent is None):
        return False
    ids = [[mount.volumeId for mount in mounts.network or []] for mounts in (new, old)]
    return ids[0] == ids[1]


def _with_template(request: models.CreatePod) -> models.CreatePod:
    """The template's settings under the body's; `env` is merged by key."""
    if request.templateId is None:
        return request
    template = next((row for row in TEMPLATES if row["id"] == request.templateId), None)
    if template is None:
        raise not_found()
    if template["serverless"]:
        raise Refusal(422, "Request validation failed.", errors=["$.templateId: serverless"])
    given = request.model_dump(exclude_unset=True)
    base = {name: template[name] for name in ("image", "args", "disk", "ports", "startSsh")}
    if request.cpu is None:
        base["mounts"] = template["mounts"]
    merged = {**base, **given, "env": {**template["env"], **(request.env or {})}}
    return type(request).model_validate(merged)


Route = tuple[str, str, Handler]
# `*` stands for one identifier, which may hold escaped blanks or slashes.
ROUTES: tuple[Route, ...] = (
    ("GET", "/v2/pods", list_pods),
    ("POST", "/v2/pods", create_pod),
    ("GET", "/v2/pods/*", get_pod),
    ("PATCH", "/v2/pods/*", update_pod),
    ("DELETE", "/v2/pods/*", delete_pod),
    ("POST", "/v2/pods/*/action", pod_action),
    ("GET", "/v2/pods/*/logs", pod_logs),
    ("GET", "/v2/catalog/gpus", list_gpus),
    ("GET", "/v2/catalog/gpus/*", get_gpu),
    ("GET", "/v2/catalog/cpus", list_cpus),
    ("GET", "/v2/catalog/cpus/*", get_cpu),
    ("GET", "/v2/catalog/datacenters", list_data_centers),
    ("GET", "/v2/catalog/datacenters/*", get_data_center),
    ("GET", "/v2/catalog/templates", list_templates),
    ("GET", "/v2/templates/*", get_template),
    ("GET", "/v2/network-volumes", list_volumes),
    ("POST", "/v2/network-volumes", create_volume),
    ("GET", "/v2/network-volumes/*", get_volume),
    ("PATCH", "/v2/network-volumes/*", update_volume),
    ("DELETE", "/v2/network-volumes/*", delete_volume),
    ("GET", "/v2/account/ssh-keys", get_ssh_keys),
    ("PUT", "/v2/account/ssh-keys", put_ssh_keys),
    ("GET", "/v2/billing/pods", pod_billing),
    ("GET", "/v2/billing/network-volumes", volume_billing),
)


def match(path: str) -> dict[str, tuple[Handler, str]]:
    """Handlers by method of a path still escaped, with the identifier in it."""
    parts = path.rstrip("/").split("/")
    found: dict[str, tuple[Handler, str]] = {}
    for method, pattern, handler in ROUTES:
        wanted = pattern.split("/")
        if len(wanted) == len(parts) and all(
            w in ("*", p) for w, p in zip(wanted, parts, strict=True)
        ):
            identifier = next(
                (unquote(p) for w, p in zip(wanted, parts, strict=True) if w == "*"), ""
            )
            found.setdefault(method, (handler, identifier))
    return found
