"""The client against a simulator that is held to RunPod's own specification."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest

from cli import runpod_client
from cli.runpod_client import RunpodClient
from cli.runpod_models import Pod
from elchat.errors import AuthError
from elchat_sim import FaultScript, Simulator
from elchat_sim.openapi import checked

BODY = {
    "name": "elchat-x-1-d1", "image": "imagen", "gpu": {"id": "NVIDIA A40", "count": 1},
    "ports": ["22/tcp"], "env": {"PUBLIC_KEY": "ssh-ed25519 AAAA"}, "disk": 20,
}  # fmt: skip


def of(**script: Any) -> tuple[Simulator, RunpodClient]:
    sim = Simulator(FaultScript.model_validate(script))
    key = sim.faults.account.key
    return sim, RunpodClient(key, transport=checked(sim.transport()), sleep=sim.sleep)


def test_a_pod_from_its_creation_to_its_deletion():
    sim, client = of()
    pod = client.create_pod(BODY)
    assert pod.name == BODY["name"]
    assert pod.endpoint is None
    sim.sleep(300)
    found = client.get_pod(pod.id)
    assert found is not None
    assert (found.status, found.endpoint is not None) == ("RUNNING", True)
    assert [item.id for item in client.list_pods()] == [pod.id]
    assert client.delete_pod(pod.id)
    assert client.get_pod(pod.id) is None
    assert not client.delete_pod(pod.id)


def test_prices_stock_balance_and_bill():
    sim, client = of(account={"balance_usd": 12.5}, money={"billing_lag_h": 0})
    prices = {gpu.id: gpu.usd_per_h("community") for gpu in client.gpus("community")}
    assert prices["NVIDIA GeForce RTX 4090"] == 0.34
    assert prices.get("NVIDIA L4") is None
    account = client.account()
    assert account is not None
    assert account.clientBalance == pytest.approx(12.5)
    pod = client.create_pod(BODY)
    sim.sleep(7200)
    client.delete_pod(pod.id)
    billed = sum(record.totalAmount for record in client.pod_billing(pod.id))
    assert billed == pytest.approx(sim.ledger.dollars(), rel=0.01)


def test_a_balance_that_cannot_be_read_is_unknown():
    _, client = of(requests=[{"kind": "status", "path": "/graphql", "status": 410}])
    assert client.account() is None


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"create": [{"kind": "capacity"}]}, runpod_client.NoCapacity),
        ({"create": [{"kind": "balance"}]}, runpod_client.NoBalance),
        ({"create": [{"kind": "forbidden_pool"}]}, runpod_client.Forbidden),
        ({"create": [{"kind": "server_error"}]}, runpod_client.Transient),
        ({"create": [{"kind": "hang", "hang_s": 300}]}, runpod_client.Transient),
        ({"create": [{"kind": "rate_limit", "retry_after_s": 7}]}, runpod_client.RateLimited),
    ],
)
def test_each_refusal_has_its_type_and_creating_is_never_repeated(script, error):
    sim, client = of(**script)
    with pytest.raises(error) as caught:
        client.create_pod(BODY)
    assert len([e for e in sim.events if e.kind == "created"]) <= 1
    if error is runpod_client.RateLimited:
        assert caught.value.retry_after_s == 7.0


def test_a_broken_request_is_told_with_its_reasons():
    _, client = of()
    with pytest.raises(runpod_client.BrokenContract, match="raro"):
        client.create_pod({**BODY, "raro": 1})


def test_a_wrong_key():
    sim, _ = of()
    with pytest.raises(runpod_client.AuthRefused):
        RunpodClient("otra_clave_cualquiera", transport=sim.transport()).list_pods()


@pytest.mark.parametrize("key", ["", "corta", "con espacios dentro", "salto\nde línea"])
def test_what_cannot_be_a_key_is_refused_without_repeating_it(key):
    with pytest.raises(AuthError) as caught:
        RunpodClient(key)
    assert not key or key not in str(caught.value)


def test_reads_wait_as_long_as_they_are_told():
    sim, client = of(
        requests=[{"kind": "status", "status": 429, "retry_after_s": 9, "calls": [1, 2]}]
    )
    began = sim.clock.now()
    assert client.list_pods() == []
    assert 18 <= sim.clock.now() - began < 30


def test_a_silence_ends_in_a_transient_error_within_its_time():
    sim, client = of(requests=[{"kind": "hang", "hang_s": 10_000}])
    began = sim.clock.now()
    with pytest.raises(runpod_client.Transient, match="a tiempo"):
        client.list_pods()
    assert sim.clock.now() - began < 120


def test_pages_are_followed_to_the_end():
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["user-agent"].startswith("elchat/")
        cursor = request.url.params.get("cursor")
        more = {"nextCursor": "dos", "hasNextPage": True} if cursor is None else {}
        pod = {"id": cursor or "uno", "name": "n", "status": "NUEVO", "campo_nuevo": [1]}
        return httpx.Response(200, json={"pods": [pod], "pagination": more})

    pods = RunpodClient("clave_de_prueba", transport=httpx.MockTransport(answer)).list_pods()
    assert [(pod.id, pod.status) for pod in pods] == [("uno", "NUEVO"), ("dos", "NUEVO")]


def test_the_null_of_a_teardown_is_gone():
    answer = httpx.MockTransport(lambda request: httpx.Response(200, text="null"))
    assert RunpodClient("clave_de_prueba", transport=answer).get_pod("x") is None


def test_a_page_that_is_not_json_is_transient():
    answer = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    client = RunpodClient("clave_de_prueba", transport=answer, sleep=lambda s: None)
    with pytest.raises(runpod_client.Transient, match="JSON"):
        client.list_pods()


def test_a_network_volume_from_its_creation_to_its_deletion():
    _, client = of()
    made = client.create_volume("datos", 50, "EU-RO-1")
    assert (made.name, made.size, made.dataCenter) == ("datos", 50, "EU-RO-1")
    assert client.grow_volume(made.id, 80).size == 80
    assert [(item.id, item.size) for item in client.volumes()] == [(made.id, 80)]
    with pytest.raises(runpod_client.NoCapacity, match="increased"):
        client.grow_volume(made.id, 20)
    assert client.delete_volume(made.id)
    assert client.volumes() == []
    assert not client.delete_volume(made.id)


@pytest.mark.parametrize("ahead_s", [0.0, 7200.0, -7200.0])
def test_the_clock_of_runpod_is_noticed(ahead_s: float):
    sim, _ = of()
    client = RunpodClient(
        sim.faults.account.key,
        transport=sim.transport(),
        clock=lambda: sim.clock.now() - ahead_s,
    )
    assert client.skew_s == 0.0
    client.list_pods()
    assert client.skew_s == pytest.approx(ahead_s, abs=2.0)


def test_log_lines_until_silence():
    sim, client = of()
    pod = client.create_pod(BODY)
    sim.sleep(200)
    stream = client.pod_logs(pod.id, source="system", read_timeout_s=5)
    assert any("create container" in line.line for line in itertools.islice(stream, 5))


def test_nested_fields_may_be_missing():
    assert Pod.model_validate({"id": "x"}).endpoint is None
    assert Pod.model_validate({"id": "x", "ssh": {"direct": None}}).endpoint is None
