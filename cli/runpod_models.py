"""RunPod's answers, as far as elchat reads them. Unknown fields and states pass through."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A part of an answer: new fields are welcome, every nested one may be missing."""

    model_config = ConfigDict(extra="allow", frozen=True)


class SshEndpoint(Answer):
    """Where an SSH server listens."""

    host: str
    port: int
    username: str = "root"


class PodSsh(Answer):
    """`direct` is null until the public port of 22/tcp exists."""

    direct: SshEndpoint | None = None


class PodGpu(Answer):
    """The GPU of a pod."""

    id: str = ""
    count: int = 1


class Pod(Answer):
    """One rented machine."""

    id: str
    name: str = ""
    status: str = "UNKNOWN"
    gpu: PodGpu | None = None
    cloud: str | None = None
    env: dict[str, str] | None = None
    ssh: PodSsh | None = None
    cost: float | None = None
    dataCenterId: str | None = None

    @property
    def endpoint(self) -> SshEndpoint | None:
        """Where to connect, if it is known yet."""
        return self.ssh.direct if self.ssh else None


class GpuPrice(Answer):
    """USD per GPU and hour; zero or missing where a cloud has none."""

    secure: float | None = None
    community: float | None = None


class CatalogGpu(Answer):
    """A GPU type with its price and stock right now."""

    id: str
    name: str = ""
    memory: float = 0.0
    price: GpuPrice = GpuPrice()
    availability: str | None = None

    def usd_per_h(self, cloud: str) -> float | None:
        """Price in "secure" or "community", None where it is not offered."""
        return (self.price.secure if cloud == "secure" else self.price.community) or None


class BillingRecord(Answer):
    """Charges of one pod in one stretch of time."""

    startTime: str = ""
    endTime: str = ""
    podId: str = ""
    totalAmount: float = 0.0


class Account(Answer):
    """What the one GraphQL call left tells of the account."""

    clientBalance: float | None = None
    currentSpendPerHr: float | None = None


class Volume(Answer):
    """A network volume."""

    id: str
    name: str = ""
    size: int = 0
    dataCenter: str | None = None


class LogLine(Answer):
    """One line of a pod's log stream."""

    ts: str = ""
    source: str = ""
    line: str = ""
    event_id: str | None = Field(None)


def problem_text(body: Any) -> str:
    """The human part of an error body (RFC 9457, v1's or GraphQL's)."""
    if not isinstance(body, dict):
        return ""
    known = [str(body[key]) for key in ("detail", "title", "error") if body.get(key)]
    parts = known[:1]
    errors = body.get("errors")
    if isinstance(errors, list):
        parts += [str(e.get("message") if isinstance(e, dict) else e) for e in errors[:5]]
    return "; ".join(parts)
