"""The guard of a rented machine: it starts the training, and deletes the machine in time.

One standard-library file (Python 3.9+) that travels inside the pod's start command, so it lives
with the laptop off. Every deadline is an absolute epoch: a restarted container changes none.

    at start     asks RunPod for its own pod; a key that does not answer means no training
    meet_by      nobody of the command line has said a word by then: deletes the pod
    job.json     the command to train; started once, and again after a restart of the container
    save_at      raises control/save: the trainer writes a checkpoint (95 % of the money)
    deadline     deletes the pod through every route there is, again and again
    ended        the same once the result was fetched, or was not within the grace time

`decide` and `effective_deadline` are pure: (now, what is known) -> what to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import hmac
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field

TICK_S = 10.0
PRICE_S = 1800.0  # how often the price is asked again
MAX_PASSES, PASSES_WITHIN_S = 4, 1800.0  # container restarts that are a loop
MAX_WORKER_STARTS = 3  # in one life of the container
USER_AGENT = "elchat-guard/1"  # urllib's own is refused by RunPod's firewall


@dataclass(frozen=True)
class Orders:
    """What the command line fixed when it rented this pod. Moments are epochs.

    Attributes:
        meet_by: whoever rented it has spoken to it by then, or never will.
        job_by: without a job by then, nobody is going to bring one.
        usd: money for this pod, with its disk at `disk_usd_per_h`.
        lag_s: paid time kept for a deletion that must be repeated.
    """

    run_id: str
    pod_id: str
    created: float
    deadline: float
    save_at: float
    meet_by: float
    job_by: float
    grace_s: float
    usd: float
    disk_usd_per_h: float
    lag_s: float
    token: str


@dataclass
class Memory:
    """What the guard remembers across restarts (guard/state.json, on the volume)."""

    passes: list = field(default_factory=list)
    is_proved: bool = False
    probe: str = ""
    probed_at: float = 0.0
    cost: float = 0.0
    deadline: float = 0.0
    has_asked_save: bool = False
    starts: int = 0
    ended_at: float = 0.0
    deletions: int = 0
    next_deletion: float = 0.0
    why: str = ""
    routes: list = field(default_factory=list)
    host_keys: list = field(default_factory=list)
    host_proof: str = ""
    beat: float = 0.0


@dataclass(frozen=True)
class View:
    """What is true around the guard at this moment."""

    is_met: bool = True
    has_job: bool = False
    is_worker_alive: bool = False
    outcome: str = ""
    is_fetched: bool = False


def effective_deadline(orders: Orders, cost: float, lowered: float) -> float:
    """The earliest of: what was ordered, what the money allows at the real price, a later order."""
    deadline = orders.deadline
    if cost > 0:
        life_s = 3600.0 * orders.usd / (cost + orders.disk_usd_per_h)
        deadline = min(deadline, orders.created + life_s - orders.lag_s)
    return min(deadline, lowered) if lowered > 0 else deadline


def decide(now: float, orders: Orders, memory: Memory, view: View) -> list:
    """Actions for this moment, in order: probe, start, save, or delete with its reason.

    Example: one second past the deadline, whatever else is true, gives [("delete", "deadline")].
    """
    why = _why_delete(now, orders, memory, view)
    if why:
        return [("delete", why)] if now >= memory.next_deletion else []
    actions = []
    if not memory.is_proved or now >= memory.probed_at + PRICE_S:
        actions.append(("probe", ""))
    if memory.is_proved and view.has_job and not view.outcome and not view.is_worker_alive:
        actions.append(("start", ""))
    if now >= _save_at(orders, memory) and not memory.has_asked_save and view.is_worker_alive:
        actions.append(("save", ""))
    return actions


def _why_delete(now: float, orders: Orders, memory: Memory, view: View) -> str:
    if now >= (memory.deadline or orders.deadline):
        return "deadline"
    if view.is_fetched:
        return "fetched"
    if sum(1 for t in memory.passes if t > now - PASSES_WITHIN_S) > MAX_PASSES:
        return "restart loop"
    if not view.is_met and now >= orders.meet_by:
        return "nobody came"
    if not view.has_job and now >= orders.job_by:
        return "no job"
    if memory.ended_at and now >= memory.ended_at + orders.grace_s:
        return "not fetched in time"
    return ""


def _save_at(orders: Orders, memory: Memory) -> float:
    """A deadline brought forward brings the save forward with it."""
    return orders.save_at - max(0.0, orders.deadline - (memory.deadline or orders.deadline))


class Guard:
    """Keeps watch: `tick(now)` looks, decides, acts and returns the seconds until the next look.

    Args:
        pod: the machine around it: files, processes, requests (see `Machine`).
    """

    def __init__(self, orders: Orders, pod: Machine) -> None:
        self.orders = orders
        self.pod = pod
        self.memory = self._recall()
        self.is_first = True

    def tick(self, now: float) -> float:
        now = max(now, self.memory.beat)  # a clock set back gives no time
        if self.is_first:
            self.is_first = False
            self.memory.passes = [*self.memory.passes, now][-20:]
            self.memory.starts = 0
        for action, why in decide(now, self.orders, self.memory, self._seen(now)):
            if action == "probe":
                self._probe(now)
            elif action == "start":
                self._start()
            elif action == "save":
                self.pod.raise_flag("save")
                self.memory.has_asked_save = True
            elif action == "delete":
                self._delete(now, why)
        self.memory.beat = now
        self.pod.write("guard/state.json", json.dumps(asdict(self.memory)))
        if self.memory.deletions and self.memory.next_deletion > now:
            return max(1.0, min(TICK_S, self.memory.next_deletion - now))
        return max(1.0, min(TICK_S, self.memory.deadline - now))

    def _seen(self, now: float) -> View:
        """What is around. A machine too broken to be looked at still has its deadlines."""
        try:
            return self._look(now)
        except Exception as error:
            print("elchat-guard: " + repr(error), file=sys.stderr, flush=True)
            return View(has_job=bool(self.memory.starts))

    def _look(self, now: float) -> View:
        told = _json(self.pod.read("guard/orders.json"))
        lowered = _number(told.get("deadline"))
        self.memory.deadline = effective_deadline(self.orders, self.memory.cost, lowered)
        has_job = bool(self.pod.read("job.json"))
        outcome = str(_json(self.pod.read_run("status.json")).get("outcome") or "")
        is_alive = has_job and self.pod.is_worker_alive()
        if has_job and not is_alive and not outcome and self.memory.starts >= MAX_WORKER_STARTS:
            outcome = "died"
        if outcome and not is_alive:
            self.memory.ended_at = self.memory.ended_at or now
        else:
            self.memory.ended_at = 0.0
        if not self.memory.host_keys:
            self._sign_host_keys()
        is_met = bool(told) or has_job
        return View(is_met, has_job, is_alive, outcome, bool(told.get("fetched")))

    def _sign_host_keys(self) -> None:
        """Let the command line recognise this pod's SSH server: only it knows the token."""
        keys = self.pod.host_keys()
        if keys:
            body = "\n".join(keys).encode()
            self.memory.host_keys = keys
            self.memory.host_proof = hmac.new(
                self.orders.token.encode(), body, hashlib.sha256
            ).hexdigest()

    def _probe(self, now: float) -> None:
        """Prove the key, and learn the price; a proved key stays so while nobody answers."""
        status, body = self.pod.request("GET", "/v2/pods/" + self.orders.pod_id, None)
        self.memory.probe = str(status)
        self.memory.is_proved = self.memory.is_proved or status == 200
        self.memory.probed_at = now
        if status == 200 and isinstance(body, dict):
            self.memory.cost = max(self.memory.cost, _number(body.get("cost")))

    def _start(self) -> None:
        self.memory.starts += 1
        self.pod.start_worker(_json(self.pod.read("job.json")))

    def _delete(self, now: float, why: str) -> None:
        """One round over the routes; the next one in 30 s, later every 5 min."""
        self.memory.why = why
        self.memory.deletions += 1
        self.memory.next_deletion = now + (30.0 if self.memory.deletions < 20 else 300.0)
        self.memory.beat = now
        self.pod.write("guard/state.json", json.dumps(asdict(self.memory)))
        self.memory.routes = []
        for name, route in self._routes():
            try:
                answer = route()
            except Exception as error:  # the other routes are still there
                print("elchat-guard: " + repr(error), file=sys.stderr, flush=True)
                answer = 0
            self.memory.routes.append(name + ":" + str(answer))
            if answer in (200, 204, 404):
                break
            if answer == 0 and self.memory.deletions % 4:
                break  # nobody answers: ask again soon rather than wait out every route

    def _routes(self) -> list:
        pod, mine = self.pod, "/v2/pods/" + self.orders.pod_id

        def terminate_by_graphql() -> int:
            pod_id = json.dumps(self.orders.pod_id)
            text = "mutation { podTerminate(input: {podId: " + pod_id + "}) }"
            status, body = pod.request("POST", "/graphql", {"query": text})
            is_done = status == 200 and isinstance(body, dict) and not body.get("errors")
            return 400 if status == 200 and not is_done else status

        def act(action: str) -> int:
            return int(pod.request("POST", mine + "/action", {"action": action})[0])

        return [
            ("delete", lambda: pod.request("DELETE", mine, None)[0]),
            ("terminate", lambda: act("terminate")),
            ("graphql", terminate_by_graphql),
            ("runpodctl", lambda: pod.runpodctl(self.orders.pod_id)),
            ("stop", lambda: act("stop")),
        ]

    def _recall(self) -> Memory:
        raw = _json(self.pod.read("guard/state.json"))
        known = Memory.__dataclass_fields__
        memory = Memory(**{key: value for key, value in raw.items() if key in known})
        memory.is_proved = False  # each life of the container proves its key anew
        memory.host_keys = []  # and may have new host keys
        memory.next_deletion = 0.0
        return memory


class Machine:
    """The real surroundings: this container's files and processes, RunPod's address.

    Args:
        root: elchat's folder on the volume.
    """

    def __init__(self, root: str, run_id: str, api_url: str, api_key: str) -> None:
        self.root = root
        self.run = os.path.join(root, "home", "runs", run_id)
        self.api_url = api_url
        self.api_key = api_key

    def read(self, name: str) -> str:
        try:
            with open(os.path.join(self.root, name), encoding="utf-8") as handle:
                return handle.read()
        except OSError:
            return ""

    def read_run(self, name: str) -> str:
        return self.read(os.path.join(self.run, name))

    def write(self, name: str, text: str) -> None:
        path = os.path.join(self.root, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path + ".tmp", "w", encoding="utf-8") as handle:
                handle.write(text)
            os.replace(path + ".tmp", path)
        except OSError as error:  # a full disk must not silence the guard
            print("elchat-guard: " + str(error), file=sys.stderr, flush=True)

    def raise_flag(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.join(self.run, "control"), exist_ok=True)
            open(os.path.join(self.run, "control", name), "w").close()

    def host_keys(self) -> list:
        """Public host keys of this container's SSH server, type and body."""
        folder = os.environ.get("ELCHAT_SSH_DIR", "/etc/ssh")
        keys = []
        for path in sorted(glob.glob(os.path.join(folder, "ssh_host_*_key.pub"))):
            with contextlib.suppress(OSError, IndexError), open(path) as handle:
                words = handle.read().split()
                keys.append(words[0] + " " + words[1])
        return keys

    def is_worker_alive(self) -> bool:
        """Whether somebody holds the worker's lock, which the kernel drops when it dies."""
        try:
            lock = self._open_lock()
        except OSError:  # a full disk: it cannot have been started either
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(lock)
        return False

    def start_worker(self, job: dict) -> None:
        """Run job["argv"] in job["cwd"], detached, writing the run's log; without RunPod's key."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNPOD_API", "ELCHAT_"))}
        lock = -1
        try:
            lock = self._open_lock()
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(os.path.join(self.run, "log.txt"), "ab") as log:
                subprocess.Popen(
                    job["argv"],
                    cwd=job["cwd"],
                    env={**env, **job.get("env", {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        except (OSError, KeyError) as error:
            print("elchat-guard: " + str(error), file=sys.stderr, flush=True)
        finally:
            if lock >= 0:
                os.close(lock)

    def _open_lock(self) -> int:
        folder = os.path.join(self.run, "control")
        os.makedirs(folder, exist_ok=True)
        return os.open(os.path.join(folder, "worker.lock"), os.O_RDWR | os.O_CREAT, 0o644)

    def request(self, method: str, path: str, body: object) -> tuple:
        """(status, parsed body); status 0 when nothing answered."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.api_url + path, data=data, method=method)
        request.add_header("Authorization", "Bearer " + self.api_key)
        request.add_header("User-Agent", USER_AGENT)
        request.add_header("Content-Type", "application/json")
        for context in _ssl_contexts():
            try:
                with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                    return answer.status, _json(answer.read().decode("utf-8", "replace"))
            except urllib.error.HTTPError as error:
                return error.code, {}
            except Exception:  # no answer, or one that is no HTTP: other routes may work
                continue
        return 0, {}

    def runpodctl(self, pod_id: str) -> int:
        """RunPod's own tool, which brings its own certificates; 400 when it cannot."""
        tool = shutil.which("runpodctl")
        if tool is None:
            return 400
        try:
            done = subprocess.run([tool, "remove", "pod", pod_id], capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return 400
        return 200 if done.returncode == 0 else 400


def _ssl_contexts() -> list:
    """The system's certificates; those pip brings where the image has none."""
    contexts = [ssl.create_default_context()]
    try:
        from pip._vendor import certifi

        contexts.append(ssl.create_default_context(cafile=certifi.where()))
    except Exception:  # no pip: nothing to add
        pass
    return contexts


def _json(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    try:
        return float(value or 0.0)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0


def orders_from_env(env: dict) -> Orders:
    """The orders as the command line put them into the pod's environment."""
    numbers = ("CREATED", "DEADLINE", "SAVE_AT", "MEET_BY", "JOB_BY", "GRACE_S", "USD", "LAG_S")
    values = {name.lower(): float(env["ELCHAT_" + name]) for name in numbers}
    return Orders(
        run_id=env["ELCHAT_RUN_ID"],
        pod_id=env["RUNPOD_POD_ID"],
        disk_usd_per_h=float(env["ELCHAT_DISK_USD_PER_H"]),
        token=env["ELCHAT_TOKEN"],
        **values,
    )


def main() -> int:
    """Watch for ever."""
    env = dict(os.environ)
    orders = orders_from_env(env)
    root = env.get("ELCHAT_ROOT", "/workspace/elchat")
    url = env.get("ELCHAT_RUNPOD_API_URL") or "https://api.runpod.io"
    guard = Guard(
        orders, Machine(root, orders.run_id, url.rstrip("/"), env.get("RUNPOD_API_KEY", ""))
    )
    start, ticks = time.time(), time.monotonic()
    while True:
        try:
            wait_s = guard.tick(max(time.time(), start + time.monotonic() - ticks))
        except Exception as error:  # whatever happens, it watches on
            print("elchat-guard: " + repr(error), file=sys.stderr, flush=True)
            wait_s = TICK_S
        time.sleep(wait_s)


if __name__ == "__main__":
    sys.exit(main())
