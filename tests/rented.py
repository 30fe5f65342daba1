"""A simulated RunPod with real pods, and the real `elchat` against it, each in its process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from elchat import config as configs
from elchat import runs
from elchat.runs import Run
from elchat_sim import ACCOUNT_KEY, Simulator
from elchat_sim.faults import FaultScript, PodEvent
from tests import tiny_run
from tests.cloud_world import with_new_drivers

ROOT = Path(__file__).parents[1]
QUICK = [sys.executable, str(ROOT / "tests" / "e2e" / "elchat_quick.py")]
FAST = {
    "provision_s": 0.2, "pull_s": 0.2, "start_s": 0.1, "restart_s": 0.5,
    "ssh_direct_delay_s": 0.1, "sshd_delay_s": 0.0, "runtime_empty_s": 0.1,
}  # fmt: skip


def cut_down(folder: Path, **stage: Any) -> dict[str, Any]:
    """configs/training_experimental.yaml for a toy model on a CPU: sizes and data are other."""
    raw = configs.load(ROOT / "configs" / "training_experimental.yaml").model_dump(mode="json")
    tiny = tiny_run.raw_config(folder, **stage)
    tiny["checkpoints"] |= {
        "every_steps": 24
    }  # at log lines, whose losses are means since the last
    tiny["evaluation"] |= {"every_steps": 100}
    for section in ("model", "evaluation", "export", "checkpoints"):
        raw[section] |= tiny[section]
    raw["data"] = tiny["data"]
    for name in ("cpt", "sft"):
        raw["training"][name] |= {**tiny["training"][name], "max_tokens": None}
    raw["training"] |= {"precision": "fp32", "micro_batch_rows": 2}
    raw["autonomy"]["mood_tokens"] = 4000
    raw["compute"] |= {
        "device": "cpu",
        "threads": 1,
        "compile": "never",
        "pull_minutes": 0.03,
        "grace_minutes": 5,
    }
    return raw


class Rental:
    """A simulator and the folder of its user.

    Args:
        folder: toy model, texts, configuration, and the home of elchat.
    """

    def __init__(self, folder: Path, raw: dict[str, Any], faults: dict[str, Any] | None = None):
        script = {**(faults or {})}
        script["lifecycle"] = {**FAST, **script.get("lifecycle", {})}
        faults_found = with_new_drivers(FaultScript.model_validate(script))
        self.sim = Simulator(faults_found, pods="real", state=folder / "nube").start()
        self.commands: list[subprocess.Popen[str]] = []
        self.home = folder / "casa"
        self.config = folder / "recorte.yaml"
        self.config.write_text(yaml.safe_dump(raw), encoding="utf-8")
        self.env = {
            **os.environ,
            "ELCHAT_HOME": str(self.home),
            "RUNPOD_API_KEY": ACCOUNT_KEY,
            "ELCHAT_RUNPOD_API_URL": self.sim.base_url,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }

    def run(self, name: str) -> Run:
        return runs.open_run(self.home / "runs" / name)

    def elchat(
        self, *words: str, text: str = "", timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*QUICK, *words],
            env=self.env,
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """The same without waiting; its words go to a file in the user's folder."""
        with open(self.config.with_name("orden.txt"), "a") as log:
            command = subprocess.Popen(
                [*QUICK, *words], env=self.env, stdout=log, stderr=log, text=True
            )
        self.commands.append(command)
        return command

    def said(self) -> str:
        return self.config.with_name("orden.txt").read_text()

    def happen(self, **event: Any) -> None:
        """Something befalls every live pod now."""
        with self.sim._lock:
            for pod in self.sim.world.live_pods():
                self.sim.world.apply(pod, PodEvent(after_s=0, **event))

    def close(self) -> None:
        for command in self.commands:
            if command.poll() is None:
                command.kill()
                command.wait(10)
        self.sim.stop()


def until(condition: Callable[[], Any], timeout_s: float = 90.0, what: str = "") -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no llegó a ocurrir: {what}")
