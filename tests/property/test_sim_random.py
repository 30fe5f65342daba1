"""Whatever the script, the simulator's books balance and its contract holds."""

from __future__ import annotations

import contextlib
import random

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elchat_sim import Simulator, fault_scripts, random_faults
from elchat_sim.catalog import gpus
from elchat_sim.openapi import shared_checker
from tests.sim_tools import L40S, POD, client

SLOW = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)


def live_a_while(sim: Simulator, seed: int) -> None:
    """A careless client: random calls at random moments, blind to every failure."""
    rng = random.Random(seed)
    with sim.client(timeout=20.0) as api:
        for _ in range(30):
            ids = list(sim.world.pods)
            path = f"/v2/pods/{rng.choice(ids)}" if ids else "/v2/pods"
            gpu = {"id": rng.choice(list(gpus())), "count": 1}
            action = {"action": rng.choice(["start", "stop", "restart", "terminate"])}
            calls = [
                lambda gpu=gpu: api.post("/v2/pods", json={**POD, "gpu": gpu}),
                lambda path=path: api.get(path),
                lambda path=path, action=action: api.post(f"{path}/action", json=action),
                lambda path=path: api.delete(path),
                lambda: api.get("/v2/catalog/gpus"),
            ]
            with contextlib.suppress(httpx.TransportError):
                rng.choices(calls, weights=[2, 4, 2, 1, 1])[0]()
            sim.sleep(rng.expovariate(1 / 600))


@SLOW
@given(script=fault_scripts(), seed=st.integers(0, 2**32))
def test_money_only_goes_up_and_only_for_pods_that_live(script, seed):
    sim = Simulator(script)
    live_a_while(sim, seed)
    spent = [sim.ledger.dollars(at=sim.world.timeline.start + 60 * n) for n in range(400)]
    assert spent == sorted(spent)
    for pod in sim.world.pods.values():
        end = pod.deleted_at if pod.deleted_at is not None else sim.clock.now()
        most = (end - pod.created_at) / 3600 * (pod.compute_usd_per_h + 0.05)
        assert 0 <= sim.ledger.dollars(pod.id) <= most + 1e-9
        assert (sim.ledger.rate(pod.id) > 0) == pod.is_live
    total = script.account.balance_usd - sim.ledger.dollars()
    assert sim.world.balance == pytest.approx(total)
    for pod in list(sim.live_pods()):
        sim.world.terminate(pod)
    assert sim.ledger.rate() == 0


@SLOW
@given(script=fault_scripts(), seed=st.integers(0, 2**32))
def test_the_same_script_and_calls_give_the_same_story(script, seed):
    stories = []
    for _ in range(2):
        sim = Simulator(script)
        live_a_while(sim, seed)
        stories.append((sim.events, sim.ledger.dollars()))
    assert stories[0] == stories[1]


def test_a_seed_is_a_script_and_every_family_of_faults_comes_out():
    scripts = [random_faults(seed) for seed in range(300)]
    assert scripts == [random_faults(seed) for seed in range(300)]
    kinds = {fault.kind for script in scripts for fault in script.create}
    assert kinds == {"capacity", "server_error", "hang", "forbidden_pool", "rate_limit", "balance"}
    kinds = {fault.kind for script in scripts for fault in script.requests}
    assert kinds == {"status", "hang", "drop", "unreachable", "null", "html"}
    kinds = {event.kind for script in scripts for event in script.events}
    assert len(kinds) == 6
    assert {rule.lifecycle.stuck_in for script in scripts for rule in script.pods} >= {
        "PROVISIONING", "STARTING", "no_ssh_direct", "no_sshd",
    }  # fmt: skip
    assert any(not script.pod_key.delete for script in scripts)


# ---- the simulator refuses exactly what the specification refuses

odd = st.sampled_from(
    [None, 0, 1, -3, 2.5, True, "", "1", "12.8", "x", [], {}, ["12.8"], {"a": "b"}]
)
fields = st.dictionaries(
    st.sampled_from(
        ["name", "image", "gpu", "cpu", "cloud", "dataCenterIds", "disk", "mounts", "ports", "env",
         "args", "registry", "startSsh", "templateId", "globalNetworking", "raro"]
    ),
    odd,
    max_size=3,
)  # fmt: skip
gpu_fields = st.dictionaries(
    st.sampled_from(["id", "count", "allowedCudaVersions", "minCudaVersion", "raro"]),
    odd,
    max_size=2,
)
mounts = st.sampled_from(
    [
        {"persistent": {"size": 20, "path": "/w"}},
        {"persistent": {"size": 9, "path": "/w"}},
        {"persistent": {"size": 20}},
        {"persistent": None},
        {"network": []},
        {"network": [{"volumeId": "a", "path": "/n"}] * 2},
        {"raro": 1},
    ]
)


@pytest.mark.skipif(shared_checker() is None, reason="la especificación de RunPod no está a mano")
@settings(deadline=None, max_examples=120)
@given(changes=fields, gpu=gpu_fields, mount=st.none() | mounts)
def test_the_simulator_is_as_strict_as_the_specification(changes, gpu, mount):
    sim = Simulator()
    body = {**POD, "gpu": {"id": L40S, "count": 1, **gpu}, **changes}
    if mount is not None:
        body["mounts"] = mount
    with client(sim) as api:  # judged on the way: 2xx must be valid, 422 must not be
        answer = api.post("/v2/pods", json=body)
    assert answer.status_code in (201, 400, 402, 404, 422)


volume_fields = st.dictionaries(st.sampled_from(["name", "size", "dataCenter", "type"]), odd)


@pytest.mark.skipif(shared_checker() is None, reason="la especificación de RunPod no está a mano")
@settings(deadline=None, max_examples=60)
@given(changes=fields, volume=volume_fields, key=odd)
def test_changes_volumes_and_keys_are_as_strict_too(changes, volume, key):
    sim = Simulator()
    with client(sim) as api:
        pod_id = api.post("/v2/pods", json=POD).json()["id"]
        made = {"name": "v", "size": 10, "dataCenter": "US-KS-2"}
        volume_id = api.post("/v2/network-volumes", json=made).json()["id"]
        answers = [
            api.patch(f"/v2/pods/{pod_id}", json=changes),
            api.post(f"/v2/pods/{pod_id}/action", json={"action": key}),
            api.post("/v2/network-volumes", json={**made, **volume}),
            api.patch(f"/v2/network-volumes/{volume_id}", json=volume),
            api.put("/v2/account/ssh-keys", json={"keys": [key]}),
        ]
    assert {answer.status_code for answer in answers} <= {200, 201, 400, 409, 422}
