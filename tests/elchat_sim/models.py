"""The contract of RunPod's REST v2: bodies that are accepted and bodies that are answered.

Written from the published specification; both directions refuse a field they do not know, so the
contract is checked even where the specification's file is not at hand.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CudaVersion = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
NonEmpty = Annotated[str, Field(min_length=1)]
SshKey = Annotated[str, Field(pattern=r"^(ssh|ecdsa|sk)-[^\s]+ [^\s]+([ \t][^\n\r]*)?$")]
Status = Literal["PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED"]
ActionName = Literal["start", "stop", "restart", "terminate"]
Cloud = Literal["SECURE", "COMMUNITY"]
Stock = Literal["NONE", "LOW", "MEDIUM", "HIGH"]
VolumeType = Literal["STANDARD", "HIGH_PERFORMANCE"]


class Body(BaseModel):
    """Exact JSON: no unknown field, no number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)


# ---- requests


class Asked(Body):
    """A request: optional fields may be absent, but null only where it means something."""

    may_be_null: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key, value in data.items():
                if value is None and key not in cls.may_be_null:
                    raise ValueError(f"'{key}': got null, want a value")
        return data


class PersistentMount(Asked):
    size: int = Field(ge=10)
    path: str


class NetworkMount(Asked):
    volumeId: str
    path: str


class Mounts(Asked):
    persistent: PersistentMount | None = None
    network: list[NetworkMount] | None = Field(default=None, max_length=1)


class CreateGpu(Asked):
    id: str
    count: int | None = Field(default=None, ge=1)
    allowedCudaVersions: list[CudaVersion] = []
    minCudaVersion: CudaVersion | None = None


class CreateGpuNewer(CreateGpu):
    minRamPerGpu: int | None = Field(default=None, ge=1)
    minVcpuCountPerGpu: int | None = Field(default=None, ge=1)


class CreateCpu(Asked):
    id: NonEmpty
    vcpuCount: int = Field(ge=2)


class Container(Asked):
    may_be_null: ClassVar[tuple[str, ...]] = ("registry",)

    args: str | None = None
    disk: int | None = Field(default=None, ge=1)
    env: dict[str, str] | None = None
    image: str | None = None
    ports: list[str] | None = None
    registry: str | None = None


class CreatePod(Container):
    name: NonEmpty
    cloud: Cloud = "SECURE"
    cpu: CreateCpu | None = None
    dataCenterIds: list[str] = []
    globalNetworking: bool = False
    gpu: CreateGpu | None = None
    mounts: Mounts = Mounts()
    startJupyter: bool = False
    startSsh: bool = False
    templateId: NonEmpty | None = None

    @model_validator(mode="after")
    def _image_or_template(self) -> CreatePod:
        if self.image is None and self.templateId is None:
            raise ValueError("missing property 'image'")
        return self


class CreatePodNewer(CreatePod):
    gpu: CreateGpuNewer | None = None
    cmd: list[str] | None = None
    entrypoint: list[str] | None = None


class UpdatePod(Container):
    name: NonEmpty | None = None
    globalNetworking: bool | None = None
    locked: bool | None = None
    mounts: Mounts | None = None
    templateId: str | None = None


class PodActionRequest(Asked):
    action: ActionName


class CreateVolume(Asked):
    name: NonEmpty
    size: int = Field(ge=10, le=4096)
    dataCenter: NonEmpty
    type: VolumeType = "STANDARD"


class UpdateVolume(Asked):
    name: NonEmpty | None = None
    size: int | None = Field(default=None, ge=10, le=4096)

    @model_validator(mode="after")
    def _something(self) -> UpdateVolume:
        if not self.model_fields_set:
            raise ValueError("minProperties: got 0, want 1")
        return self


class UpdateSshKeys(Asked):
    keys: list[SshKey]


def violations(error: ValidationError) -> list[str]:
    """The `errors[]` of a 422, in the wording of the live service."""
    found = []
    for item in error.errors():
        *path, last = ("$", *item["loc"])
        where = ".".join(str(part) for part in path) or "$"
        if item["type"] == "missing":
            found.append(f"{where}: missing property '{last}'")
        elif item["type"] == "extra_forbidden":
            found.append(f"{where}: additional properties '{last}' not allowed")
        else:
            full = ".".join(str(part) for part in (*path, last))
            found.append(f"{full}: {item['msg'].removeprefix('Value error, ')}")
    return found


# ---- answers


class Problem(Body):
    title: str
    status: int
    detail: str
    errors: list[str] | None = None


class SshEndpoint(Body):
    host: str
    port: int
    username: str
    command: str


class Ssh(Body):
    proxy: SshEndpoint | None
    direct: SshEndpoint | None


class GpuUtilization(Body):
    util: int
    memoryUtil: int


class Utilization(Body):
    util: int


class RuntimePort(Body):
    private: int
    public: int | None
    type: str
    ip: str | None


class Runtime(Body):
    uptime: int | None = None
    gpus: list[GpuUtilization] | None = None
    cpu: Utilization | None = None
    memory: Utilization | None = None
    ports: list[RuntimePort] | None = None


class PodGpu(Body):
    id: str
    count: int
    vcpuCount: int | None = None  # newer texts
    memory: int | None = None


class PodCpu(Body):
    id: str
    vcpuCount: int
    memory: int


class GlobalNetworking(Body):
    enabled: bool


class PodBody(Body):
    id: str
    name: str
    image: str
    args: str
    entrypoint: list[str] | None = None  # newer texts
    cmd: list[str] | None = None
    disk: int
    ports: list[str]
    env: dict[str, str]
    registry: str | None
    status: Status
    actions: list[ActionName]
    mounts: Mounts
    gpu: PodGpu | None = None
    cpu: PodCpu | None = None
    cloud: Cloud
    dataCenterId: str | None
    cudaVersion: str | None
    ssh: Ssh
    template: str | None
    cost: float
    locked: bool
    globalNetworking: GlobalNetworking
    runtime: Runtime | None
    createdAt: str
    startedAt: str | None


class Pagination(Body):
    nextCursor: str | None
    hasNextPage: bool


class PodList(Body):
    pods: list[PodBody]
    pagination: Pagination


class Volume(Body):
    id: str
    name: str
    size: int
    dataCenter: str
    type: VolumeType


class VolumeList(Body):
    networkVolumes: list[Volume]


class SshKeys(Body):
    keys: list[str]


# Present in an answer even when null; any other absent value is left out of it.
NULLABLE = {
    "registry", "dataCenterId", "cudaVersion", "proxy", "direct", "template", "runtime",
    "startedAt", "public", "ip", "nextCursor", "pool", "podId", "networkVolumeId",
}  # fmt: skip


def dump(model: Body) -> dict[str, Any]:
    """JSON of an answer: nullable fields kept, optional ones left out when absent."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if v is not None or k in NULLABLE}
        return [clean(v) for v in value] if isinstance(value, list) else value

    cleaned = clean(model.model_dump())
    assert isinstance(cleaned, dict)
    return cleaned
