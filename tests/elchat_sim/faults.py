"""The fault script: what will go wrong, where and when. Schema and examples in docs/simulador.md.

Everything has the quiet default: `FaultScript()` is a RunPod on a good day.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Cloud = Literal["SECURE", "COMMUNITY"]
Stock = Literal["NONE", "LOW", "MEDIUM", "HIGH"]
Seconds = float
ACCOUNT_KEY = "elchat-sim-account-key"

# The texts seen in the wild for the same thing: there is no machine to rent.
CAPACITY_TEXTS = (
    "There are no longer any instances available with the requested specifications. "
    "Please refresh and try again.",
    "create pod: There are no instances currently available",
    "could not find any pods with required specifications",
    "no available datacenter with requested resources",
    "This machine does not have the resources to deploy your pod. Please try a different machine",
)


class Part(BaseModel):
    """A part of the script: unknown keys refused, values immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Account(Part):
    """Who rents."""

    key: str = ACCOUNT_KEY
    balance_usd: float = 1000.0
    spend_limit_usd_per_h: float = 80.0
    ssh_keys: list[str] = []


class Deposit(Part):
    """Money put into (or, negative, taken out of) the account at a moment."""

    at_s: Seconds = Field(ge=0)
    usd: float


class Money(Part):
    """How charges reach the balance and the bills."""

    drain_every_s: Seconds = Field(default=300.0, gt=0)
    billing_lag_h: float = Field(default=1.0, ge=0)
    deposits: list[Deposit] = []
    prices_factor: float = Field(default=1.0, gt=0)  # real pods: an hour's price in seconds


class PriceChange(Part):
    """From a moment, or from the n-th catalogue read on, prices are multiplied."""

    factor: float = Field(gt=0)
    gpu: str | None = None
    cloud: Cloud | None = None
    at_s: Seconds | None = Field(default=None, ge=0)
    after_catalog_reads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_moment(self) -> PriceChange:
        if (self.at_s is None) == (self.after_catalog_reads is None):
            raise ValueError("pon at_s o after_catalog_reads, uno de los dos")
        return self


class Catalog(Part):
    """Stock and prices over the fixture's."""

    stock: dict[str, Stock] = {}  # by GPU id; "*" for the rest
    prices: dict[str, dict[Cloud, float]] = {}
    price_changes: list[PriceChange] = []
    cuda: dict[str, str] = {}  # CUDA version of a GPU's hosts
    has_unknown_gpu: bool = False  # the sentinel type "unknown"


class RateLimits(Part):
    """Requests allowed per window; None leaves a window unlimited but announced."""

    is_enforced: bool = False
    minute: int = Field(default=60, ge=1)
    hour: int = Field(default=3000, ge=1)
    day: int = Field(default=50000, ge=1)


class CreateFault(Part):
    """A `POST /v2/pods` that fails. `calls` counts, from 1, the creates this fault matches."""

    kind: Literal["capacity", "balance", "forbidden_pool", "server_error", "hang", "rate_limit"]
    gpu: str | None = None
    cloud: Cloud | None = None
    data_center: str | None = None
    calls: list[int] | None = None
    text: int | str = 0  # capacity: which of the known texts, or another one
    status: int = Field(default=503, ge=500, le=599)
    is_pod_created: bool = False
    appears_after_s: Seconds = Field(default=0.0, ge=0)  # the pod created, later than the answer
    hang_s: Seconds = Field(default=120.0, gt=0)
    retry_after_s: int = Field(default=12, ge=0)


class RequestFault(Part):
    """Any other request that fails. `calls` counts, from 1, the requests this fault matches."""

    kind: Literal["status", "hang", "drop", "unreachable", "null", "html"]
    method: Literal["GET", "POST", "PATCH", "PUT", "DELETE"] | None = None
    path: str = "*"  # a glob over the path
    caller: Literal["any", "account", "pod"] = "any"
    calls: list[int] | None = None
    from_s: Seconds = 0.0
    until_s: Seconds | None = None
    status: int = Field(default=503, ge=400, le=599)
    retry_after_s: int | None = None
    hang_s: Seconds = Field(default=120.0, gt=0)
    has_effect: bool = False  # carried out all the same: only the answer is lost


class Lifecycle(Part):
    """Delays and manners of a pod."""

    provision_s: Seconds = Field(default=5.0, ge=0)
    pull_s: Seconds = Field(default=90.0, ge=0)
    start_s: Seconds = Field(default=10.0, ge=0)
    restart_s: Seconds = Field(default=5.0, ge=0)
    ssh_direct_delay_s: Seconds = Field(default=5.0, ge=0)
    sshd_delay_s: Seconds = Field(default=8.0, ge=0)
    runtime_empty_s: Seconds = Field(default=5.0, ge=0)
    stale_port_s: Seconds = Field(default=0.0, ge=0)
    stuck_in: Literal["PROVISIONING", "STARTING", "no_ssh_direct", "no_sshd"] | None = None
    image_error: Literal["toomanyrequests", "cuda"] | None = None
    error_after_s: Seconds | None = Field(default=None, ge=0)  # from RUNNING
    is_exited_cost_shown: bool = False
    is_disk_in_cost: bool = False  # published texts disagree
    teardown_s: Seconds = Field(default=0.0, ge=0)
    teardown_view: Literal["null", "TERMINATED"] = "null"
    has_free_gpu_on_start: bool = True
    is_gpu_healthy: bool = True
    sigterm_grace_s: Literal[0, 5, 10] = 0
    disk_limit_mib: int | None = Field(default=None, ge=1)  # what really fits in /workspace
    billing_starts: Literal["create", "pulled"] = "create"


class PodRule(Part):
    """A lifecycle for one pod (`pod` counts creations from 1) or for all those of a GPU."""

    pod: int | None = Field(default=None, ge=1)
    gpu: str | None = None
    lifecycle: Lifecycle


class PodEvent(Part):
    """Something that happens to a pod at a moment of its life."""

    kind: Literal[
        "host_dies", "container_exits", "network_drop", "gpu_breaks", "disk_full", "stopped"
    ]
    pod: int | None = Field(default=None, ge=1)
    after_s: Seconds = Field(ge=0)
    since: Literal["create", "running"] = "running"
    outcome: Literal["exited", "gone", "terminated"] = "exited"
    duration_s: Seconds | None = Field(default=None, gt=0)  # network_drop: None is for ever
    scope: Literal["ssh", "api", "both"] = "both"


class PodKey(Part):
    """What the key that lives inside a pod may do."""

    get: bool = True
    delete: bool = True
    stop: bool = True
    terminate: bool = True
    graphql: bool = True


class Logs(Part):
    """The log stream's manners."""

    mode: Literal["ok", "refused"] = "ok"
    drop_after_lines: int | None = Field(default=None, ge=0)
    container_kept_s: Seconds = 120.0
    system_kept_s: Seconds = 3600.0


class FaultScript(Part):
    """A whole script."""

    seed: int = 0
    account: Account = Account()
    money: Money = Money()
    catalog: Catalog = Catalog()
    rate_limits: RateLimits = RateLimits()
    create: list[CreateFault] = []
    requests: list[RequestFault] = []
    lifecycle: Lifecycle = Lifecycle()
    pods: list[PodRule] = []
    events: list[PodEvent] = []
    pod_key: PodKey = PodKey()
    logs: Logs = Logs()
    is_newer_spec: bool = False  # cmd, entrypoint, vCPU and RAM of later published texts
    is_user_agent_checked: bool = True
    latency_s: Seconds = Field(default=0.2, ge=0)  # virtual mode: what a request takes

    def lifecycle_of(self, number: int, gpu: str | None) -> Lifecycle:
        """The general lifecycle with what the rules for this pod set over it."""
        found = self.lifecycle
        for rule in self.pods:
            if rule.pod in (None, number) and rule.gpu in (None, gpu):
                changes = rule.lifecycle.model_dump(exclude_unset=True)
                found = found.model_copy(update=changes)
        return found

    def events_of(self, number: int) -> list[PodEvent]:
        return [event for event in self.events if event.pod in (None, number)]


class FaultScriptError(ValueError):
    """A fault script that cannot be used: one Spanish sentence."""


def load(path: Path) -> FaultScript:
    """Read a fault script.

    Raises:
        FaultScriptError: unreadable file, misspelt key or impossible value.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FaultScriptError(f"No se puede leer {path}: {error.strerror}.") from None
    except ValueError as error:
        raise FaultScriptError(f"{path} no es JSON válido: {error}.") from None
    return parse(raw)


def parse(raw: Any) -> FaultScript:
    """Check a script already read.

    Raises:
        FaultScriptError: misspelt key or impossible value.
    """
    try:
        return FaultScript.model_validate(raw)
    except ValidationError as error:
        raise FaultScriptError("; ".join(_explain(item) for item in error.errors()[:5])) from None


def all_keys() -> list[str]:
    """Every key that some part of a script knows."""
    schema = FaultScript.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    return sorted({key for part in parts for key in part.get("properties", {})})


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "el guion"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), all_keys(), 1)
        return f"la clave «{where}» no existe" + (f"; ¿quisiste decir «{near[0]}»?" if near else "")
    if item["type"] == "missing":
        return f"falta la clave «{where}»"
    if item["type"] == "value_error":
        return f"en «{where}», {item['ctx']['error']}"
    return f"«{where}» vale {item['input']!r} y no se admite ({item['type']})"
