"""Every fault a script can switch on, seen from a client and from inside the pod."""

from __future__ import annotations

import json

import httpx
import pytest

from elchat_sim import ContainerExit, FaultScriptError, load, parse
from elchat_sim.faults import CAPACITY_TEXTS
from tests.sim_tools import L40S, POD, boot, client, create, simulator

A40 = {"id": "NVIDIA A40", "count": 1}


# ---- scripts


def test_a_misspelt_key_is_named_with_the_right_one(tmp_path):
    path = tmp_path / "guion.json"
    path.write_text(json.dumps({"lifecycle": {"pul_s": 3}}))
    with pytest.raises(FaultScriptError, match=r"pul_s.*quisiste decir «pull_s»"):
        load(path)
    path.write_text("{")
    with pytest.raises(FaultScriptError, match="no es JSON válido"):
        load(path)
    with pytest.raises(FaultScriptError, match="no se admite"):
        parse({"create": [{"kind": "lluvia"}]})


# ---- create


def test_capacity_with_each_of_its_texts():
    # Each fault counts only the calls that the ones before it let through.
    texts = range(len(CAPACITY_TEXTS))
    sim = simulator({"create": [{"kind": "capacity", "calls": [1], "text": n} for n in texts]})
    with client(sim) as api:
        for text in CAPACITY_TEXTS:
            answer = api.post("/v2/pods", json=POD)
            assert (answer.status_code, answer.json()["detail"]) == (400, text)
        assert api.post("/v2/pods", json=POD).status_code == 201


def test_capacity_for_one_gpu_cloud_or_centre():
    sim = simulator(
        {
            "create": [
                {"kind": "capacity", "gpu": L40S},
                {"kind": "capacity", "cloud": "COMMUNITY"},
                {"kind": "capacity", "data_center": "EU-RO-1"},
            ]
        }
    )
    with client(sim) as api:
        query = {"include": "AVAILABILITY", "product": "POD"}
        assert api.get(f"/v2/catalog/gpus/{L40S}", params=query).json()["availability"] == "HIGH"
        assert api.post("/v2/pods", json=POD).status_code == 400
        community = {**POD, "gpu": A40, "cloud": "COMMUNITY"}
        assert api.post("/v2/pods", json=community).status_code == 400
        centre = {**POD, "gpu": A40, "dataCenterIds": ["EU-RO-1"]}
        assert api.post("/v2/pods", json=centre).status_code == 400
        assert api.post("/v2/pods", json={**POD, "gpu": A40}).status_code == 201


@pytest.mark.parametrize(
    ("kind", "status"), [("balance", 402), ("forbidden_pool", 403), ("rate_limit", 429)]
)
def test_other_refusals_of_create(kind, status):
    sim = simulator({"create": [{"kind": kind, "calls": [1]}]})
    with client(sim) as api:
        answer = api.post("/v2/pods", json=POD)
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status == 429)
        assert sim.live_pods() == []


@pytest.mark.parametrize("is_created", [True, False])
def test_a_5xx_with_and_without_a_pod(is_created):
    fault = {"kind": "server_error", "status": 502, "calls": [1], "is_pod_created": is_created}
    sim = simulator({"create": [fault]})
    with client(sim) as api:
        assert api.post("/v2/pods", json=POD).status_code == 502
        names = [pod["name"] for pod in api.get("/v2/pods").json()["pods"]]
    assert names == ([POD["name"]] if is_created else [])


def test_a_create_that_hangs_leaves_a_pod_behind():
    sim = simulator({"create": [{"kind": "hang", "hang_s": 300, "is_pod_created": True}]})
    with client(sim, timeout=20.0) as api:
        before = sim.clock.now()
        with pytest.raises(httpx.ReadTimeout):
            api.post("/v2/pods", json=POD)
        assert sim.clock.now() - before == pytest.approx(20.2)
        assert len(api.get("/v2/pods").json()["pods"]) == 1


def test_prices_change_between_the_quote_and_the_create():
    change = {"factor": 1.5, "gpu": L40S, "after_catalog_reads": 2}
    sim = simulator({"catalog": {"price_changes": [change]}})
    with client(sim) as api:
        quotes = [api.get(f"/v2/catalog/gpus/{L40S}").json()["price"]["secure"] for _ in range(2)]
        assert quotes == [1.09, pytest.approx(1.635)]
        assert api.post("/v2/pods", json=POD).json()["cost"] == pytest.approx(1.635)


# ---- requests


def test_the_ways_a_request_fails():
    kinds = ["status", "hang", "drop", "unreachable", "null", "html"]
    faults = [{"kind": kind, "method": "GET", "path": "/v2/pods/*", "calls": [1]} for kind in kinds]
    sim = simulator({"requests": faults})
    with sim.client() as api:
        pod_id = create(api)
        path = f"/v2/pods/{pod_id}"
        assert api.get(path).status_code == 503
        with pytest.raises(httpx.ReadTimeout):
            api.get(path)
        with pytest.raises(httpx.RemoteProtocolError):
            api.get(path)
        with pytest.raises(httpx.ConnectError):
            api.get(path)
        assert api.get(path).json() is None
        assert "<html>" in api.get(path).text
        assert api.get(path).status_code == 200


def test_a_delete_that_fails_may_have_worked():
    fault = {"kind": "drop", "method": "DELETE", "has_effect": True}
    sim = simulator({"requests": [fault]})
    with client(sim) as api:
        pod_id = create(api)
        with pytest.raises(httpx.RemoteProtocolError):
            api.delete(f"/v2/pods/{pod_id}")
        assert api.get(f"/v2/pods/{pod_id}").status_code == 404
        assert sim.live_pods() == []


def test_an_outage_has_its_hours_and_its_callers():
    outage = {"kind": "status", "from_s": 100, "until_s": 200, "caller": "pod"}
    sim = simulator({"requests": [outage]})
    with client(sim) as api:
        pod_id = create(api)
        key = sim.world.pods[pod_id].key
        with client(sim, key) as inside:
            assert inside.get(f"/v2/pods/{pod_id}").status_code == 200
            sim.sleep(120)
            assert inside.get(f"/v2/pods/{pod_id}").status_code == 503
            assert api.get(f"/v2/pods/{pod_id}").status_code == 200
            sim.sleep(100)
            assert inside.get(f"/v2/pods/{pod_id}").status_code == 200


# ---- lifecycle


def test_a_pod_grows_up_in_order():
    sim = simulator(
        {
            "lifecycle": {
                "provision_s": 10, "pull_s": 60, "start_s": 10, "ssh_direct_delay_s": 20,
                "sshd_delay_s": 40, "runtime_empty_s": 10,
            }
        }
    )  # fmt: skip
    seen = []
    with client(sim) as api:
        pod_id = create(api)
        for _ in range(160):
            pod = api.get(f"/v2/pods/{pod_id}").json()
            shown = pod["runtime"]
            runtime = "null" if shown is None else "full" if shown else "{}"
            direct = pod["ssh"]["direct"]
            sshd = None
            if direct:
                try:
                    sim.connect(direct["host"], direct["port"])
                    sshd = True
                except ConnectionRefusedError:
                    sshd = False
            state = (pod["status"], runtime, pod["ssh"]["proxy"] is not None, sshd)
            if not seen or seen[-1] != state:
                seen.append(state)
            sim.sleep(1)
    assert seen == [
        ("PROVISIONING", "null", False, None),
        ("STARTING", "null", True, None),
        ("RUNNING", "{}", True, None),
        ("RUNNING", "full", True, None),
        ("RUNNING", "full", True, False),
        ("RUNNING", "full", True, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stuck", "status"),
    [("PROVISIONING", "PROVISIONING"), ("STARTING", "STARTING"), ("no_ssh_direct", "RUNNING")],
)
def test_pods_that_never_get_ready(stuck, status):
    sim = simulator({"pods": [{"pod": 1, "lifecycle": {"stuck_in": stuck}}]})
    with client(sim) as api:
        pod_id = create(api)
        sim.sleep(7200)
        pod = api.get(f"/v2/pods/{pod_id}").json()
        assert pod["status"] == status
        assert pod["ssh"]["direct"] is None
        assert sim.ledger.dollars(pod_id) > 2.0  # billed all the same
        assert boot(sim, api)["status"] == "RUNNING"  # the rule was for the first one


def test_an_sshd_that_never_listens():
    sim = simulator({"lifecycle": {"stuck_in": "no_sshd"}})
    with client(sim) as api:
        direct = boot(sim, api)["ssh"]["direct"]
        sim.sleep(3600)
        with pytest.raises(ConnectionRefusedError):
            sim.connect(direct["host"], direct["port"])


@pytest.mark.parametrize(
    ("error", "text"), [("toomanyrequests", "toomanyrequests"), ("cuda", "cuda>=13.0")]
)
def test_images_that_do_not_start_say_so_in_the_system_log(error, text):
    sim = simulator({"lifecycle": {"image_error": error}})
    with client(sim, timeout=5.0) as api:
        pod_id = create(api)
        sim.sleep(600)
        assert api.get(f"/v2/pods/{pod_id}").json()["status"] == "STARTING"
        assert text in "".join(line.line for line in sim.world.pods[pod_id].logs)


def test_a_pod_in_error_can_only_be_started_or_ended():
    sim = simulator({"lifecycle": {"error_after_s": 100}})
    with client(sim) as api:
        pod = boot(sim, api)
        sim.sleep(200)
        pod = api.get(f"/v2/pods/{pod['id']}").json()
        assert (pod["status"], pod["actions"]) == ("ERROR", ["start", "terminate"])


def test_the_port_changes_with_each_start_and_is_stale_for_a_while():
    sim = simulator({"lifecycle": {"stale_port_s": 90, "ssh_direct_delay_s": 0}})
    with client(sim) as api:
        pod = boot(sim, api)
        path = f"/v2/pods/{pod['id']}"
        old = pod["ssh"]["direct"]
        api.post(f"{path}/action", json={"action": "restart"})
        sim.sleep(30)
        assert api.get(path).json()["ssh"]["direct"] == old
        with pytest.raises(ConnectionRefusedError):
            sim.connect(old["host"], old["port"])
        sim.sleep(90)
        new = api.get(path).json()["ssh"]["direct"]
        assert new["port"] != old["port"]
        assert sim.connect(new["host"], new["port"]).pod.id == pod["id"]


@pytest.mark.parametrize("view", ["null", "TERMINATED"])
def test_the_end_of_a_pod_takes_a_while_to_be_seen(view):
    sim = simulator({"lifecycle": {"teardown_s": 30, "teardown_view": view}})
    with sim.client() as api:
        pod_id = create(api)
        api.delete(f"/v2/pods/{pod_id}")
        seen = api.get(f"/v2/pods/{pod_id}").json()
        assert (seen if view == "null" else seen["status"]) == (None if view == "null" else view)
        sim.sleep(31)
        assert api.get(f"/v2/pods/{pod_id}").status_code == 404


def test_exited_pods_are_listed_and_may_still_show_a_cost():
    for is_shown in (False, True):
        sim = simulator({"lifecycle": {"is_exited_cost_shown": is_shown}})
        with client(sim) as api:
            pod = boot(sim, api)
            api.post(f"/v2/pods/{pod['id']}/action", json={"action": "stop"})
            listed = api.get("/v2/pods").json()["pods"]
            assert [(p["status"], p["cost"] > 0) for p in listed] == [("EXITED", is_shown)]


# ---- containers


def test_a_container_that_ends_begins_again_with_a_clean_disk():
    sim = simulator()
    starts = []

    class Program:
        def __init__(self, pod):
            self.pod = pod
            starts.append((pod.exists("/tmp/mio"), pod.exists("/workspace/guardado")))

        def tick(self, now):
            self.pod.write("/tmp/mio", "x")
            self.pod.write("/workspace/guardado", "x")
            if len(starts) < 3:
                raise ContainerExit(1)
            return None

    sim.on_container_start(Program)
    with client(sim) as api:
        pod = boot(sim, api)
        sim.sleep(60)
        assert starts == [(False, False), (False, True), (False, True)]
        assert sim.world.pods[pod["id"]].restarts == 2
        assert api.get(f"/v2/pods/{pod['id']}").json()["status"] == "RUNNING"
        api.post(f"/v2/pods/{pod['id']}/action", json={"action": "stop"})
        api.post(f"/v2/pods/{pod['id']}/action", json={"action": "start"})
        sim.sleep(60)
        assert starts[-1] == (False, True)


def test_a_command_without_start_sh_has_no_sshd_and_loops():
    sim = simulator()
    with client(sim) as api:
        pod_id = create(api, args="bash -c 'echo hola'")
        sim.sleep(300)
        assert sim.world.pods[pod_id].restarts > 5
        assert api.get(f"/v2/pods/{pod_id}").json()["ssh"]["direct"] is None
        assert sim.ledger.dollars(pod_id) == pytest.approx(300 * 1.09 / 3600, rel=0.02)


@pytest.mark.parametrize(
    ("args", "is_right"),
    [
        ("bash -c echo vigía & exec /start.sh", False),
        ("bash -c 'echo vigía & exec /start.sh'", True),
    ],
)
def test_a_naive_join_of_the_command_runs_the_wrong_thing(args, is_right):
    sim = simulator()
    with client(sim) as api:
        pod_id = create(api, args=args)
        sim.sleep(300)
        assert (sim.world.pods[pod_id].restarts == 0) is is_right


def test_pid_1_sees_what_runpod_injects():
    seen = {}
    sim = simulator()
    sim.on_container_start(lambda pod: seen.update(pod.env))
    with client(sim) as api:
        pod = boot(sim, api, env={**POD["env"], "RUNPOD_API_KEY": "la mía"})
    assert seen["RUNPOD_POD_ID"] == pod["id"]
    assert seen["RUNPOD_API_KEY"] == sim.world.pods[pod["id"]].key
    assert seen["RUNPOD_TCP_PORT_22"] == str(pod["ssh"]["direct"]["port"])
    assert pod["env"]["RUNPOD_API_KEY"] == "la mía"  # the echo shows what was asked


def test_without_a_public_key_there_is_no_sshd():
    sim = simulator()
    with client(sim) as api:
        direct = boot(sim, api, env={})["ssh"]["direct"]
        with pytest.raises(ConnectionRefusedError):
            sim.connect(direct["host"], direct["port"])


@pytest.mark.parametrize("grace", [0, 5, 10])
def test_sigterm_with_its_grace(grace):
    heard = []

    class Program:
        def tick(self, now):
            return 10.0

        def on_sigterm(self, grace_s):
            heard.append(grace_s)

    sim = simulator({"lifecycle": {"sigterm_grace_s": grace}})
    sim.on_container_start(lambda pod: Program())
    with client(sim) as api:
        pod = boot(sim, api)
        api.delete(f"/v2/pods/{pod['id']}")
    assert heard == ([grace] if grace else [])


# ---- loss


@pytest.mark.parametrize(
    ("outcome", "status"), [("exited", 200), ("gone", 404), ("terminated", 200)]
)
def test_hosts_die_in_three_ways(outcome, status):
    event = {"kind": "host_dies", "after_s": 1000, "outcome": outcome}
    sim = simulator({"events": [event]})
    with client(sim) as api:
        pod = boot(sim, api)
        sim.sleep(1100)
        answer = api.get(f"/v2/pods/{pod['id']}")
        assert answer.status_code == status
        if outcome == "exited":
            assert answer.json()["status"] == "EXITED"
            again = api.post(f"/v2/pods/{pod['id']}/action", json={"action": "start"})
            assert again.status_code == 400
            assert "not enough free GPUs" in again.json()["detail"]
        if outcome == "terminated":
            assert answer.json()["status"] == "TERMINATED"
        assert len(sim.live_pods()) == (1 if outcome == "exited" else 0)


def test_the_network_drops_and_comes_back():
    event = {"kind": "network_drop", "after_s": 100, "duration_s": 300}
    sim = simulator({"events": [event]})
    calls = []

    class Guard:
        def __init__(self, pod):
            self.pod = pod

        def tick(self, now):
            try:
                calls.append(self.pod.api.get(f"/v2/pods/{self.pod.pod.id}").status_code)
            except httpx.ConnectError:
                calls.append("down")
            return 50.0

    sim.on_container_start(Guard)
    with client(sim) as api:
        direct = boot(sim, api)["ssh"]["direct"]
        where = direct["host"], direct["port"]
        assert sim.connect(*where)
        sim.sleep(100)
        with pytest.raises(TimeoutError):
            sim.connect(*where)
        sim.sleep(300)
        assert sim.connect(*where)
    assert calls[:2] == [200, 200]
    assert calls.count("down") == 6
    assert calls[-1] == 200


def test_gpus_that_break_and_disks_that_fill():
    events = [{"kind": "gpu_breaks", "after_s": 60}, {"kind": "disk_full", "after_s": 60}]
    sim = simulator({"events": events})
    with client(sim) as api:
        direct = boot(sim, api)["ssh"]["direct"]
        inside = sim.connect(direct["host"], direct["port"])
        inside.write("/workspace/antes", b"1")
        assert inside.is_gpu_healthy
        sim.sleep(60)
        assert not inside.is_gpu_healthy
        with pytest.raises(OSError, match="No space left"):
            inside.write("/workspace/despues", b"1")
        assert inside.read("/workspace/antes") == b"1"


def test_a_disk_smaller_than_it_says():
    sim = simulator({"lifecycle": {"disk_limit_mib": 1}})
    with client(sim) as api:
        direct = boot(sim, api)["ssh"]["direct"]
        inside = sim.connect(direct["host"], direct["port"])
        inside.write("/workspace/a", bytes(600_000))
        inside.write("/workspace/a", bytes(700_000))  # replaced, not added
        with pytest.raises(OSError, match="No space left"):
            inside.write("/workspace/b", bytes(600_000))


# ---- the pod's own key


@pytest.mark.parametrize("right", ["get", "delete", "stop", "terminate", "graphql"])
def test_each_right_of_the_pod_key(right):
    def attempt(api, pod_id):
        path = f"/v2/pods/{pod_id}"
        mutation = f'mutation {{ podTerminate(input: {{podId: "{pod_id}"}}) }}'
        return {
            "get": lambda: api.get(path),
            "delete": lambda: api.delete(path),
            "stop": lambda: api.post(f"{path}/action", json={"action": "stop"}),
            "terminate": lambda: api.post(f"{path}/action", json={"action": "terminate"}),
            "graphql": lambda: api.post("/graphql", json={"query": mutation}),
        }[right]()

    for is_allowed in (True, False):
        sim = simulator({"pod_key": {right: is_allowed}})
        with client(sim) as account:
            pod_id = create(account)
            with client(sim, sim.world.pods[pod_id].key) as api:
                answer = attempt(api, pod_id)
        if right == "graphql":
            assert answer.status_code == 200
            assert ("errors" in answer.json()) is not is_allowed
        else:
            assert (answer.status_code == 403) is not is_allowed
        is_ending = right in ("delete", "terminate", "graphql")
        assert (sim.live_pods() == []) is (is_ending and is_allowed)


def test_the_pod_key_reaches_nothing_else():
    sim = simulator()
    with client(sim) as account:
        mine, other = create(account), create(account, name="elchat-otra")
        with client(sim, sim.world.pods[mine].key) as api:
            for path in (
                "/v2/pods",
                f"/v2/pods/{other}",
                "/v2/billing/pods",
                "/v2/account/ssh-keys",
            ):
                assert api.get(path).status_code == 403
            assert api.delete(f"/v2/pods/{other}").status_code == 403
            assert api.post("/v2/pods", json=POD).status_code == 403
            answer = api.post("/graphql", json={"query": "{ myself { clientBalance } }"}).json()
            assert answer["errors"][0]["extensions"]["code"] == "UNAUTHORIZED"
            assert api.delete(f"/v2/pods/{mine}").status_code == 204
            assert api.get(f"/v2/pods/{mine}").status_code == 401  # the key went with the pod


# ---- the rest of the script's keys


def test_stock_prices_and_drivers_are_the_scripts():
    catalog = {
        "stock": {"*": "LOW", L40S: "NONE"},
        "prices": {"NVIDIA A40": {"SECURE": 7.0, "COMMUNITY": 6.0}},
        "cuda": {"NVIDIA A40": "13.0"},
        "price_changes": [{"factor": 2.0, "at_s": 3600}],
        "has_unknown_gpu": True,
    }
    sim = simulator({"catalog": catalog})
    query = {"include": "AVAILABILITY", "product": "POD"}
    with client(sim) as api:

        def found():
            listed = api.get("/v2/catalog/gpus", params=query).json()["gpus"]
            return {gpu["id"]: gpu for gpu in listed}

        before = found()
        assert before[L40S]["availability"] == "NONE"
        assert before["NVIDIA L4"]["availability"] == "LOW"
        assert before["NVIDIA A40"]["price"] == {"secure": 7.0, "community": 6.0}
        assert before["unknown"]["manufacturer"] == "UNKNOWN"
        assert api.post("/v2/pods", json=POD).status_code == 400
        recent = {**A40, "minCudaVersion": "13.0"}
        pod_id = create(api, gpu=recent)
        sim.sleep(3600)
        assert found()["NVIDIA A40"]["price"]["secure"] == 14.0
        assert sim.ledger.rate(pod_id) == pytest.approx(7.0, abs=0.1)  # its price was agreed


def test_keys_edge_and_waits_are_the_scripts():
    sim = simulator(
        {
            "account": {"key": "otra", "ssh_keys": ["ssh-ed25519 AAAA x"]},
            "is_user_agent_checked": False,
            "requests": [{"kind": "status", "status": 429, "retry_after_s": 7, "calls": [1]}],
            "events": [{"kind": "stopped", "after_s": 0}],
            "logs": {"system_kept_s": 10},
            "lifecycle": {"restart_s": 50},
        }
    )
    with client(sim, timeout=1.0) as api:
        assert api.get("/v2/pods").headers["retry-after"] == "7"
        assert api.get("/v2/pods", headers={"user-agent": "Python-urllib/3"}).status_code == 200
        assert api.get("/v2/account/ssh-keys").json()["keys"] == ["ssh-ed25519 AAAA x"]
        pod_id = create(api, args="bash -c true")
        sim.sleep(200)
        assert api.get(f"/v2/pods/{pod_id}").json()["status"] == "EXITED"
        api.post(f"/v2/pods/{pod_id}/action", json={"action": "start"})
        sim.sleep(210)  # 10 to start, then 1 of life for every 50 of waiting
        assert sim.world.pods[pod_id].restarts == 4
        api.delete(f"/v2/pods/{pod_id}")
        sim.sleep(11)
        assert api.get(f"/v2/pods/{pod_id}/logs").status_code == 404
