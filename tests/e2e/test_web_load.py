"""benchmarks/bench_server.py for ten seconds: no error, and nothing kept by those who left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import bench_server


def test_many_clients_a_third_of_them_leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ELCHAT_NATIVE", "0")  # a home of its own would compile it each time
    model = bench_server.toy_model(tmp_path)
    with bench_server.server(model, rows=8, queue=8) as (url, pid):
        figures = asyncio.run(bench_server.load(url, pid, clients=12, seconds=8.0))
    assert figures.errors == []
    assert figures.complete > 0
    assert figures.hung_up > 0
    assert (figures.after["active"], figures.after["queued"]) == (0, 0)
    before, after = figures.descriptors
    assert after <= before + 2
    assert figures.rss_mib[1] < figures.rss_mib[0] + 60
