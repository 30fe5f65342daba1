"""Scripts at random: the same seed gives the same script, on any machine."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from .catalog import gpus
from .faults import CAPACITY_TEXTS, FaultScript

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

OUTAGE_LONGEST_S = 1200.0


def random_faults(seed: int, *, intensity: float = 0.5) -> FaultScript:
    """A script with several faults of any kind.

    `intensity` is the chance that each family of faults shows up. Whatever comes out can be
    survived within the budget by a guard that does its work: outages end, DELETE reaches every
    pod, prices rise by less than a third, and a pod's key that can read can also end its pod (that
    one which reads and cannot is a risk that stays; write it by hand).
    """
    rng = random.Random(seed)

    def happens() -> bool:
        return rng.random() < intensity

    raw: dict[str, Any] = {
        "seed": seed,
        "lifecycle": _lifecycle(rng, happens()),
        "money": {"billing_lag_h": rng.choice([0.0, 1.0, 6.0, 24.0])},
    }
    if happens():
        raw["catalog"] = _catalog(rng)
    if happens():
        raw["create"] = [_create_fault(rng) for _ in range(rng.randint(1, 4))]
    if happens():
        raw["requests"] = [_request_fault(rng) for _ in range(rng.randint(1, 4))]
    if happens():
        raw["pods"] = [
            {"pod": rng.randint(1, 3), "lifecycle": _bad_pod(rng)} for _ in range(rng.randint(1, 2))
        ]
    if happens():
        raw["events"] = [_event(rng) for _ in range(rng.randint(1, 3))]
    if rng.random() < intensity / 2:
        rights = ("get", "delete", "stop", "terminate", "graphql")
        key = {right: rng.random() < 0.6 for right in rights}
        if key["get"] and not (key["delete"] or key["terminate"] or key["graphql"]):
            key[rng.choice(["delete", "terminate", "graphql"])] = True
        raw["pod_key"] = key
    if rng.random() < intensity / 2:
        raw["rate_limits"] = {"is_enforced": True, "minute": rng.choice([20, 60, 180])}
    if rng.random() < intensity / 4:
        raw["account"] = {"balance_usd": round(rng.uniform(2.0, 30.0), 2)}
    if rng.random() < intensity / 4:
        raw["logs"] = rng.choice([{"mode": "refused"}, {"drop_after_lines": rng.randint(0, 5)}])
    return FaultScript.model_validate(raw)


def fault_scripts(*, intensity: float = 0.5) -> SearchStrategy[FaultScript]:
    """The same scripts as a hypothesis strategy: it shrinks to the smallest failing seed."""
    from hypothesis import strategies as st

    seeds = st.integers(min_value=0, max_value=2**32 - 1)
    return seeds.map(lambda seed: random_faults(seed, intensity=intensity))


def _lifecycle(rng: random.Random, is_slow: bool) -> dict[str, Any]:
    factor = rng.uniform(1.0, 6.0) if is_slow else 1.0
    return {
        "provision_s": round(rng.uniform(1, 20) * factor, 1),
        "pull_s": round(rng.uniform(10, 120) * factor, 1),
        "start_s": round(rng.uniform(2, 15) * factor, 1),
        "ssh_direct_delay_s": round(rng.uniform(0, 20), 1),
        "sshd_delay_s": round(rng.uniform(0, 40), 1),
        "stale_port_s": rng.choice([0.0, 0.0, 90.0]),
        "teardown_s": rng.choice([0.0, 2.0, 30.0]),
        "teardown_view": rng.choice(["null", "TERMINATED"]),
        "is_exited_cost_shown": rng.random() < 0.3,
        "is_disk_in_cost": rng.random() < 0.3,
        "sigterm_grace_s": rng.choice([0, 5, 10]),
    }


def _catalog(rng: random.Random) -> dict[str, Any]:
    ids = list(gpus())
    return {
        "stock": {rng.choice(ids): rng.choice(["NONE", "LOW"]) for _ in range(rng.randint(0, 4))},
        "price_changes": [
            {
                "factor": round(rng.uniform(0.8, 1.3), 3),
                "after_catalog_reads": rng.randint(1, 3),
            }
        ],
    }


def _create_fault(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(
        ["capacity", "capacity", "server_error", "server_error", "hang", "hang",
         "forbidden_pool", "rate_limit", "balance"]
    )  # fmt: skip
    fault: dict[str, Any] = {"kind": kind, "calls": _calls(rng, 3)}
    if kind == "capacity":
        fault["text"] = rng.randrange(len(CAPACITY_TEXTS))
        if rng.random() < 0.5:
            fault |= {"gpu": rng.choice(list(gpus())), "calls": None}
    if kind in ("server_error", "hang"):
        fault["is_pod_created"] = rng.random() < 0.5
        fault["appears_after_s"] = rng.choice([0.0, 0.0, 20.0, 80.0])
    if kind == "server_error":
        fault["status"] = rng.choice([500, 502, 503])
    if kind == "hang":
        fault["hang_s"] = rng.choice([30.0, 300.0])
    if kind == "rate_limit":
        fault["retry_after_s"] = rng.randint(1, 60)
    return fault


def _request_fault(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["status", "status", "hang", "drop", "unreachable", "null", "html"])
    fault: dict[str, Any] = {
        "kind": kind,
        "method": rng.choice([None, "GET", "GET", "DELETE"]),
        "path": rng.choice(["*", "/v2/pods*", "/v2/pods/*", "/v2/catalog/*"]),
        "caller": rng.choice(["any", "account", "pod"]),
        "has_effect": kind in ("status", "drop", "hang") and rng.random() < 0.5,
    }
    if kind == "null":  # only ever seen on the reading of a pod
        fault |= {"method": "GET", "path": "/v2/pods/*"}
    if kind == "status":
        fault["status"] = rng.choice([429, 500, 502, 503, 504])
    if rng.random() < 0.5:
        fault["calls"] = _calls(rng, 8)
    else:
        start = round(rng.uniform(0, 20_000), 1)
        fault |= {"from_s": start, "until_s": start + round(rng.uniform(10, OUTAGE_LONGEST_S), 1)}
    return fault


def _bad_pod(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        [
            {"stuck_in": rng.choice(["PROVISIONING", "STARTING", "no_ssh_direct", "no_sshd"])},
            {"image_error": rng.choice(["toomanyrequests", "cuda"])},
            {"error_after_s": round(rng.uniform(0, 3000), 1)},
            {"is_gpu_healthy": False},
            {"has_free_gpu_on_start": False},
            {"disk_limit_mib": rng.choice([1, 50])},
            {"pull_s": round(rng.uniform(300, 2400), 1)},
        ]
    )


def _event(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(
        ["host_dies", "host_dies", "container_exits", "network_drop", "disk_full", "gpu_breaks",
         "stopped"]
    )  # fmt: skip
    event: dict[str, Any] = {
        "kind": kind,
        "pod": rng.choice([None, 1, 1, 2]),
        "after_s": round(rng.expovariate(1 / 6000), 1),
        "since": rng.choice(["create", "running", "running"]),
    }
    if kind == "host_dies":
        event["outcome"] = rng.choice(["exited", "gone", "terminated"])
    if kind == "network_drop":
        event["scope"] = rng.choice(["ssh", "api", "both"])
        event["duration_s"] = rng.choice([60.0, 600.0, OUTAGE_LONGEST_S])
    return event


def _calls(rng: random.Random, longest: int) -> list[int]:
    first = rng.randint(1, longest)
    return list(range(first, first + rng.randint(1, 3)))
