"""Plays scripts.run for the tests of the control plane: same files, no training.

FAKE_FATE: done, fail, die (before its first word), deaf (ignores stop and SIGTERM).
FAKE_STEPS, FAKE_STEP_S: how long it works. Saved progress lives in progress.txt.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from elchat import runs


def main() -> int:
    run = runs.open_run(Path(sys.argv[1]))
    fate = os.environ.get("FAKE_FATE", "done")
    if fate == "die":
        print("ImportError: falta una biblioteca")
        return 3
    total = int(os.environ.get("FAKE_STEPS", "5"))
    (run.path / "env.json").write_text(json.dumps(dict(os.environ)))
    saved = run.path / "progress.txt"
    start = int(saved.read_text()) if saved.exists() else 0
    print(f"arranque desde el paso {start}", flush=True)
    if fate == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (run.path / "child.txt").write_text(str(child.pid))
    pid = os.getpid()
    run.update_status(pid=pid, pid_started=runs.process_start(pid), outcome=None, stage="data")
    for step in range(start, total):
        time.sleep(float(os.environ.get("FAKE_STEP_S", "0.02")))
        run.update_status(
            stage="cpt",
            step=step + 1,
            total_steps=total,
            loss=2.5,
            bits_per_byte=1.75,
            tokens_per_s=310.0,
            mfu=0.24,
            eta_s=3.0,
        )
        print(f"paso {step + 1}", flush=True)
        saved.write_text(str(step + 1))
        if run.is_requested("stop") and fate != "deaf":
            run.update_status(outcome="stopped", message="Parado y guardado.")
            return 0
    if fate == "fail":
        run.update_status(outcome="failed", message="la pérdida dejó de ser un número")
        return 6
    run.model_path.mkdir()
    (run.model_path / "config.json").write_text("{}")
    (run.path / "report.md").write_text("# Informe\n")
    run.update_status(stage="report", outcome="done", eta_s=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
