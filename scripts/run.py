"""The worker: walks the stages of a run folder.

    python -m scripts.run RUN_DIR
    torchrun --nproc-per-node N --max-restarts 3 -m scripts.run RUN_DIR

Exit status: 0 done or stopped, otherwise the error's own (elchat.errors). Several processes leave
with 0 also after an error that starting again would not mend: the outcome is in status.json.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from elchat import runs
from elchat.errors import ElchatError
from elchat.export import publish as publishing
from elchat.training.device import pick_device
from elchat.training.parallel import Parallel
from elchat.training.reporter import Reporter
from scripts.arguments import Parser, tell
from scripts.measure import Stopped
from scripts.stages import STAGES, OtherFailed, Worker, walk

UNEXPECTED = 70  # a fault of the machine or ours: several processes are started again


def main(argv: list[str] | None = None) -> int:
    """Run the worker in this process."""
    parser = Parser("run", "Corre las etapas de una ejecución en este proceso.")
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
        return tell(error)
    parallel = Parallel(pick_device(config.compute.device) if "RANK" in os.environ else "cpu")
    reporter = Reporter(run, is_mute=not parallel.is_main)
    # of several processes, the one that starts them again is the one that lives
    pid = os.getpid() if parallel.world == 1 else os.getppid()
    reporter.status(
        pid=pid,
        pid_started=runs.process_start(pid),
        outcome=None,
        message=None,
        usd_limit=config.compute.budget_usd,
    )
    reporter.install_signals()
    if parallel.is_main:
        reporter.open_sinks(config.evaluation.sinks)
    code = attempt(Worker(run, config, reporter, parallel), only)
    parallel.close()
    return 0 if parallel.world > 1 and code != UNEXPECTED else code


def attempt(worker: Worker, only: str | None) -> int:
    """Walk the stages and say how it ended."""
    run, reporter = worker.run, worker.reporter
    try:
        walk(worker, only)
        if only is None and worker.parallel.is_main:
            publish(worker)
    except OtherFailed:
        return 0
    except Stopped:
        return end(reporter, "stopped", "Parado y guardado.", 0)
    except ElchatError as error:
        return end(reporter, "failed", str(error), error.exit_code)
    except KeyboardInterrupt:
        return end(reporter, "stopped", "Parado sin guardar el último tramo.", 130)
    except Exception as error:
        traceback.print_exc()
        return end(
            reporter, "failed", f"Error inesperado: {type(error).__name__}: {error}", UNEXPECTED
        )
    return end(reporter, "done", f"Terminado: {run.model_path}", 0)


def publish(worker: Worker) -> None:
    """Send the finished model where the configuration says; whatever happens, the run is done."""
    settings, run = worker.config.export, worker.run
    if settings.hub_repo is None:
        return
    try:
        address = publishing.publish(
            run.model_path,
            settings.hub_repo,
            private=settings.hub_private,
            deadline_s=publishing.DEADLINE_S,
        )
        worker.reporter.log(f"Publicado en {address}")
    except Exception as error:  # an optional part: it never spoils what is trained
        reason = error if isinstance(error, ElchatError) else f"{type(error).__name__}: {error}"
        worker.reporter.log(f"Aviso: no se pudo publicar. {reason}")
        worker.reporter.log(
            f"El modelo está entero; para publicarlo: elchat export {run.id} --to hf "
            f"--push {settings.hub_repo}"
        )


def end(reporter: Reporter, outcome: str, message: str, code: int) -> int:
    """Write the outcome as the run's last word."""
    reporter.close()
    if reporter.is_mute:
        return code
    reporter.run.clear("stop")
    reporter.status(outcome=outcome, message=message, eta_s=None)
    reporter.log(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
