"""Whether a pod can be rented, on which host and at what price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import models
from .catalog import MAX_GPUS, Gpu, cuda_key, fixture, gpus
from .faults import CAPACITY_TEXTS

if TYPE_CHECKING:
    from .world import World

ANY_CENTER = "US-KS-2"


class Refusal(Exception):
    """A request that cannot be served: what the API answers."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}


@dataclass(frozen=True)
class Place:
    """A host for a pod."""

    gpu: Gpu | None
    count: int
    data_center: str
    cuda: str | None
    usd_per_h: float

    @property
    def gpu_id(self) -> str | None:
        return self.gpu.id if self.gpu else None


def no_capacity(text: int | str = 0) -> Refusal:
    """The untyped 400 of a machine that is not there."""
    if isinstance(text, int):
        text = CAPACITY_TEXTS[text % len(CAPACITY_TEXTS)]
    return Refusal(400, text)


def place(world: World, request: models.CreatePod) -> Place:
    """Find a host and check that the account can pay it.

    Raises:
        Refusal: 400 broken rule or no capacity, 402 money, 404 unknown volume.
    """
    _check_rules(world, request)
    found = _cpu_place(world, request) if request.cpu else _gpu_place(world, request)
    _check_money(world, found.usd_per_h)
    return found


def _check_rules(world: World, request: models.CreatePod) -> None:
    mounts = request.mounts
    if (request.gpu is None) == (request.cpu is None):
        raise Refusal(400, "exactly one of gpu or cpu is required")
    if mounts.persistent and mounts.network:
        raise Refusal(400, "mounts.persistent and mounts.network are mutually exclusive")
    if request.cpu and mounts.persistent:
        raise Refusal(400, "mounts.persistent is not supported for CPU pods")
    if request.gpu and request.gpu.allowedCudaVersions and request.gpu.minCudaVersion:
        raise Refusal(400, "gpu.allowedCudaVersions and gpu.minCudaVersion are mutually exclusive")
    if mounts.network:
        if mounts.network[0].volumeId not in world.volumes:
            raise Refusal(404, "network volume not found")
        if request.cloud != "SECURE":
            raise Refusal(400, "network volumes are only available in secure cloud")


def _gpu_place(world: World, request: models.CreatePod) -> Place:
    wanted = request.gpu
    assert wanted is not None
    gpu = gpus().get(wanted.id)
    # Leaving the count out was answered as if there were no machines.
    if gpu is None or wanted.count is None or wanted.count > MAX_GPUS:
        raise no_capacity()
    price = world.catalog.price(gpu, request.cloud)
    if price is None or world.catalog.stock(gpu.id) == "NONE":
        raise no_capacity()
    cuda = world.catalog.host_cuda(gpu)
    if wanted.allowedCudaVersions and cuda not in wanted.allowedCudaVersions:
        raise no_capacity(2)
    if wanted.minCudaVersion and cuda_key(cuda) < cuda_key(wanted.minCudaVersion):
        raise no_capacity(2)
    center = _center(world, request, list(gpu.data_centers))
    return Place(gpu, wanted.count, center, cuda, price * wanted.count)


def _cpu_place(world: World, request: models.CreatePod) -> Place:
    assert request.cpu is not None
    rows = {row["id"]: row for row in world.catalog.cpus(False)}
    row = rows.get(request.cpu.id)
    if row is None or request.cpu.vcpuCount > row["vcpu"]["max"]:
        raise no_capacity(3)
    centers = [center["id"] for center in fixture()["data_centers"]]
    price = row["price"]["securePerVcpu"] * request.cpu.vcpuCount
    return Place(None, 0, _center(world, request, centers), None, price)


def _center(world: World, request: models.CreatePod, offered: list[str]) -> str:
    """The list of centres reads as a preference in the documents and works as a filter."""
    wanted = request.dataCenterIds
    if request.mounts.network:
        volume = world.volumes[request.mounts.network[0].volumeId]
        offered = [center for center in offered if center == volume.dataCenter]
    matching = [center for center in offered if not wanted or center in wanted]
    if not matching:
        raise no_capacity(3)
    return matching[0]


def _check_money(world: World, usd_per_h: float) -> None:
    if world.balance < usd_per_h:
        raise Refusal(402, "insufficient balance: at least one hour of credit is required")
    limit = world.faults.account.spend_limit_usd_per_h
    if world.ledger.rate() + usd_per_h > limit:
        raise Refusal(402, f"spend limit of ${limit:.2f}/hr would be exceeded")
