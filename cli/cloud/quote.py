"""The offers for a configuration at today's prices: what each GPU costs, lasts and trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cli.cloud import money
from cli.output import count, dollars, duration, number
from cli.runpod_client import RunpodClient
from elchat import estimate, hardware
from elchat.config import Config
from elchat.model_config import GPTConfig

MIN_CUDA = "12.9"  # what the image's torch is built for: an older driver would not start it
CONTAINER_DISK_GB = 20  # smaller ones have been refused where this one was placed at once
STOCK = {"HIGH": "mucha", "MEDIUM": "alguna", "LOW": "poca", "NONE": "ninguna"}


@dataclass(frozen=True)
class Offer:
    """One GPU in one cloud, now.

    Attributes:
        gpu_usd_per_h: price of the catalogue; `usd_per_h` adds the disk.
        tokens_per_s: planned, None for a model of unknown shape.
        hours, usd: expected length and price of the rental.
        worst_usd: what it could cost at most; None when it cannot be used.
        problem: why it cannot be used, or None.
    """

    gpu: str
    name: str
    vram_gib: int
    cloud: str
    gpu_usd_per_h: float
    usd_per_h: float
    stock: str | None
    tokens_per_s: float | None
    hours: float | None
    usd: float | None
    worst_usd: float | None
    problem: str | None

    @property
    def key(self) -> str:
        """How the record names it."""
        return f"{self.gpu}|{self.cloud}"


def live_prices(
    client: RunpodClient, clouds: Sequence[str]
) -> dict[str, dict[str, tuple[float, str | None]]]:
    """Cloud -> GPU id -> (USD per hour, stock), from the catalogue at this moment."""
    found: dict[str, dict[str, tuple[float, str | None]]] = {}
    for cloud in clouds:
        found[cloud] = {}
        for gpu in client.gpus(cloud, min_cuda=MIN_CUDA):
            price = gpu.usd_per_h(cloud)
            if price is not None:
                found[cloud][gpu.id] = (price, gpu.availability)
    return found


def observed_prices(clouds: Sequence[str]) -> dict[str, dict[str, tuple[float, str | None]]]:
    """The same from dated observations, for a plan without network; never for renting."""
    return {
        cloud: {
            gpu_id: (price, None)
            for gpu_id, pair in estimate.OBSERVED_USD_PER_H.items()
            if (price := pair[0 if cloud == "secure" else 1]) is not None
        }
        for cloud in clouds
    }


def offers(
    config: Config,
    shape: GPTConfig | None,
    prices: dict[str, dict[str, tuple[float, str | None]]],
    *,
    now: float,
    remaining_usd: float,
    rented_s: float = 0.0,
) -> list[Offer]:
    """Every candidate of the configuration, in its order, with what it would cost now."""
    found = []
    for gpu in map(hardware.gpu_by_id, config.compute.gpus):
        for cloud in config.compute.cloud:
            if gpu.id in prices.get(cloud, {}):
                price, stock = prices[cloud][gpu.id]
                plan = money.window(
                    now,
                    remaining_usd,
                    price + disk_rate(config),
                    training_s=wanted_s(config, rented_s),
                )
                found.append(_offer(config, shape, gpu, cloud, price, stock, plan))
    return found


def disk_rate(config: Config) -> float:
    """USD per hour of both disks."""
    return money.disk_usd_per_h(CONTAINER_DISK_GB + config.compute.disk_gb)


def wanted_s(config: Config, rented_s: float) -> float | None:
    """Seconds from renting to the last training step, None for all the money."""
    if config.compute.expected_hours is None:
        return None
    whole_s = 3600.0 * config.compute.expected_hours
    return max(whole_s - rented_s, min(0.1 * whole_s + 900.0, whole_s))


def _offer(
    config: Config,
    shape: GPTConfig | None,
    gpu: hardware.Gpu,
    cloud: str,
    price: float,
    stock: str | None,
    plan: money.Window | None,
) -> Offer:
    usd_per_h = price + disk_rate(config)
    fit, rate = None, None
    if shape is not None:
        training = config.training
        stages = [stage for stage in (training.cpt, training.sft) if stage.enabled]
        context = max(stage.context_tokens for stage in stages)
        fit = estimate.fit(gpu, shape, context)
        is_slow = fit is not None and fit.is_checkpointed
        rate = estimate.tokens_per_s(gpu, shape, context, checkpointed=is_slow)
    problem = None
    if shape is not None and fit is None:
        problem = "no cabe"
    elif plan is None:
        problem = "no da tiempo"
    hours = None if plan is None else (plan.train_until - plan.created) / 3600.0 + 0.15
    return Offer(
        gpu=gpu.id,
        name=gpu.name,
        vram_gib=gpu.vram_gib,
        cloud=cloud,
        gpu_usd_per_h=price,
        usd_per_h=usd_per_h,
        stock=stock,
        tokens_per_s=rate,
        hours=hours,
        usd=None if hours is None or plan is None else min(hours * usd_per_h, plan.worst_usd),
        worst_usd=None if plan is None else plan.worst_usd,
        problem=problem,
    )


COLUMNS = (
    "GPU", "nube", "memoria", "$/h", "existencias", "tokens/s", "horas", "coste", "como mucho",
    "¿entra?",
)  # fmt: skip


def row(offer: Offer) -> list[str]:
    """A row of the table (see COLUMNS)."""
    hours = None if offer.hours is None else 3600 * offer.hours
    return [
        offer.name,
        "segura" if offer.cloud == "secure" else "comunidad",
        f"{offer.vram_gib} GB",
        number(offer.usd_per_h, 2),
        STOCK.get(offer.stock or "", "—"),
        count(offer.tokens_per_s),
        duration(hours),
        dollars(offer.usd),
        dollars(offer.worst_usd),
        offer.problem or "sí",
    ]
