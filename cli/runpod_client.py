"""RunPod's REST API, version 2, as a thin client. No retry that could rent twice.

What can go wrong is told by type, so that callers decide without reading texts:

RunpodError
├── AuthRefused        401: the key is wrong
├── Forbidden          403: this key or account may not
├── NotFound           404
├── NoBalance          402: the account has no money
├── NoCapacity         400: no machine, or a broken rule; RunPod does not tell them apart
├── BrokenContract     405 409 413 422: our request is wrong; never repeated
├── RateLimited        429, with the seconds to wait
└── Transient          5xx, network, timeouts: the request may or may not have taken effect

Reads (GET) and DELETE are repeated on RateLimited and Transient; creating is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from cli.runpod_models import (
    Account,
    BillingRecord,
    CatalogGpu,
    LogLine,
    Pod,
    Volume,
    problem_text,
)
from elchat import __version__
from elchat.errors import AuthError

DEFAULT_URL = "https://api.runpod.io"
USER_AGENT = f"elchat/{__version__}"  # the libraries' own is refused by the firewall (error 1010)
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
READ_RETRIES = 3
MAX_RETRY_AFTER_S = 60.0
MIN_SKEW_S = 30.0  # below it, what an answer takes to arrive
KEY_PATTERN = re.compile(r"[A-Za-z0-9_.\-]{8,}")


class RunpodError(Exception):
    """A request that did not end well."""


class AuthRefused(RunpodError):
    """The key is wrong."""


class Forbidden(RunpodError):
    """This key or account may not do that."""


class NotFound(RunpodError):
    """There is no such thing (any more)."""


class NoBalance(RunpodError):
    """The account has no money."""


class NoCapacity(RunpodError):
    """No machine of that kind now, or a rule of the request is broken."""


class BrokenContract(RunpodError):
    """RunPod does not understand this request; repeating it is useless."""


class Transient(RunpodError):
    """The answer did not arrive: the request may have taken effect."""


class RateLimited(RunpodError):
    """Too many requests; nothing was done."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


_BY_STATUS: dict[int, type[RunpodError]] = {
    400: NoCapacity,
    401: AuthRefused,
    402: NoBalance,
    403: Forbidden,
    404: NotFound,
}


def api_url() -> str:
    """Base address, without a final slash."""
    return (os.environ.get("ELCHAT_RUNPOD_API_URL") or DEFAULT_URL).rstrip("/")


def is_url_overridden() -> bool:
    """Whether ELCHAT_RUNPOD_API_URL points elsewhere (a simulator)."""
    return bool(os.environ.get("ELCHAT_RUNPOD_API_URL"))


class RunpodClient:
    """One account. The key lives in this object's private field and nowhere else.

    Args:
        key: account key.
        transport: how requests travel (a simulator in tests).
        sleep: how to wait between repetitions.
        clock: this computer's.

    Attributes:
        skew_s: how far RunPod's clock is ahead of this computer's by its last answer; 0 if they
            agree or it did not say.
    """

    def __init__(
        self,
        key: str,
        *,
        base_url: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not KEY_PATTERN.fullmatch(key):
            raise AuthError(
                "RUNPOD_API_KEY no tiene forma de clave: solo lleva letras, cifras, guiones, "
                "puntos y guiones bajos.",
                hint="Cópiala otra vez de la consola de RunPod (Settings → API Keys).",
            )
        self._key = key
        self._sleep = sleep
        self._clock = clock
        self.skew_s = 0.0
        self._base_url = base_url or api_url()
        self._transport = transport
        self._http: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"RunpodClient({self._base_url})"

    def holds(self, text: str) -> bool:
        """Whether `text` contains the account key."""
        return self._key in text

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()
            self._http = None

    # --- pods --------------------------------------------------------------------------------

    def create_pod(self, body: dict[str, Any]) -> Pod:
        """Rent a machine. Sent once: on Transient the caller looks for the name first."""
        return _parsed(Pod, self._send("POST", "/v2/pods", body=body))

    def list_pods(self) -> list[Pod]:
        """Every pod of the account, deleted ones excepted."""
        pods: list[Pod] = []
        query: dict[str, str] = {}
        for _ in range(100):
            answer = self._read("/v2/pods", query)
            if not isinstance(answer, dict):
                raise Transient("RunPod respondió sin la lista de máquinas.")
            pods += [_parsed(Pod, item) for item in answer.get("pods") or []]
            page = answer.get("pagination") or {}
            if not (page.get("hasNextPage") and page.get("nextCursor")):
                break
            query = {"cursor": page["nextCursor"]}
        return pods

    def get_pod(self, pod_id: str) -> Pod | None:
        """One pod, or None once it is gone (404, or the null seen during teardown)."""
        try:
            answer = self._read(f"/v2/pods/{_path(pod_id)}")
        except NotFound:
            return None
        return None if answer is None else _parsed(Pod, answer)

    def act(self, pod_id: str, action: str) -> None:
        """Ask for start, stop, restart or terminate."""
        self._send("POST", f"/v2/pods/{_path(pod_id)}/action", body={"action": action})

    def delete_pod(self, pod_id: str) -> bool:
        """Delete a pod; False if there was none."""
        return self._delete(f"/v2/pods/{_path(pod_id)}")

    def pod_logs(
        self,
        pod_id: str,
        *,
        source: str = "container",
        tail: int = 100,
        since: str | None = None,
        last_event_id: str | None = None,
        read_timeout_s: float = 20.0,
    ) -> Iterator[LogLine]:
        """Lines of a pod's log stream until it falls silent or closes. Best effort."""
        query = {"source": source, "tail": str(tail)} | ({"since": since} if since else {})
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        path = f"/v2/pods/{_path(pod_id)}/logs"
        timeout = httpx.Timeout(read_timeout_s, connect=10.0)
        try:
            with self._client().stream(
                "GET", path, params=query, headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _error_for(answer)
                yield from _events(answer.iter_lines())
        except httpx.HTTPError as error:
            raise Transient(_describe(error)) from None

    # --- catalogue, volumes, money ---------------------------------------------------------------

    def gpus(self, cloud: str, count: int = 1, min_cuda: str | None = None) -> list[CatalogGpu]:
        """GPU types with price and stock in "secure" or "community" at this moment.

        Args:
            min_cuda: stock counts only hosts with this CUDA version or a newer one.
        """
        query = {
            "include": "AVAILABILITY",
            "product": "POD",
            "count": str(count),
            "cloud": cloud.upper(),
        } | ({"minCudaVersion": min_cuda} if min_cuda else {})
        answer = self._read("/v2/catalog/gpus", query)
        return [_parsed(CatalogGpu, item) for item in (answer or {}).get("gpus") or []]

    def volumes(self) -> list[Volume]:
        """Network volumes of the account: they outlive every pod, and are billed always."""
        answer = self._read("/v2/network-volumes") or {}
        return [_parsed(Volume, item) for item in answer.get("networkVolumes") or []]

    def create_volume(self, name: str, size_gb: int, data_center: str) -> Volume:
        """Rent a network volume (10 to 4096 GB); its data centre and that of its pods are one."""
        body = {"name": name, "size": size_gb, "dataCenter": data_center}
        return _parsed(Volume, self._send("POST", "/v2/network-volumes", body=body))

    def grow_volume(self, volume_id: str, size_gb: int) -> Volume:
        """Make a network volume larger; RunPod never makes one smaller."""
        path = f"/v2/network-volumes/{_path(volume_id)}"
        return _parsed(Volume, self._send("PATCH", path, body={"size": size_gb}))

    def delete_volume(self, volume_id: str) -> bool:
        """Delete a network volume and all in it; False if there was none."""
        return self._delete(f"/v2/network-volumes/{_path(volume_id)}")

    def pod_billing(self, pod_id: str, start: str | None = None) -> list[BillingRecord]:
        """What RunPod has charged for a pod so far; it posts late."""
        query = {"podId": pod_id, "bucketSize": "hour"} | ({"startTime": start} if start else {})
        answer = self._read("/v2/billing/pods", query)
        return [_parsed(BillingRecord, item) for item in (answer or {}).get("records") or []]

    def account(self) -> Account | None:
        """Balance and spend rate; None when the last GraphQL call does not answer."""
        query = {"query": "query { myself { clientBalance currentSpendPerHr } }"}
        try:
            answer = self._send("POST", "/graphql", body=query)
            return Account.model_validate(answer["data"]["myself"])
        except (RunpodError, KeyError, TypeError, ValidationError):
            return None

    # --- one request -----------------------------------------------------------------------------

    def _read(self, path: str, query: dict[str, str] | None = None) -> Any:
        return self._repeated(lambda: self._send("GET", path, query=query))

    def _delete(self, path: str) -> bool:
        try:
            self._repeated(lambda: self._send("DELETE", path))
        except NotFound:
            return False
        return True

    def _repeated(self, send: Callable[[], Any]) -> Any:
        for attempt in range(READ_RETRIES):
            try:
                return send()
            except RateLimited as error:
                wait_s = error.retry_after_s
                last: RunpodError = error
            except Transient as error:
                wait_s, last = 2.0**attempt, error
            if attempt + 1 < READ_RETRIES:
                self._sleep(wait_s)
        raise last

    def _send(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None
    ) -> Any:
        try:
            answer = self._client().request(method, path, params=query, json=body)
        except httpx.HTTPError as error:
            raise Transient(_describe(error)) from None
        self._note_time(answer)
        if answer.status_code >= 400:
            raise _error_for(answer)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise Transient("RunPod respondió algo que no es JSON.") from None

    def _note_time(self, answer: httpx.Response) -> None:
        with contextlib.suppress(KeyError, ValueError, TypeError):
            there = parsedate_to_datetime(answer.headers["Date"]).timestamp()
            skew_s = there - self._clock()
            self.skew_s = skew_s if abs(skew_s) > MIN_SKEW_S else 0.0

    def _client(self) -> httpx.Client:
        if self._http is None:
            self._http = httpx.Client(
                base_url=self._base_url,
                headers={"Authorization": f"Bearer {self._key}", "User-Agent": USER_AGENT},
                timeout=TIMEOUT,
                transport=self._transport,
            )
        return self._http


def _parsed(model: Any, value: Any) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()[:3])
        raise Transient(f"RunPod respondió con una forma inesperada ({names}).") from None


def _error_for(answer: httpx.Response) -> RunpodError:
    try:
        text = problem_text(answer.json())
    except ValueError:
        text = ""
    status = answer.status_code
    text = text or f"código {status}"
    if status == 429:
        return RateLimited(text, _retry_after_s(answer))
    if status >= 500:
        return Transient(text)
    return _BY_STATUS.get(status, BrokenContract)(text)


def _retry_after_s(answer: httpx.Response) -> float:
    try:
        return min(MAX_RETRY_AFTER_S, max(1.0, float(answer.headers["Retry-After"])))
    except (KeyError, ValueError):
        return 5.0


def _describe(error: httpx.HTTPError) -> str:
    """What happened to a request, without its headers."""
    if isinstance(error, httpx.TimeoutException):
        return "RunPod no respondió a tiempo."
    return f"no se pudo hablar con RunPod ({type(error).__name__})."


def _path(text: str) -> str:
    return quote(text, safe="")


def _events(lines: Iterator[str]) -> Iterator[LogLine]:
    """Server-sent events -> log lines; a frame that is not JSON is passed over."""
    event_id, data = None, ""
    for line in lines:
        if line.startswith("id:"):
            event_id = line[3:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()
        elif not line and data:
            with contextlib.suppress(ValueError, TypeError):
                yield LogLine.model_validate({**json.loads(data), "event_id": event_id})
            data = ""
