"""The simulator speaks RunPod's v2: shapes, refusals and headers, one by one."""

from __future__ import annotations

import httpx
import pytest

from elchat_sim import openapi
from tests.sim_tools import KEY, L40S, POD, boot, client, create, simulator

SPOT = "mutation { podRentInterruptable(input: {bidPerGpu: 0.2}) { id } }"


@pytest.fixture
def sim():
    return simulator()


@pytest.fixture
def api(sim):
    with client(sim) as found:
        yield found


def detail(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    return str(body["detail"])


def without(key: str) -> dict:
    return {name: value for name, value in POD.items() if name != key}


def test_a_created_pod_has_every_field_and_echoes_its_env(api):
    pod = api.post("/v2/pods", json={**POD, "env": {"SECRETO": "a la vista"}}).json()
    assert pod["status"] == "PROVISIONING"
    assert pod["actions"] == ["stop", "terminate"]
    assert pod["env"] == {"SECRETO": "a la vista"}
    assert pod["ssh"] == {"proxy": None, "direct": None}
    assert pod["runtime"] is None
    assert pod["cost"] == 1.09
    assert "cpu" not in pod


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({**POD, "gpuTypeIds": [L40S]}, "$: additional properties 'gpuTypeIds' not allowed"),
        ({**POD, "interruptible": True}, "$: additional properties 'interruptible' not allowed"),
        (without("name"), "$: missing property 'name'"),
        (without("image"), "$: missing property 'image'"),
        ({**POD, "gpu": {"count": 1}}, "$.gpu: missing property 'id'"),
        ({**POD, "gpu": {"id": L40S, "count": "1"}}, "$.gpu.count: Input should be"),
        ({**POD, "gpu": {"id": L40S, "count": 0}}, "$.gpu.count: Input should be"),
        ({**POD, "gpu": {"id": L40S, "count": 1, "minRamPerGpu": 8}}, "'minRamPerGpu' not allowed"),
        ({**POD, "gpu": {"id": L40S, "count": 1, "minCudaVersion": None}}, "got null"),
        ({**POD, "env": {"A": 1}}, "$.env.A: Input should be a valid string"),
        ({**POD, "disk": None}, "'disk': got null"),
        ({**POD, "mounts": {"persistent": {"size": 5, "path": "/w"}}}, "$.mounts.persistent.size"),
        ({**POD, "cloud": "ALL"}, "$.cloud: Input should be 'SECURE' or 'COMMUNITY'"),
        ({**POD, "cmd": ["bash"]}, "$: additional properties 'cmd' not allowed"),
    ],
)
def test_what_breaks_the_contract_is_a_422_with_errors(api, body, error):
    answer = api.post("/v2/pods", json=body)
    assert answer.status_code == 422
    assert detail(answer) == "Request validation failed."
    assert any(error in found for found in answer.json()["errors"]), answer.json()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {
                "mounts": {
                    "persistent": {"size": 20, "path": "/w"},
                    "network": [{"volumeId": "x", "path": "/n"}],
                }
            },
            "mutually exclusive",
        ),
        (
            {
                "gpu": {
                    "id": L40S, "count": 1, "allowedCudaVersions": ["12.8"],
                    "minCudaVersion": "12.4",
                }
            },
            "mutually exclusive",
        ),
        ({"gpu": {"id": L40S}}, "no longer any instances available"),
        ({"gpu": {"id": "RTX 4090", "count": 1}}, "no longer any instances available"),
        ({"gpu": {"id": L40S, "count": 1, "minCudaVersion": "12.11"}}, "required specifications"),
        ({"dataCenterIds": ["US-NADA-1"]}, "no available datacenter"),
        ({"cpu": {"id": "cpu3c", "vcpuCount": 2}}, "exactly one of gpu or cpu"),
    ],
)  # fmt: skip
def test_broken_rules_and_lack_of_machines_are_the_same_400(api, changes, text):
    answer = api.post("/v2/pods", json={**POD, **changes})
    assert answer.status_code == 400
    assert text in detail(answer)


def test_an_empty_list_of_cuda_versions_may_go_with_a_floor(api):
    gpu = {"id": L40S, "count": 1, "allowedCudaVersions": [], "minCudaVersion": "12.8"}
    assert api.post("/v2/pods", json={**POD, "gpu": gpu}).status_code == 201


def test_size_is_looked_at_before_the_key(sim):
    with client(sim, "otra") as api:
        big = {**POD, "env": {"RELLENO": "x" * 110_000}}
        assert api.post("/v2/pods", json=big).status_code == 413
        assert detail(api.post("/v2/pods", json=POD)) == "invalid bearer token"


def test_who_does_not_say_who_they_are(sim, api):
    answer = api.get("/v2/pods", headers={"authorization": ""})
    assert answer.status_code == 401
    assert detail(answer) == "missing bearer token"


def test_paths_and_methods(api):
    assert api.get("/v2/pods/nadie").status_code == 404
    assert detail(api.get("/v2/no-existe")) == "resource not found"
    answer = api.put("/v2/pods", json={})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"


def test_python_urllib_is_stopped_at_the_edge(api):
    answer = api.get("/v2/pods", headers={"user-agent": "Python-urllib/3.12"})
    assert answer.status_code == 403
    assert "1010" in answer.text


def test_templates(api):
    unknown = {"name": "x", "gpu": POD["gpu"], "templateId": "nada"}
    assert api.post("/v2/pods", json=unknown).status_code == 404
    body = {"name": "x", "gpu": POD["gpu"], "templateId": "simpytorch", "env": {"A": "1"}}
    pod = api.post("/v2/pods", json=body).json()
    assert pod["env"] == {"FROM_TEMPLATE": "1", "A": "1"}
    assert pod["template"] is None
    assert pod["mounts"] == {"persistent": {"size": 20, "path": "/workspace"}}


def test_actions_follow_the_state(sim, api):
    pod_id = create(api)
    path = f"/v2/pods/{pod_id}/action"
    assert api.post(path, json={"action": "start"}).status_code == 409
    assert api.post(path, json={"action": "reset"}).status_code == 422
    assert api.post(path, json={"action": "stop"}).json()["status"] == "EXITED"
    assert api.get(f"/v2/pods/{pod_id}").json()["actions"] == ["start", "terminate"]
    assert api.post(path, json={"action": "start"}).json()["status"] == "STARTING"
    sim.sleep(60)
    assert api.post(path, json={"action": "restart"}).json()["status"] == "STARTING"
    gone = api.post(path, json={"action": "terminate"})
    assert gone.status_code == 204
    assert gone.content == b""
    assert api.delete(f"/v2/pods/{pod_id}").status_code == 404


def test_editing_a_pod(sim, api):
    pod = boot(sim, api)
    path = f"/v2/pods/{pod['id']}"
    assert api.patch(path, json={"name": "otro"}).json()["status"] == "RUNNING"
    assert api.patch(path, json={"disk": 30}).json()["status"] == "STARTING"
    network = {"mounts": {"network": [{"volumeId": "x", "path": "/n"}]}}
    assert api.patch(path, json=network).status_code == 400
    assert api.patch(path, json={"cost": 0}).status_code == 422


def test_deleting(api):
    pod_id = create(api)
    gone = api.delete(f"/v2/pods/{pod_id}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert api.get(f"/v2/pods/{pod_id}").status_code == 404
    assert api.get("/v2/pods").json()["pods"] == []


def test_pages_of_pods_newest_first(api):
    ids = [create(api, name=f"elchat-{n}") for n in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.get("/v2/pods", params=query).json()
        seen += [pod["id"] for pod in page["pods"]]
        cursor = page["pagination"]["nextCursor"]
        if not page["pagination"]["hasNextPage"]:
            break
    assert seen == ids[::-1]
    assert api.get("/v2/pods", params={"filtro": "raro"}).status_code == 200


def test_a_malformed_cursor(sim):
    with sim.client() as api:  # cursors are of a later text than the file at hand
        assert api.get("/v2/pods", params={"cursor": "@@"}).status_code == 422


def test_every_answer_tells_its_quota_and_its_id(api):
    answer = api.get("/v2/pods")
    assert answer.headers["ratelimit"].startswith('"minute";r=59;t=')
    assert answer.headers["ratelimit-policy"].startswith('"minute";q=60;w=60')
    assert answer.headers["x-request-id"]


def test_beyond_the_quota():
    sim = simulator({"rate_limits": {"is_enforced": True, "minute": 3}})
    with client(sim) as api:
        assert [api.get("/v2/pods").status_code for _ in range(3)] == [200] * 3
        answer = api.get("/v2/pods")
        assert answer.status_code == 429
        assert detail(answer) == "rate limit exceeded for the minute window"
        sim.sleep(int(answer.headers["retry-after"]))
        assert api.get("/v2/pods").status_code == 200


def test_the_catalogue(api):
    plain = api.get("/v2/catalog/gpus").json()["gpus"]
    assert "availability" not in plain[0]
    query = {"include": "AVAILABILITY", "product": "POD", "count": 1, "cloud": "SECURE"}
    full = {gpu["id"]: gpu for gpu in api.get("/v2/catalog/gpus", params=query).json()["gpus"]}
    assert full[L40S]["availability"] == "HIGH"
    assert full[L40S]["price"]["secure"] == 1.09
    assert full["NVIDIA L4"]["community"] is False
    one = api.get("/v2/catalog/gpus/NVIDIA%20H100%2080GB%20HBM3")
    assert one.json()["name"] == "H100 SXM"
    assert api.get("/v2/catalog/gpus", params={"include": "AVAILABILITY"}).status_code == 400
    assert api.get("/v2/catalog/gpus", params={"product": "POD"}).status_code == 400
    french = api.get("/v2/catalog/gpus", params={**query, "countryCodes": "FR"})
    assert french.json()["gpus"] == []
    centers = api.get("/v2/catalog/datacenters", params={"include": "GPU_AVAILABILITY"}).json()
    assert any(gpu["id"] == L40S for gpu in centers["dataCenters"][0]["gpuAvailability"])


def test_network_volumes(api):
    body = {"name": "datos", "size": 50, "dataCenter": "US-KS-2"}
    volume = api.post("/v2/network-volumes", json=body).json()
    path = f"/v2/network-volumes/{volume['id']}"
    assert volume["type"] == "STANDARD"
    assert api.patch(path, json={"size": 20}).status_code == 400
    assert api.patch(path, json={}).status_code == 422
    assert api.patch(path, json={"size": 80}).json()["size"] == 80
    refused = api.post("/v2/network-volumes", json={**body, "dataCenter": "EUR-NADA-9"})
    assert refused.status_code == 400
    assert "US-KS-2" in detail(refused)
    mounts = {"network": [{"volumeId": volume["id"], "path": "/workspace"}]}
    pod_id = create(api, mounts=mounts)
    assert api.delete(path).status_code == 400
    api.delete(f"/v2/pods/{pod_id}")
    assert api.delete(path).status_code == 204
    assert api.get("/v2/network-volumes").json() == {"networkVolumes": []}


def test_account_keys_reach_the_pods_that_ask_for_them(api):
    assert api.put("/v2/account/ssh-keys", json={"keys": ["no es una llave"]}).status_code == 422
    assert api.put("/v2/account/ssh-keys", json={"keys": [KEY]}).json() == {"keys": [KEY]}
    pod = api.post("/v2/pods", json={**POD, "env": {}, "startSsh": True}).json()
    assert pod["env"]["PUBLIC_KEY"] == KEY


def test_what_is_gone(sim, api):
    assert api.get("/v1/pods").status_code == 410
    answer = api.post("/graphql", json={"query": SPOT}).json()
    assert "no instances available" in answer["errors"][0]["message"]
    deploy = {
        "query": "mutation($input: PodFindAndDeployOnDemandInput) "
        "{ podFindAndDeployOnDemand(input: $input) { id } }",
        "variables": {
            "input": {
                "name": "vieja", "imageName": "x", "gpuTypeId": L40S, "gpuCount": 1,
                "terminateAfter": "2026-11-23T00:10:00Z",
            }
        },
    }  # fmt: skip
    pod_id = api.post("/graphql", json=deploy).json()["data"]["podFindAndDeployOnDemand"]["id"]
    sim.sleep(7200)  # hours after `terminateAfter`
    assert [pod.id for pod in sim.live_pods()] == [pod_id]


def test_the_balance_is_only_in_graphql(sim, api):
    boot(sim, api)
    query = {"query": "query { myself { clientBalance currentSpendPerHr spendLimit } }"}
    myself = api.post("/graphql", json=query).json()["data"]["myself"]
    assert myself["clientBalance"] == pytest.approx(1000 - sim.ledger.dollars(), abs=1e-3)
    assert myself["currentSpendPerHr"] == pytest.approx(1.09, abs=0.01)


@pytest.mark.skipif(
    openapi.specification_path() is None, reason="la especificación de RunPod no está a mano"
)
def test_the_checker_can_fail(sim):
    checker = openapi.shared_checker()
    request = httpx.Request("GET", "https://api.runpod.io/v2/pods", headers={"authorization": "x"})
    broken = httpx.Response(200, json={"pods": [{"id": 7}]}, request=request)
    with pytest.raises(openapi.ContractError):
        checker.check(request, broken)
    wrong = httpx.Request("POST", "https://api.runpod.io/v2/pods", json={"nombre": "x"})
    with pytest.raises(openapi.ContractError):
        checker.check(wrong, httpx.Response(201, json={}, request=wrong))


def test_later_texts_add_fields():
    sim = simulator({"is_newer_spec": True})
    with sim.client() as api:  # beyond the specification at hand
        gpu = {**POD["gpu"], "minRamPerGpu": 8, "minVcpuCountPerGpu": 4}
        pod = api.post("/v2/pods", json={**POD, "gpu": gpu, "cmd": ["sleep", "infinity"]}).json()
        assert pod["cmd"] == ["sleep", "infinity"]
        assert pod["entrypoint"] == []
        assert pod["gpu"]["vcpuCount"] > 0
        sim.sleep(300)
        assert sim.live_pods()[0].restarts == 0  # what `cmd` says is what runs
