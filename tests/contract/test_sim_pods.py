"""Real pods: a real sshd, a real PID 1, real disks, and nothing left of them at the end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from elchat_sim import ACCOUNT_KEY, Simulator, parse
from elchat_sim.process_host import isolation, missing, remove_tree
from tests.sim_tools import POD

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

FAST = {
    "provision_s": 0.0, "pull_s": 0.0, "start_s": 0.0, "restart_s": 0.1, "ssh_direct_delay_s": 0.0,
    "sshd_delay_s": 0.0, "runtime_empty_s": 0.0,
}  # fmt: skip
WAIT_S = 40.0


def until(condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


class Rented:
    """A pod and the ways to reach it."""

    def __init__(self, sim: Simulator, api: httpx.Client, key: Path, pod_id: str) -> None:
        self.sim, self.api, self.key, self.id = sim, api, key, pod_id

    def body(self) -> dict:
        return self.api.get(f"/v2/pods/{self.id}").json()

    def direct(self) -> dict:
        found = until(lambda: self.body()["ssh"]["direct"])
        assert isinstance(found, dict)
        return found

    def ssh_command(self, timeout_s: int = 5) -> list[str]:
        """One connection per port, which later commands share."""
        known = self.key.with_name("known_hosts")
        return [
            "ssh", "-F", "none", "-i", str(self.key), "-p", str(self.direct()["port"]),
            "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={known}",
            "-o", f"ConnectTimeout={timeout_s}", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
            "-o", "ControlMaster=auto", "-o", "ControlPersist=30",
            "-o", f"ControlPath={self.key.with_name('c')}-%p",
        ]  # fmt: skip

    def try_ssh(self, text: str, timeout_s: int = 5) -> subprocess.CompletedProcess[str]:
        command = [*self.ssh_command(timeout_s), f"root@{self.direct()['host']}", text]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def ssh(self, text: str) -> str:
        """The output of a command, once sshd answers."""
        done = until(lambda: (found := self.try_ssh(text)).returncode != 255 and found)
        assert isinstance(done, subprocess.CompletedProcess)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def act(self, action: str) -> int:
        return self.api.post(f"/v2/pods/{self.id}/action", json={"action": action}).status_code


@pytest.fixture
def rent(tmp_path: Path) -> Iterator[Callable[..., Rented]]:
    key = tmp_path / "llave"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30
    )
    opened: list[Simulator] = []

    def rented(faults: dict | None = None, **changes: object) -> Rented:
        script = {**(faults or {}), "lifecycle": {**FAST, **(faults or {}).get("lifecycle", {})}}
        sim = Simulator(parse(script), pods="real", state=tmp_path / "nube").start()
        opened.append(sim)
        api = httpx.Client(
            base_url=sim.base_url, headers={"authorization": f"Bearer {ACCOUNT_KEY}"}, timeout=20
        )
        env = {
            "PUBLIC_KEY": key.with_suffix(".pub").read_text().strip(),
            "ELCHAT_RUNPOD_API_URL": sim.base_url,
        }
        answer = api.post("/v2/pods", json={**POD, "env": env, **changes})
        assert answer.status_code == 201, answer.text
        return Rented(sim, api, key, answer.json()["id"])

    yield rented
    for sim in opened:
        sim.stop()
        sim.stop()  # twice is as good as once
    # Nothing of a pod outlives its simulator: no process has its root in the pods' folder.
    assert [root for root in _roots() if root.startswith(str(tmp_path))] == []


def _roots() -> list[str]:
    found = []
    for link in Path("/proc").glob("[0-9]*/root"):
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return found


def test_a_pod_from_end_to_end(rent, tmp_path):
    args = "bash -c 'echo vigía > /elchat-guard & exec /start.sh'"
    pod = rent(args=args)
    assert pod.ssh("cat /elchat-guard; pwd; id -un") == "vigía\n/root\nroot\n"
    # The environment is PID 1's alone, and of the file which only interactive shells read.
    assert pod.ssh("echo [$RUNPOD_POD_ID]") == "[]\n"
    env = pod.ssh("tr '\\0' '\\n' < /proc/1/environ")
    assert f"RUNPOD_POD_ID={pod.id}\n" in env
    assert f"RUNPOD_TCP_PORT_22={pod.direct()['port']}\n" in env
    assert ACCOUNT_KEY not in env
    assert pod.ssh(". /etc/rp_environment; echo $RUNPOD_POD_ID") == f"{pod.id}\n"
    assert pod.ssh("nvidia-smi --query-gpu=name,memory.total --format=csv,noheader") == (
        "NVIDIA L40S, 49152 MiB\n"
    )
    program = "import importlib.util as u; print(u.find_spec('torch').name, u.find_spec('elchat'))"
    assert pod.ssh(f'python3 -c "{program}"') == "torch None\n"
    # Files there and back, as the product moves them.
    (tmp_path / "ida").mkdir()
    (tmp_path / "ida/datos.bin").write_bytes(bytes(range(256)) * 999)
    shell = " ".join(pod.ssh_command())
    for source, target in (
        (f"{tmp_path}/ida/", "root@127.0.0.1:/workspace/elchat/"),
        ("root@127.0.0.1:/workspace/elchat/", f"{tmp_path}/vuelta/"),
    ):
        subprocess.run(["rsync", "-a", "-e", shell, source, target], check=True, timeout=60)
    assert (tmp_path / "vuelta/datos.bin").read_bytes() == bytes(range(256)) * 999
    # A job left alone goes on after the connection, and the pod can end itself.
    assert (
        pod.ssh(
            "setsid nohup sh -c 'sleep 1; echo sigo > /workspace/sigo' </dev/null >/dev/null 2>&1 &"
        )
        == ""
    )
    until(lambda: pod.try_ssh("cat /workspace/sigo").stdout == "sigo\n")
    _end_itself(pod)


def _end_itself(pod: Rented) -> None:
    """With the pod's own key and the standard library, from the pod."""
    pod.ssh(
        "cat > /tmp/end.py <<'E'\n"
        "import os, urllib.request as u\n"
        "env = dict(x.split('=', 1) for x in open('/proc/1/environ').read().split('\\0') if x)\n"
        "url = env['ELCHAT_RUNPOD_API_URL'] + '/v2/pods/' + env['RUNPOD_POD_ID']\n"
        "headers = {'Authorization': 'Bearer ' + env['RUNPOD_API_KEY'], 'User-Agent': 'elchat'}\n"
        "u.urlopen(u.Request(url, method='DELETE', headers=headers), timeout=10)\n"
        "E\n"
        "setsid python3 /tmp/end.py </dev/null >/tmp/log 2>&1 &"
    )
    until(lambda: pod.api.get(f"/v2/pods/{pod.id}").status_code == 404)
    assert pod.sim.live_pods() == []
    folder = pod.sim.host.state / "pods" / pod.id
    until(lambda: not folder.exists())


def test_a_container_that_ends_begins_again_with_a_clean_disk(rent):
    pod = rent()
    pod.ssh("echo 1 > /workspace/vive; echo 1 > /muere; echo 1 > /tmp/muere")
    # /start.sh ends when its last sleep does, and PID 1 with it.
    pod.try_ssh("kill -TERM 1; kill -9 $(pgrep -fx 'sleep infinity')")
    until(lambda: pod.sim.world.pods[pod.id].restarts == 1)
    assert pod.ssh("ls /workspace; ls /muere /tmp/muere 2>/dev/null; true") == "vive\n"
    assert pod.body()["status"] == "RUNNING"


def test_a_command_that_ends_is_a_loop_that_is_billed(rent):
    pod = rent(args="bash -c 'date +%N >> /workspace/veces; date +%N >> /veces'")
    volume = pod.sim.host.state / "pods" / pod.id / "volume" / "veces"
    until(lambda: volume.exists() and len(volume.read_text().splitlines()) >= 3)
    assert pod.body()["status"] == "RUNNING"
    assert pod.sim.ledger.rate(pod.id) > 1.0
    assert pod.api.delete(f"/v2/pods/{pod.id}").status_code == 204


def test_stop_and_start_change_the_port_and_keep_the_volume(rent):
    pod = rent()
    pod.ssh("echo 1 > /workspace/vive; echo 1 > /muere")
    before = pod.direct()
    assert pod.act("stop") == 200
    assert pod.body()["ssh"]["direct"] is None
    assert pod.act("start") == 200
    assert pod.ssh("ls /workspace; ls /muere 2>/dev/null; true") == "vive\n"
    assert pod.direct()["port"] != before["port"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", before["port"]), timeout=2)


def test_the_network_drops_under_a_session(rent):
    pod = rent()
    pod.ssh("true")
    pod.sim.happen(pod.id, "network_drop", scope="ssh")
    name, *options = pod.ssh_command(1)
    fresh = [name, "-o", "ControlPath=none", *options, "root@127.0.0.1", "true"]
    assert subprocess.run(fresh, capture_output=True, timeout=30, check=False).returncode == 255
    pod.sim.restore_network(pod.id)
    assert pod.ssh("echo otra vez") == "otra vez\n"


def test_disks_fill_and_gpus_break(rent):
    pod = rent({"lifecycle": {"disk_limit_mib": 64}})
    pod.ssh("head -c 1000000 /dev/zero > /workspace/cabe; nvidia-smi -L")
    too_big = pod.try_ssh("head -c 90000000 /dev/zero > /workspace/no")
    assert "No space left on device" in too_big.stderr
    pod.ssh("rm /workspace/no")
    pod.sim.happen(pod.id, "disk_full")
    pod.sim.happen(pod.id, "gpu_breaks")
    full = pod.try_ssh("head -c 90000 /dev/zero > /workspace/tampoco")
    assert "No space left on device" in full.stderr
    assert pod.try_ssh("nvidia-smi").returncode == 15
    assert pod.ssh("stat -c %s /workspace/cabe") == "1000000\n"


def test_a_host_that_dies_takes_every_process(rent):
    pod = rent()
    pod.ssh("setsid sleep 999 </dev/null >/dev/null 2>&1 & true")
    container = pod.sim.host._containers[pod.id]
    pod.sim.happen(pod.id, "host_dies", outcome="exited")
    until(lambda: container.exit_code() is not None)
    assert pod.body()["status"] == "EXITED"
    answer = pod.api.post(f"/v2/pods/{pod.id}/action", json={"action": "start"})
    assert "not enough free GPUs" in answer.json()["detail"]


def test_what_the_container_prints_is_in_its_log(rent):
    pod = rent()
    pod.ssh("true")
    lines = []
    with pod.api.stream("GET", f"/v2/pods/{pod.id}/logs", params={"source": "container"}) as log:
        for line in log.iter_lines():
            if line.startswith("data: "):
                lines.append(json.loads(line[6:])["line"])
            if lines and "ready to use" in lines[-1]:
                break
    fingerprint = next(line for line in lines if "ED25519" in line)
    pinned = subprocess.run(
        ["ssh-keyscan", "-t", "ed25519", "-p", str(pod.direct()["port"]), "127.0.0.1"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    shown = subprocess.run(
        ["ssh-keygen", "-lf", "-"], input=pinned.stdout, capture_output=True, text=True, check=True
    )
    assert fingerprint.split()[1] == shown.stdout.split()[1]


def test_nothing_is_deleted_where_something_is_mounted(tmp_path):
    with pytest.raises(RuntimeError, match="mounted"):
        remove_tree(Path("/proc").parent)


def test_pods_do_not_outlive_a_killed_simulator(tmp_path):
    if not isolation().is_privileged:
        pytest.skip("sin privilegios, los pods sobreviven a un kill -9 del simulador")
    faults = tmp_path / "guion.json"
    faults.write_text(json.dumps({"lifecycle": FAST}))
    command = [sys.executable, "-m", "elchat_sim", "--faults", str(faults), "--state"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [*command, str(tmp_path / "nube")], stdout=subprocess.PIPE, env=env, text=True
    ) as process:
        started = json.loads(process.stdout.readline())
        headers = {"authorization": f"Bearer {started['key']}"}
        httpx.post(f"{started['base_url']}/v2/pods", json=POD, headers=headers, timeout=20)
        until(lambda: [root for root in _roots() if root.startswith(str(tmp_path))])
        process.kill()
    until(lambda: not [root for root in _roots() if root.startswith(str(tmp_path))])
