"""The logs of simulated pods, as a client follows them."""

from __future__ import annotations

import json

import httpx

from tests.sim_tools import boot, client, create, simulator


def read_log(api, pod_id, *, lines=100, **options):
    """(id, text) of the frames that come before silence, a break or `lines`."""
    found, current = [], None
    try:
        with api.stream("GET", f"/v2/pods/{pod_id}/logs", **options) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    current = line[4:]
                if line.startswith("data: "):
                    found.append((current, json.loads(line[6:])))
                    if len(found) == lines:
                        break
    except (httpx.ReadTimeout, httpx.ReadError):
        pass
    return found


class Talker:
    def __init__(self, pod):
        self.pod = pod
        self.count = 0

    def tick(self, now):
        self.count += 1
        self.pod.print(f"paso {self.count}")
        return 2.0


def test_logs_are_followed_and_resumed_where_they_broke():
    sim = simulator({"logs": {"drop_after_lines": 3}})
    sim.on_container_start(Talker)
    with client(sim, timeout=10.0) as api:
        pod = boot(sim, api)
        query = {"source": "container", "tail": 2}
        first = read_log(api, pod["id"], params=query)
        assert len(first) == 3
        rest = read_log(
            api, pod["id"], params=query, headers={"last-event-id": first[-1][0]}, lines=2
        )
        texts = [data["line"] for _, data in first + rest]
        start = int(texts[0].split()[1])
        assert texts == [f"paso {n}" for n in range(start, start + 5)]


def test_a_silent_log_holds_until_the_client_is_tired():
    sim = simulator()
    with client(sim, timeout=30.0) as api:
        pod = boot(sim, api)
        before = sim.clock.now()
        lines = read_log(api, pod["id"], params={"source": "system", "tail": 0})
        assert lines == []
        assert 30 <= sim.clock.now() - before < 33


def test_logs_by_time_and_after_the_end():
    sim = simulator()
    sim.on_container_start(Talker)
    with client(sim, timeout=1.0) as api:
        pod = boot(sim, api)
        api.delete(f"/v2/pods/{pod['id']}")
        both = {data["source"] for _, data in read_log(api, pod["id"])}
        assert both == {"container", "system"}
        sim.sleep(130)
        later = {data["source"] for _, data in read_log(api, pod["id"])}
        assert later == {"system"}
        since = read_log(api, pod["id"], params={"since": "2036-01-01T00:00:00Z"})
        assert since == []


def test_logs_may_be_refused():
    sim = simulator({"logs": {"mode": "refused"}})
    with client(sim) as api:
        assert api.get(f"/v2/pods/{create(api)}/logs").status_code == 400
