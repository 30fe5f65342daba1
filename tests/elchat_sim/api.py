"""The door of the API: edge, size, key, quota and scripted faults, in the live service's order."""

from __future__ import annotations

import contextlib
import fnmatch
import http
import json
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING

from . import endpoints, graphql, models
from .endpoints import Request, Response, json_response
from .faults import CreateFault, RateLimits, RequestFault
from .placement import Refusal, no_capacity

if TYPE_CHECKING:
    from .pods import Pod
    from .world import World

MAX_BODY = 102_400
WINDOWS = {"minute": 60, "hour": 3600, "day": 86400}
GRAPHQL_PATH = "/graphql"


class RateLimiter:
    """Fixed windows per key, announced in every answer."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._counts: dict[tuple[str, str, int], int] = {}

    def admit(self, key: str, now: float) -> dict[str, str]:
        """Count a request; the headers that tell what is left.

        Raises:
            Refusal: 429 with Retry-After.
        """
        left = []
        for name, length in WINDOWS.items():
            slot = (key, name, int(now // length))
            self._counts[slot] = self._counts.get(slot, 0) + 1
            remaining = max(0, self.quota(name) - self._counts[slot])
            reset = int(length - now % length) or 1
            left.append(f'"{name}";r={remaining};t={reset}')
        headers = {
            "ratelimit": ", ".join(left),
            "ratelimit-policy": ", ".join(
                f'"{name}";q={self.quota(name)};w={length}' for name, length in WINDOWS.items()
            ),
        }
        if self._limits.is_enforced:
            self._refuse_beyond(key, now, headers)
        return headers

    def quota(self, name: str) -> int:
        quotas = {
            "minute": self._limits.minute,
            "hour": self._limits.hour,
            "day": self._limits.day,
        }
        return quotas[name]

    def _refuse_beyond(self, key: str, now: float, headers: dict[str, str]) -> None:
        for name, length in WINDOWS.items():
            if self._counts[key, name, int(now // length)] > self.quota(name):
                wait = int(length - now % length) or 1
                raise Refusal(
                    429,
                    f"rate limit exceeded for the {name} window",
                    headers={**headers, "retry-after": str(wait)},
                )


class Api:
    """Requests in, answers out; the world is touched in between."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._limiter = RateLimiter(world.faults.rate_limits)
        self._create_calls = [0] * len(world.faults.create)
        self._request_calls = [0] * len(world.faults.requests)
        self._count = 0

    def handle(self, request: Request) -> Response:
        self._count += 1
        response = self._answer(request)
        response.headers.setdefault("x-request-id", f"sim-{self._count:08d}")
        response.headers.setdefault("date", formatdate(self.world.now, usegmt=True))
        self.world.record("request", None, f"{request.method} {request.path} -> {response.status}")
        return response

    def _answer(self, request: Request) -> Response:
        pod = self._pod_of_key(request)
        if pod is not None and "api" in pod.network_down:
            return Response(0, is_unreachable=True)
        fault = self._fault(request, pod)
        if fault is None:
            return self._serve(request, pod)
        if fault.kind == "unreachable":
            return Response(0, is_unreachable=True)
        if fault.has_effect:
            return _failed(fault, self._serve(request, pod))
        return _failed(fault, problem(Refusal(504, "upstream request timeout")))

    def _serve(self, request: Request, pod: Pod | None) -> Response:
        if self._is_blocked_at_the_edge(request):
            html = b"<html><body>error code: 1010</body></html>"
            return Response(403, html, {"content-type": "text/html"})
        quota: dict[str, str] = {}
        try:
            if len(request.body) > MAX_BODY:
                raise Refusal(413, "request body exceeds 102400 bytes")
            if request.path.startswith("/v1/") or request.path == "/v1":
                raise Refusal(410, "REST v1 has been retired. Use https://api.runpod.io/v2.")
            if request.path == GRAPHQL_PATH:
                return self._graphql(request, pod)
            key = self._authorize(request, pod)
            handlers = endpoints.match(request.path)
            if not handlers:
                raise endpoints.not_found()
            if request.method not in handlers:
                allowed = ", ".join(sorted(handlers))
                detail = "The requested method is not allowed for this path."
                raise Refusal(405, detail, headers={"allow": allowed})
            quota = self._limiter.admit(key, self.world.now)
            handler, identifier = handlers[request.method]
            if pod is not None:
                self._check_pod_key(request, pod, identifier)
            response = self._call(handler, request, identifier)
        except Refusal as refusal:
            response = problem(refusal)
        response.headers = {**quota, **response.headers}
        return response

    def _call(self, handler: endpoints.Handler, request: Request, identifier: str) -> Response:
        if handler is not endpoints.create_pod:
            return handler(self.world, request, identifier)
        fault = self._create_fault(request)
        if fault is None:
            return handler(self.world, request, identifier)
        if fault.kind == "capacity":
            raise no_capacity(fault.text)
        if fault.kind == "balance":
            raise Refusal(402, "insufficient balance")
        if fault.kind == "forbidden_pool":
            raise Refusal(403, "access denied")
        if fault.kind == "rate_limit":
            wait = {"retry-after": str(fault.retry_after_s)}
            raise Refusal(429, "rate limit exceeded for the minute window", headers=wait)
        served = None
        if fault.is_pod_created and fault.appears_after_s:
            self.world.timeline.after(fault.appears_after_s, partial(self._create_late, request))
        elif fault.is_pod_created:
            served = handler(self.world, request, identifier)
        if fault.kind == "hang":
            late = served or problem(Refusal(504, "upstream request timeout"))
            late.hang_s = fault.hang_s
            return late
        raise Refusal(fault.status, "Something went wrong. Please try again later.")

    def _create_late(self, request: Request) -> None:
        with contextlib.suppress(Refusal):
            endpoints.create_pod(self.world, request, "")

    def _create_fault(self, request: Request) -> CreateFault | None:
        kind = models.CreatePodNewer if self.world.faults.is_newer_spec else models.CreatePod
        body = endpoints.parse(kind, request)
        gpu = body.gpu.id if body.gpu else None
        for index, fault in enumerate(self.world.faults.create):
            is_match = (
                fault.gpu in (None, gpu)
                and fault.cloud in (None, body.cloud)
                and (fault.data_center is None or fault.data_center in body.dataCenterIds)
            )
            if not is_match:
                continue
            self._create_calls[index] += 1
            if fault.calls is None or self._create_calls[index] in fault.calls:
                return fault
        return None

    def _fault(self, request: Request, pod: Pod | None) -> RequestFault | None:
        elapsed = self.world.timeline.elapsed
        caller = "account" if pod is None else "pod"
        for index, fault in enumerate(self.world.faults.requests):
            is_match = (
                fault.method in (None, request.method)
                and fnmatch.fnmatchcase(request.path, fault.path)
                and fault.caller in ("any", caller)
                and fault.from_s <= elapsed
                and (fault.until_s is None or elapsed < fault.until_s)
            )
            if not is_match:
                continue
            self._request_calls[index] += 1
            if fault.calls is None or self._request_calls[index] in fault.calls:
                return fault
        return None

    def _is_blocked_at_the_edge(self, request: Request) -> bool:
        agent = request.headers.get("user-agent", "")
        return self.world.faults.is_user_agent_checked and (
            not agent or agent.startswith("Python-urllib")
        )

    def _graphql(self, request: Request, pod: Pod | None) -> Response:
        self._authorize(request, pod)
        if request.method != "POST":
            raise Refusal(405, "GraphQL only supports POST requests.", headers={"allow": "POST"})
        return json_response(graphql.answer(self.world, request.body, pod))

    def _key(self, request: Request) -> str:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return key.strip()
        return request.query.get("api_key", "") if request.path == GRAPHQL_PATH else ""

    def _pod_of_key(self, request: Request) -> Pod | None:
        key = self._key(request)
        return next((pod for pod in self.world.pods.values() if key and pod.key == key), None)

    def _authorize(self, request: Request, pod: Pod | None) -> str:
        key = self._key(request)
        if not key:
            raise Refusal(401, "missing bearer token")
        is_live_pod = pod is not None and pod.is_live
        if key != self.world.faults.account.key and not is_live_pod:
            raise Refusal(401, "invalid bearer token")
        return key

    def _check_pod_key(self, request: Request, pod: Pod, identifier: str) -> None:
        """A pod's key reaches its own pod, as far as the script lets it, and nothing else."""
        policy = self.world.faults.pod_key
        is_own = request.path.startswith("/v2/pods/") and identifier == pod.id
        right = f"{request.method} {request.path.rpartition('/')[2] if is_own else ''}"
        may = False
        if is_own and request.method == "GET" and right == f"GET {pod.id}":
            may = policy.get
        elif is_own and request.method == "DELETE":
            may = policy.delete
        elif is_own and right == "POST action":
            action = endpoints.parse(models.PodActionRequest, request).action
            may = {"stop": policy.stop, "terminate": policy.terminate}.get(action, False)
        if not may:
            raise Refusal(403, "access denied")


def problem(refusal: Refusal) -> Response:
    """An error as RFC 9457 wants it."""
    body = models.Problem(
        title=http.HTTPStatus(refusal.status).phrase.replace("Content", "Entity"),
        status=refusal.status,
        detail=refusal.detail,
        errors=refusal.errors,
    )
    headers = {"content-type": "application/problem+json", **refusal.headers}
    return Response(refusal.status, json.dumps(models.dump(body)).encode(), headers)


def _failed(fault: RequestFault, served: Response) -> Response:
    """What the client gets instead of the answer."""
    if fault.kind == "drop":
        return Response(served.status, served.body, served.headers, is_dropped=True)
    if fault.kind == "hang":
        served.hang_s = fault.hang_s
        return served
    if fault.kind == "null":
        return json_response(None)
    if fault.kind == "html":
        html = b"<html><body>Bad gateway</body></html>"
        return Response(fault.status, html, {"content-type": "text/html"})
    wait = {} if fault.retry_after_s is None else {"retry-after": str(fault.retry_after_s)}
    return problem(Refusal(fault.status, "upstream request failed", headers=wait))
