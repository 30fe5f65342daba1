"""The simulator as a server and as a process: same answers, real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from elchat_sim import ACCOUNT_KEY, Simulator, parse
from elchat_sim.openapi import CheckedTransport, shared_checker
from tests.sim_tools import L40S, POD, create

TESTS = Path(__file__).parents[1]


def http_client(sim: Simulator, **options) -> httpx.Client:
    checker = shared_checker()
    inner: httpx.BaseTransport = httpx.HTTPTransport()
    return httpx.Client(
        base_url=sim.base_url,
        transport=CheckedTransport(inner, checker) if checker else inner,
        headers={"authorization": f"Bearer {ACCOUNT_KEY}", "user-agent": "elchat/0"},
        **options,
    )


@pytest.fixture(scope="module")
def served():
    faults = {
        "create": [{"kind": "hang", "hang_s": 20, "is_pod_created": True, "cloud": "COMMUNITY"}],
        "requests": [{"kind": "drop", "path": "/v2/catalog/cpus"}],
    }
    with Simulator(parse(faults), port=0) as sim:
        yield sim


def test_the_same_contract_over_a_socket(served):
    with http_client(served) as api:
        pod_id = create(api)
        assert api.get(f"/v2/pods/{pod_id}").json()["name"] == POD["name"]
        assert api.get("/v2/catalog/gpus/NVIDIA%20L40S").json()["id"] == L40S
        assert api.post("/v2/pods", json={"name": "x"}).status_code == 422
        assert api.post("/v2/pods", content="{").status_code == 400
        assert api.put("/v2/pods").status_code == 405
        assert api.get("/v2/pods", headers={"authorization": ""}).status_code == 401
        assert api.get("/v1/pods").status_code == 410
        assert api.get("/v2/pods", headers={"user-agent": "Python-urllib/3.12"}).status_code == 403
        gone = api.delete(f"/v2/pods/{pod_id}")
        assert (gone.status_code, gone.content) == (204, b"")
        assert gone.headers["ratelimit"]
        assert api.get(f"/v2/pods/{pod_id}").status_code == 404


def test_hanging_and_breaking_over_a_socket(served):
    with http_client(served, timeout=0.5) as api:
        with pytest.raises(httpx.ReadTimeout):
            api.post("/v2/pods", json={**POD, "cloud": "COMMUNITY"})
        with pytest.raises(httpx.RemoteProtocolError):
            api.get("/v2/catalog/cpus")
        [left] = api.get("/v2/pods").json()["pods"]
        api.delete(f"/v2/pods/{left['id']}")


def test_logs_are_streamed_as_they_come(served):
    with http_client(served, timeout=5.0) as api:
        pod_id = create(api)
        pod = served.world.pods[pod_id]
        with api.stream("GET", f"/v2/pods/{pod_id}/logs") as answer:
            lines = answer.iter_lines()
            assert answer.headers["content-type"].startswith("text/event-stream")
            for text in ("uno", "dos"):
                served.world.log(pod, "container", text)
                found = next(line for line in lines if line.startswith("data: "))
                assert json.loads(found[6:])["line"] == text
        api.delete(f"/v2/pods/{pod_id}")


@pytest.mark.filterwarnings("ignore")
def test_a_process_of_its_own(tmp_path):
    faults = tmp_path / "guion.json"
    faults.write_text(json.dumps({"account": {"key": "otra"}, "lifecycle": {"provision_s": 0}}))
    command = [sys.executable, "-m", "elchat_sim", "--virtual", "--faults", str(faults)]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        [*command, "--state", str(tmp_path)], stdout=subprocess.PIPE, env=env, text=True
    ) as process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        headers = {"authorization": f"Bearer {started['key']}"}
        with httpx.Client(base_url=started["base_url"], headers=headers) as api:
            pod_id = create(api)
            deadline = time.monotonic() + 10  # the computer's clock moves it
            while api.get(f"/v2/pods/{pod_id}").json()["status"] != "STARTING":
                assert time.monotonic() < deadline
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_bad_script_is_one_sentence(tmp_path):
    faults = tmp_path / "guion.json"
    faults.write_text('{"cuenta": {}}')
    done = subprocess.run(
        [sys.executable, "-m", "elchat_sim", "--faults", str(faults)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)}, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "la clave «cuenta» no existe" in done.stderr
    assert "Traceback" not in done.stderr
