"""GPU types, prices and stock: a dated fixture under the fault script's changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .faults import Catalog as CatalogFaults
from .faults import PriceChange

FIXTURE = Path(__file__).with_name("catalog_2026_11.json")
MAX_GPUS = 8
CUDA_VERSIONS = ("12.4", "12.6", "12.8", "12.9", "13.0")


@dataclass(frozen=True)
class Gpu:
    """A row of the fixture."""

    id: str
    name: str
    memory_gb: int
    prices: dict[str, float]  # USD per GPU-hour by cloud; a cloud without it is not offered
    cuda: str
    data_centers: tuple[str, ...]


def cuda_key(version: str) -> tuple[int, ...]:
    """CUDA versions compare as numbers: 12.11 is above 12.2."""
    return tuple(int(part) for part in version.split("."))


@cache
def fixture() -> dict[str, Any]:
    found = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@cache
def gpus() -> dict[str, Gpu]:
    rows = {}
    for row in fixture()["gpus"]:
        prices = {"SECURE": row["secure_usd_per_h"]}
        if "community_usd_per_h" in row:
            prices["COMMUNITY"] = row["community_usd_per_h"]
        rows[row["id"]] = Gpu(
            row["id"], row["name"], row["memory_gb"], prices, row["cuda"],
            tuple(row["data_centers"]),
        )  # fmt: skip
    return rows


class Catalog:
    """What may be rented now and at what price."""

    def __init__(self, faults: CatalogFaults, prices_factor: float) -> None:
        self._faults = faults
        self._prices_factor = prices_factor
        self._changes: list[PriceChange] = []
        self.reads = 0

    def apply(self, change: PriceChange) -> None:
        self._changes.append(change)

    def count_read(self) -> None:
        """A read by a client: some price changes wait for one."""
        self.reads += 1
        for change in self._faults.price_changes:
            if change.after_catalog_reads == self.reads:
                self.apply(change)

    def price(self, gpu: Gpu, cloud: str) -> float | None:
        """USD per GPU-hour now, or None where this cloud does not offer it."""
        base = gpu.prices.get(cloud)
        for name, price in self._faults.prices.get(gpu.id, {}).items():
            if name == cloud:
                base = price
        if base is None:
            return None
        for change in self._changes:
            if change.gpu in (None, gpu.id) and change.cloud in (None, cloud):
                base *= change.factor
        return base * self._prices_factor

    def stock(self, gpu_id: str) -> str:
        stock = self._faults.stock
        return stock.get(gpu_id, stock.get("*", "HIGH"))

    def host_cuda(self, gpu: Gpu) -> str:
        return self._faults.cuda.get(gpu.id, gpu.cuda)

    def gpu_body(self, gpu: Gpu, query: dict[str, str] | None) -> dict[str, Any]:
        """A GPU type as the catalogue shows it; `query` when availability was asked for."""
        prices = {cloud: self.price(gpu, cloud) for cloud in ("SECURE", "COMMUNITY")}
        body: dict[str, Any] = {
            "id": gpu.id,
            "name": gpu.name,
            "pool": None,
            "manufacturer": "NVIDIA",
            "memory": gpu.memory_gb,
            "secure": prices["SECURE"] is not None,
            "community": prices["COMMUNITY"] is not None,
            "price": {cloud.lower(): price or 0.0 for cloud, price in prices.items()},
            "maxCount": {
                cloud.lower(): MAX_GPUS if price is not None else 0
                for cloud, price in prices.items()
            },
        }
        if query is not None:
            body |= self._availability(gpu, query)
        return body

    def _availability(self, gpu: Gpu, query: dict[str, str]) -> dict[str, Any]:
        cloud = query.get("cloud", "SECURE")
        countries = set(filter(None, query.get("countryCodes", "").split(",")))
        wanted = set(filter(None, query.get("cudaVersions", "").split(",")))
        floor = cuda_key(query.get("minCudaVersion", "0"))
        cuda = self.host_cuda(gpu)
        versions = [
            v for v in CUDA_VERSIONS if cuda_key(v) >= floor and (not wanted or v in wanted)
        ]
        centers = [
            center["id"]
            for center in fixture()["data_centers"]
            if center["id"] in gpu.data_centers
            and (not countries or center["country"] in countries)
        ]
        is_offered = (
            self.price(gpu, cloud) is not None
            and int(query.get("count", "1")) <= MAX_GPUS
            and cuda_key(cuda) >= floor
            and (not wanted or cuda in wanted)
            and bool(centers)
        )
        level = self.stock(gpu.id) if is_offered else "NONE"
        return {
            "availability": level,
            "dataCenters": [{"id": c, "name": c, "availability": level} for c in centers],
            "cudaVersions": [{"version": v, "available": v == cuda} for v in versions],
        }

    def gpu_list(self, query: dict[str, str] | None) -> list[dict[str, Any]]:
        bodies = [self.gpu_body(gpu, query) for gpu in gpus().values()]
        if query and query.get("countryCodes"):
            bodies = [body for body in bodies if body["dataCenters"]]
        if self._faults.has_unknown_gpu:
            unknown = Gpu("unknown", "unknown", 0, {}, "12.8", ())
            bodies.append({**self.gpu_body(unknown, query), "manufacturer": "UNKNOWN"})
        return bodies

    def data_centers(self, include_gpus: bool) -> list[dict[str, Any]]:
        bodies = []
        for center in fixture()["data_centers"]:
            body = {
                "id": center["id"],
                "name": center["id"],
                "region": center["region"],
                "globalNetwork": True,
                "networkVolumeTypes": ["STANDARD"],
                "compliance": ["GDPR"] if center["region"] == "EUROPE" else [],
            }
            if include_gpus:
                body["gpuAvailability"] = [
                    {"id": gpu.id, "name": gpu.name, "availability": self.stock(gpu.id)}
                    for gpu in gpus().values()
                    if center["id"] in gpu.data_centers
                ]
            bodies.append(body)
        return bodies

    def cpus(self, is_availability_asked: bool) -> list[dict[str, Any]]:
        bodies = []
        for row in fixture()["cpus"]:
            price = row["usd_per_vcpu_h"] * self._prices_factor
            body = {
                "id": row["id"],
                "name": row["name"],
                "group": row["name"],
                "vcpu": {"min": 2, "max": row["max_vcpu"]},
                "ramGbPerVcpu": row["ram_gb_per_vcpu"],
                "price": {"securePerVcpu": price, "serverlessPerVcpu": price},
            }
            if is_availability_asked:
                body |= {"availability": "HIGH", "dataCenters": []}
            bodies.append(body)
        return bodies
