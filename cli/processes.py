"""Starting elchat's scripts by argv: the control plane never imports them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import elchat
from elchat import hardware
from elchat.config import Config

MALLOC = (  # of glibc: huge pages, and what is freed is kept for the next step
    "glibc.malloc.hugetlb=1",
    "glibc.malloc.mmap_max=0",
    f"glibc.malloc.trim_threshold={1 << 40}",
)
RESTARTS = 3  # times that several processes are started again by themselves
ROOT = Path(elchat.__file__).resolve().parent.parent


def script_argv(module: str, *args: str) -> list[str]:
    """Command line of a runnable module, with this very interpreter."""
    return [sys.executable, "-m", module, *args]


def worker_argv(config: Config) -> list[str]:
    """Command line of a run's worker, without its folder.

    Several processes are started again from the last checkpoint when one of them dies.
    """
    if config.compute.processes == 1:
        return script_argv("scripts.run")
    count = str(config.compute.processes)
    launcher = ("--standalone", "--nproc-per-node", count, "--max-restarts", str(RESTARTS))
    return script_argv("torch.distributed.run", *launcher, "-m", "scripts.run")


def script_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for a script: ours, able to import elchat, without the cloud key."""
    env = dict(os.environ)
    env.pop("RUNPOD_API_KEY", None)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return env | {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


def compute_env(config: Config) -> dict[str, str]:
    """What makes a CPU fast and must be set before the process starts.

    Huge pages: glibc and torch ask for them with madvise. Freed memory stays with the process,
    whose next step asks for it again: the system would hand out, and clear, every page anew.
    Threads: one per physical core; more only fight for the same units.
    """
    threads = config.compute.threads
    env: dict[str, str] = {}
    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        count = str(threads or max(1, hardware.usable_cores() // config.compute.processes))
        env |= {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    if config.compute.huge_pages and hardware.has_glibc():
        tunables = [os.environ.get("GLIBC_TUNABLES", ""), *MALLOC]
        env |= {
            "GLIBC_TUNABLES": ":".join(filter(None, tunables)),
            "THP_MEM_ALLOC_ENABLE": "1",
        }
    return env


def run_script(module: str, *args: str) -> int:
    """Run a script in this terminal and return its exit code; Ctrl-C belongs to the script."""
    process = subprocess.Popen(script_argv(module, *args), env=script_env(), cwd=ROOT)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
