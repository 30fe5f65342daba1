"""Many clients at once through OpenAI's own: a third hang up, in the middle or while they wait.

    python -m benchmarks.bench_server [--model FOLDER | FILE.gguf | BASE] [--seconds 120]

What must hold: no error but 429; afterwards no slot, no queue, no descriptor and no memory is kept.
What is reported: time to the first text (p50, p95), /health while the model decodes (p99), answers,
hang-ups, refusals and tokens per second. Without --model, a tiny random one: the server is measured
and not the model. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from openai import APIError, AsyncOpenAI, RateLimitError

ROOT = Path(__file__).parents[1]
QUESTIONS = (
    "¿Por qué llueve?",
    "Cuéntame un cuento muy largo sobre un faro.",
    "Enumera los ríos de España y di por dónde pasan.",
)
MAX_TOKENS = 64
HANG_UP_SHARE = 1 / 3
SETTLE_S = 20.0


@dataclass
class Figures:
    """What happened."""

    complete: int = 0
    hung_up: int = 0
    refused: int = 0
    tokens: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    after: dict[str, Any] = field(default_factory=dict)
    rss_mib: tuple[float, float] = (0.0, 0.0)
    descriptors: tuple[int, int] = (0, 0)

    def summary(self) -> dict[str, Any]:
        """Numbers for a table."""
        return {
            "answers": self.complete,
            "hung_up": self.hung_up,
            "refused_429": self.refused,
            "errors": len(self.errors),
            "tokens_per_s": round(self.tokens / max(self.seconds, 1e-9), 1),
            "ttft_p50_ms": milliseconds(self.ttft_s, 0.5),
            "ttft_p95_ms": milliseconds(self.ttft_s, 0.95),
            "health_p50_ms": milliseconds(self.health_s, 0.5),
            "health_p99_ms": milliseconds(self.health_s, 0.99),
            "health_n": len(self.health_s),
            "active_after": self.after.get("active"),
            "queued_after": self.after.get("queued"),
            "rss_mib_warm_and_after": [round(value, 1) for value in self.rss_mib],
            "descriptors_before_and_after": list(self.descriptors),
            "seconds": round(self.seconds, 1),
        }


def milliseconds(values: list[float], share: float) -> float | None:
    """A quantile, nearest rank."""
    if not values:
        return None
    ranked = sorted(values)
    return round(1000 * ranked[min(len(ranked) - 1, int(share * len(ranked)))], 1)


async def load(url: str, pid: int, *, clients: int, seconds: float, seed: int = 0) -> Figures:
    """Send the load and wait for the server to settle."""
    figures = Figures()
    fds_before = descriptors(pid)
    # Made ahead: each one loads the certificates, and that is not the server's time.
    apis = [
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=120)
        for _ in range(clients)
    ]
    stop = time.monotonic() + seconds
    started = time.monotonic()
    watch = asyncio.create_task(asyncio.to_thread(watch_health, url, figures, stop))
    warm = asyncio.create_task(rss_after(pid, min(seconds / 3, 20.0)))
    rngs = [random.Random(f"{seed}:{index}") for index in range(clients)]
    await asyncio.gather(
        *(client(api, figures, rng, stop) for api, rng in zip(apis, rngs, strict=True))
    )
    figures.seconds = time.monotonic() - started
    await watch
    await asyncio.gather(*(api.close() for api in apis))
    async with httpx.AsyncClient(base_url=url, timeout=30) as probe:
        figures.after = await settle(probe)
    figures.rss_mib = (await warm, rss_mib(pid))
    await asyncio.sleep(0.5)
    figures.descriptors = (fds_before, descriptors(pid))
    return figures


async def client(api: AsyncOpenAI, figures: Figures, rng: random.Random, stop: float) -> None:
    """One user after another in the same chair, until the time is over."""
    while time.monotonic() < stop:
        try:
            await ask(api, figures, rng)
        except RateLimitError:
            figures.refused += 1
            await asyncio.sleep(rng.uniform(0.05, 0.3))
        except (APIError, httpx.HTTPError) as error:
            figures.errors.append(f"{type(error).__name__}: {error}")


async def ask(api: AsyncOpenAI, figures: Figures, rng: random.Random) -> None:
    """One streamed answer; a third leave, half of them before the first word."""
    leaves_after = None
    if rng.random() < HANG_UP_SHARE:
        leaves_after = 0 if rng.random() < 0.5 else rng.randrange(1, MAX_TOKENS)
    started = time.monotonic()
    question = f"{rng.choice(QUESTIONS)} ({rng.randrange(10**6)})"
    stream = await api.chat.completions.create(
        model="x",
        messages=[{"role": "user", "content": question}],
        max_tokens=MAX_TOKENS,
        temperature=1.0,
        stream=True,
    )
    if leaves_after == 0:
        await asyncio.sleep(rng.uniform(0, 0.05))
        await stream.close()
        figures.hung_up += 1
        return
    pieces, finish = 0, None
    async for chunk in stream:
        choice = chunk.choices[0]
        finish = choice.finish_reason or finish
        if choice.delta.content:
            if pieces == 0:
                figures.ttft_s.append(time.monotonic() - started)
            pieces += 1
            figures.tokens += 1
        if leaves_after is not None and pieces >= leaves_after:
            await stream.close()
            figures.hung_up += 1
            return
    if finish is None:
        figures.errors.append("un flujo acabó sin finish_reason")
    figures.complete += 1


def watch_health(url: str, figures: Figures, stop: float) -> None:
    """Ask for /health all along, in a thread: the clients' own loop is busy."""
    with httpx.Client(base_url=url, timeout=30) as probe:
        while time.monotonic() < stop:
            started = time.monotonic()
            probe.get("/health").raise_for_status()
            figures.health_s.append(time.monotonic() - started)
            time.sleep(0.05)


async def settle(probe: httpx.AsyncClient) -> dict[str, Any]:
    """The server's own count once everybody left."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        stats: dict[str, Any] = (await probe.get("/stats")).json()
        if (not stats["active"] and not stats["queued"]) or time.monotonic() > deadline:
            return stats
        await asyncio.sleep(0.1)


async def rss_after(pid: int, seconds: float) -> float:
    """Memory once the first wave has passed."""
    await asyncio.sleep(seconds)
    return rss_mib(pid)


def rss_mib(pid: int) -> float:
    """Resident memory of a process; 0 where /proc does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def descriptors(pid: int) -> int:
    """Open files and sockets of a process."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


@contextlib.contextmanager
def server(model: str, *, rows: int, queue: int) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: address and pid."""
    words = [sys.executable, "-m", "scripts.chat_web", model, "--puerto=0"]
    words += [f"--filas={rows}", f"--cola={queue}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            found = re.search(r"API\s+(http://\S+)/v1", line)
            if found:
                break
        else:
            raise SystemExit("el servidor no arrancó")
        with httpx.Client(timeout=5) as probe:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    probe.get(f"{found[1]}/health").raise_for_status()
                    break
                time.sleep(0.05)
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait(20)


def toy_model(folder: Path) -> str:
    """A tiny random model, saved."""
    from elchat.weights import save_hf
    from tests import toys

    save_hf(toys.loaded("smollm", max_positions=512), folder / "juguete")
    return str(folder / "juguete")


def main(argv: list[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--queue", type=int, default=16)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or toy_model(Path(folder))
        with server(model, rows=arguments.rows, queue=arguments.queue) as (url, pid):
            figures = asyncio.run(
                load(url, pid, clients=arguments.clients, seconds=arguments.seconds)
            )
    summary = figures.summary()
    for name, value in summary.items():
        print(f"{name:32} {value}")
    for error in figures.errors[:5]:
        print("error:", error)
    config = {**vars(arguments), "model": arguments.model or "juguete"}
    hardware = {"machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"bench": "server", "config": config, "hardware": hardware, **summary}))
    return 1 if figures.errors or summary["active_after"] or summary["queued_after"] else 0


if __name__ == "__main__":
    sys.exit(main())
