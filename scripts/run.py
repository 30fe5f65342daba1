"""The worker: walks the stages of a run folder.

    python -m scripts.run RUN_DIR

Exit status: 0 done or stopped, otherwise the error's own (elchat.errors).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from elchat import runs
from elchat.errors import ElchatError
from elchat.training.reporter import Reporter
from scripts.measure import Stopped
from scripts.stages import STAGES, Worker, walk


def main(argv: list[str] | None = None) -> int:
    """Run the worker in this process."""
    parser = argparse.ArgumentParser(prog="python -m scripts.run", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--stage", choices=list(STAGES), help="solo esta etapa")
    arguments = parser.parse_args(argv)
    return work(arguments.run_dir, arguments.stage)


def work(run_dir: Path, only: str | None = None) -> int:
    """Walk a run's stages and leave its outcome in status.json."""
    try:
        run = runs.open_run(run_dir)
        config = run.config()
    except ElchatError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    pid = os.getpid()
    run.update_status(
        pid=pid,
        pid_started=runs.process_start(pid),
        outcome=None,
        message=None,
        usd_limit=config.compute.budget_usd,
    )
    reporter = Reporter(run)
    reporter.install_signals()
    try:
        walk(Worker(run, config, reporter), only)
    except Stopped:
        return end(reporter, "stopped", "Parado y guardado.", 0)
    except ElchatError as error:
        return end(reporter, "failed", str(error), error.exit_code)
    except KeyboardInterrupt:
        return end(reporter, "stopped", "Parado sin guardar el último tramo.", 130)
    except Exception as error:
        traceback.print_exc()
        return end(reporter, "failed", f"Error inesperado: {type(error).__name__}: {error}", 70)
    return end(reporter, "done", f"Terminado: {run.model_path}", 0)


def end(reporter: Reporter, outcome: str, message: str, code: int) -> int:
    """Write the outcome as the run's last word."""
    reporter.close()
    reporter.run.clear("stop")
    reporter.status(outcome=outcome, message=message, eta_s=None)
    reporter.log(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
