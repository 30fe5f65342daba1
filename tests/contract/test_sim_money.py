"""The simulator's money: exact, always running, and told late."""

from __future__ import annotations

import itertools

import pytest

from elchat_sim.billing import Window
from tests.sim_tools import POD, boot, client, create, simulator

GPU = 1.09  # L40S in the secure cloud
CONTAINER = 20 * 0.10 / 730
VOLUME = 20 * 0.10 / 730


def test_a_pod_is_billed_from_its_creation_through_the_pull():
    sim = simulator({"lifecycle": {"pull_s": 3600}, "latency_s": 0.0})
    with client(sim) as api:
        pod_id = create(api)
        sim.sleep(3600)
        assert api.get(f"/v2/pods/{pod_id}").json()["status"] == "STARTING"
        assert sim.ledger.dollars(pod_id) == pytest.approx(GPU + CONTAINER + VOLUME)


def test_billing_may_begin_after_the_pull():
    lifecycle = {"provision_s": 0, "pull_s": 3600, "billing_starts": "pulled"}
    sim = simulator({"lifecycle": lifecycle, "latency_s": 0.0})
    with client(sim) as api:
        pod_id = create(api)
        sim.sleep(3600)
        assert sim.ledger.dollars(pod_id) == pytest.approx(CONTAINER + VOLUME)
        sim.sleep(3600)
        assert sim.ledger.dollars(pod_id) == pytest.approx(GPU + 2 * (CONTAINER + VOLUME))


def test_every_second_costs_the_same_and_nothing_costs_after_the_end():
    sim = simulator({"latency_s": 0.0})
    with client(sim) as api:
        pod_id = create(api)
        start = sim.clock.now()
        sim.sleep(100)
        seconds = sim.ledger.per_second(pod_id, start, sim.clock.now())
        assert len(seconds) == 101
        steps = [after - before for before, after in itertools.pairwise(seconds)]
        assert steps == pytest.approx([(GPU + CONTAINER + VOLUME) / 3600] * 100)
        api.delete(f"/v2/pods/{pod_id}")
        final = sim.ledger.dollars(pod_id)
        sim.sleep(1e6)
        assert sim.ledger.dollars(pod_id) == final


def test_a_stopped_pod_pays_double_for_its_volume_only():
    sim = simulator({"latency_s": 0.0})
    with client(sim) as api:
        pod = boot(sim, api)
        api.post(f"/v2/pods/{pod['id']}/action", json={"action": "stop"})
        before = sim.ledger.dollars()
        sim.sleep(3600)
        assert sim.ledger.dollars() - before == pytest.approx(2 * VOLUME)


def test_gpus_multiply_and_network_volumes_are_always_billed():
    sim = simulator({"latency_s": 0.0})
    with client(sim) as api:
        body = {"name": "datos", "size": 2000, "dataCenter": "US-KS-2"}
        volume = api.post("/v2/network-volumes", json=body).json()["id"]
        sim.sleep(3600)
        assert sim.ledger.dollars(volume) == pytest.approx((1000 * 0.07 + 1000 * 0.05) / 730)
        pod_id = create(api, gpu={**POD["gpu"], "count": 4})
        assert sim.ledger.rate(pod_id) == pytest.approx(4 * GPU + CONTAINER + VOLUME)
        api.delete(f"/v2/pods/{pod_id}")
        bills = api.get("/v2/billing/network-volumes", params={"lastN": 2, "bucketSize": "hour"})
        assert bills.status_code == 200


@pytest.mark.parametrize("kind", ["persistent", "network"])
def test_at_zero_pods_stop_or_end_by_the_kind_of_their_volume(kind):
    sim = simulator({"account": {"balance_usd": 3.0}})
    with client(sim) as api:
        volume = {"name": "v", "size": 10, "dataCenter": "US-KS-2"}
        network = [
            {"volumeId": api.post("/v2/network-volumes", json=volume).json()["id"], "path": "/w"}
        ]
        mounts = POD["mounts"] if kind == "persistent" else {"network": network}
        pod_id = create(api, mounts=mounts)
        hours = 3.0 / GPU
        sim.sleep(hours * 3600 - 600)
        assert sim.world.pods[pod_id].status == "RUNNING"
        sim.sleep(1200)
        if kind == "persistent":
            assert api.get(f"/v2/pods/{pod_id}").status_code == 404
            assert sim.live_pods() == []
        else:
            assert api.get(f"/v2/pods/{pod_id}").json()["status"] == "EXITED"
        # The account is looked at every five minutes: it may owe that much.
        assert -GPU / 12 - 0.01 < sim.world.balance <= 0
        assert api.post("/v2/pods", json=POD).status_code == 402


def test_a_deposit_saves_the_pod():
    money = {"deposits": [{"at_s": 3600, "usd": 100}]}
    sim = simulator({"account": {"balance_usd": 2.0}, "money": money})
    with client(sim) as api:
        create(api)
        sim.sleep(10 * 3600)
        assert len(sim.live_pods()) == 1


def test_an_hour_of_credit_and_the_spend_limit():
    sim = simulator({"account": {"balance_usd": 1.0}})
    with client(sim) as api:
        assert api.post("/v2/pods", json=POD).status_code == 402
    sim = simulator({"account": {"spend_limit_usd_per_h": 2.0}})
    with client(sim) as api:
        create(api)
        answer = api.post("/v2/pods", json=POD)
        assert answer.status_code == 402
        assert "spend limit" in answer.json()["detail"]


def test_bills_come_late_and_then_agree_with_the_ledger():
    sim = simulator({"money": {"billing_lag_h": 6}})
    query = {"bucketSize": "hour", "lastN": 12}
    with client(sim) as api:
        one, other = create(api), create(api, name="elchat-otra")
        sim.sleep(3 * 3600)
        api.delete(f"/v2/pods/{one}")
        assert api.get("/v2/billing/pods", params=query).json()["records"] == []
        sim.sleep(6 * 3600)
        told = api.get("/v2/billing/pods", params={**query, "podId": one}).json()
        assert told["metadata"]["uniquePodCount"] == 1
        assert len(told["records"]) in (3, 4)
        assert told["metadata"]["totals"]["totalAmount"] == pytest.approx(sim.ledger.dollars(one))
        all_told = api.get("/v2/billing/pods", params=query).json()["metadata"]["totals"]
        assert all_told["totalAmount"] < sim.ledger.dollars()
        assert all_told["diskAmount"] > 0
        api.delete(f"/v2/pods/{other}")


def test_a_window_is_asked_for_in_one_way():
    sim = simulator()
    with client(sim) as api:
        both = {"lastN": 2, "startTime": "2026-11-01T00:00:00Z"}
        assert api.get("/v2/billing/pods", params=both).status_code == 400
        assert api.get("/v2/billing/pods", params={"bucketSize": "siglo"}).status_code == 422
        assert api.get("/v2/billing/pods", params={"lastN": 0}).status_code == 422


@pytest.mark.parametrize("size", ["hour", "day", "week", "month", "year"])
def test_buckets_touch_and_hold_the_present(size):
    now = simulator().clock.now() + 123_456
    buckets = list(Window({"bucketSize": size, "lastN": "5"}, now).buckets())
    assert len(buckets) == 5
    assert buckets[-1][0] <= now < buckets[-1][1]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(buckets))


def test_prices_can_be_made_to_run_fast():
    sim = simulator({"money": {"prices_factor": 3600.0}, "account": {"balance_usd": 1e6,
                     "spend_limit_usd_per_h": 1e6}, "latency_s": 0.0})  # fmt: skip
    with client(sim) as api:
        create(api)
        sim.sleep(1)
        assert sim.ledger.dollars() == pytest.approx(GPU, rel=1e-3)
