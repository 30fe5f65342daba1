"""The training loop of both stages: continued pretraining and chat tuning.

One step: draw rows -> micro-batches -> loss summed over valid targets, divided by the whole step's
count -> clip -> judge -> update. Everything that decides the next step is in the checkpoint, so
resuming equals never having stopped, bit for bit on one device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from elchat import checkpoint as checkpoints
from elchat import forgetting
from elchat.autonomy.training_knobs import TrainingKnobs
from elchat.config import CheckpointSection, EvaluationSection, StageSection, TrainingSection
from elchat.data.loader import Batch, Inputs, PackedLoader
from elchat.errors import CheckpointError, TrainingError
from elchat.gpt import GPT
from elchat.hooks import LayerHook
from elchat.training import rng
from elchat.training.device import out_of_memory_as_none, peak_memory_mib
from elchat.training.guard import Guard, Verdict
from elchat.training.optim import build_optimizer
from elchat.training.parallel import LossModule, Parallel, full_norm
from elchat.training.plan import StagePlan, fit_to_time
from elchat.training.reporter import Reporter, trim_metrics
from elchat.training.saving import Saver
from elchat.training.schedule import rate_share

REPLAN_AT_STEPS = (2, 4, 8)  # early timings, before log lines are frequent enough
WARM_STEPS = 1  # the first step touches memory for the first time: its time says nothing


@dataclass(frozen=True)
class Job:
    """What one stage trains, on what, and whom it tells.

    Attributes:
        stage: "cpt" or "sft"; prefixes metrics and messages.
        root: folder of this stage's checkpoints.
        evaluate: measures the model now; returns bits per byte by language, None if interrupted.
        reload_initial: the state dict the stage began with (a rollback before any checkpoint).
        before: bits per byte of those weights where they are already known.
        eval_seconds: how long measuring is expected to take, until it has been timed.
        knobs: stochastic depth and noise while training, or None.
        left_s: seconds the stage may still train by the clock on the wall, None without a limit.
        parallel: this process among those that train together.
        sharding: how several processes hold the model.
    """

    stage: Literal["cpt", "sft"]
    model: GPT
    loader: PackedLoader
    settings: StageSection
    training: TrainingSection
    checkpointing: CheckpointSection
    evaluation: EvaluationSection
    plan: StagePlan
    reporter: Reporter
    root: Path
    evaluate: Callable[[], dict[str, float] | None]
    reload_initial: Callable[[], dict[str, torch.Tensor]]
    before: dict[str, float] | None = None
    eval_seconds: float = 0.0
    knobs: TrainingKnobs | None = None
    left_s: Callable[[], float | None] = lambda: None
    parallel: Parallel = field(default_factory=Parallel)
    sharding: Literal["ddp", "fsdp"] = "ddp"


@dataclass
class Progress:
    """The loop's own counters; JSON-able and saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    eval_seconds: float = 0.0
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    best: float | None = None
    best_step: int | None = None
    best_scores: dict[str, float] | None = None
    evaluated_step: int | None = None
    not_better: int = 0  # measurements in a row that did not improve on the best


@dataclass
class _Window:
    """Figures since the last log line."""

    started: float
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    data_s: float = 0.0
    paused_s: float = 0.0


class Loop:
    """Runs a `Job` from its newest checkpoint to its end.

    Example:
        `Loop(job).run()` returns "done", or "stopped" when a stop was asked for.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model, self.parallel = job.model, job.parallel
        module = LossModule(job.model)
        self._loss_of = self.parallel.wrap(module, job.sharding, job.plan.compute.device)
        self.optimizer = build_optimizer(job.model, job.settings)
        self.saver = Saver(module, self.optimizer, self.parallel, job.root)
        self.guard = Guard(job.training.spike_factor, job.training.max_rollbacks)
        self.progress = Progress(before=job.before, eval_seconds=job.eval_seconds)
        self._parameters = [p for p in job.model.parameters() if p.requires_grad]
        self._rows = job.settings.batch_tokens // job.settings.context_tokens
        self._last_save = time.monotonic()
        self._resumed_at = time.monotonic()
        self._step_times: list[float] = []
        self._window = _Window(time.monotonic())
        self._norm: float | None = None

    def run(self) -> Literal["done", "stopped"]:
        """Train until the plan's last step or a stop.

        Raises:
            TrainingError: the guard gave up, or one row does not fit in memory.
        """
        if self._restore():
            return "done"
        self.model.train()
        if self.progress.before is None and not self._evaluate_before():
            return self._stop()
        self._window = _Window(time.monotonic())
        while self.progress.step < self.job.plan.timeline.total and not self._has_stalled():
            if not self._step():
                return self._stop()
            self._after_step()
        if not self._evaluate():
            return self._stop()
        self._back_to_best()
        self._save(is_final=True)
        return "done"

    def _hears(self, word: Literal["stop", "save"]) -> bool:
        """Whether somebody asked for it; the first process listens for all."""
        reporter = self.job.reporter
        heard = reporter.should_stop() if word == "stop" else reporter.should_save()
        return bool(self.parallel.agree(float(heard))[0])

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent in this stage over all its starts."""
        return self.progress.seconds + time.monotonic() - self._resumed_at

    def trial_pass(self) -> None:
        """One forward and backward pass over the next rows, which stay next; for timing only."""
        data_state, random_state = self.job.loader.state_dict(), rng.capture()
        part = self.job.loader.next_step(self._rows).part(
            slice(self.job.plan.micro_batch_rows), self.job.plan.compute.device
        )
        self.model.train()
        self._loss(part, 0).backward()
        self.job.loader.load_state_dict(data_state)
        rng.restore(random_state)

    # --- one step -----------------------------------------------------------------------------

    def _step(self) -> bool:
        """Take one optimizer step; False if a stop came first (nothing consumed)."""
        if self._hears("stop"):
            return False
        began = time.monotonic()
        data_state = self.job.loader.state_dict()
        batch = self.job.loader.next_step(self._rows)
        self._window.data_s += time.monotonic() - began
        result = self._forward_backward(batch)
        if result is None:
            self.optimizer.zero_grad()
            self.job.loader.load_state_dict(data_state)
            return False
        loss, norm = result
        verdict = self.guard.judge(loss, norm)
        if verdict is Verdict.OK:
            self.optimizer.set_learning_rate(self._learning_rate())
            self.optimizer.step()
        self.optimizer.zero_grad()
        if verdict is Verdict.OK:
            self._window.losses.append(loss)
            self._norm = norm
        else:
            self._handle_bad_step(verdict, loss, norm)
        self.progress.step += 1
        self.progress.tokens += batch.n_tokens
        self._window.tokens += batch.n_tokens
        self._step_times.append(time.monotonic() - began)
        return True

    def _forward_backward(self, batch: Batch) -> tuple[float, float] | None:
        """Gradients of the step's mean loss; (loss, norm before clipping), or None on a stop."""
        while True:
            with out_of_memory_as_none() as out_of_memory:
                total = self._accumulate(batch)
                if total is None:
                    return None
                norm = full_norm(
                    torch.nn.utils.clip_grad_norm_(self._parameters, self.job.settings.clip_norm)
                )
                # the step's only wait for the device: both figures in one transfer
                loss, measured = torch.stack((total, norm.to(total.dtype))).tolist()
                return loss / max(batch.n_targets, 1), measured
            assert out_of_memory
            self.optimizer.zero_grad()
            self._halve_micro_batch()

    def _accumulate(self, batch: Batch) -> torch.Tensor | None:
        plan, device = self.job.plan, self.job.plan.compute.device
        total = torch.zeros((), device=device)
        mine = self.parallel.rows(self._rows)
        for start in range(mine.start, mine.stop, plan.micro_batch_rows):
            if self.parallel.world == 1 and self.job.reporter.should_stop():
                return None
            stop = min(start + plan.micro_batch_rows, mine.stop)
            part = batch.part(slice(start, stop), device)
            with self.parallel.gradients_now(is_last=stop == mine.stop):
                loss = self._loss(part, start)
                # gradients are averaged over the processes: `world` makes it their sum
                (loss * (self.parallel.world / max(batch.n_targets, 1))).backward()
            total += loss.detach()
        return self.parallel.total(total)

    def _loss(self, part: Inputs, first_row: int) -> torch.Tensor:
        """Cross entropy summed over the valid targets."""
        with self.job.plan.compute.autocast():
            loss: torch.Tensor = self._loss_of(
                part.ids,
                part.positions,
                part.segments,
                part.targets,
                self._knobs(part, first_row),
            )
        return loss

    def _knobs(self, part: Inputs, first_row: int) -> LayerHook | None:
        if self.job.knobs is None:
            return None
        return self.job.knobs.hook(
            part.targets,
            None if part.segments is None else part.segments.ids_BT,
            step=self.progress.step,
            first_row=first_row,
            progress=self.job.plan.timeline.progress(self.progress.step),
        )

    def _halve_micro_batch(self) -> None:
        plan = self.job.plan
        if plan.micro_batch_rows == 1 or self.parallel.world > 1:
            raise TrainingError(
                f"Una pasada de {plan.micro_batch_rows} × {self.job.settings.context_tokens} "
                f"tokens no cabe en la memoria: baja training.{self.job.stage}.context_tokens o "
                "training.micro_batch_rows, o activa training.activation_checkpointing."
            )
        plan.micro_batch_rows = (plan.micro_batch_rows + 1) // 2
        plan.save()
        self._warn(f"falta memoria: ahora {plan.micro_batch_rows} secuencias por pasada")

    def _learning_rate(self) -> float:
        settings = self.job.settings
        share = rate_share(
            self.job.plan.timeline.progress(self.progress.step + 0.5),
            settings.schedule,
            warmup_share=settings.warmup_share,
            decay_share=settings.decay_share,
            final_share=settings.final_learning_rate_share,
        )
        return settings.learning_rate * share * self.guard.rate_scale

    # --- between steps ------------------------------------------------------------------------

    def _after_step(self) -> None:
        self.saver.settle()
        step, evaluation = self.progress.step, self.job.evaluation
        is_log_step = step % evaluation.log_every_steps == 0
        if is_log_step or step in REPLAN_AT_STEPS:
            self._fit_to_time()
        if is_log_step or step == self.job.plan.timeline.total:
            self._log()
        if step >= self.job.plan.timeline.total:
            return
        if step % evaluation.every_steps == 0:
            self._evaluate()
        if self._is_save_due() or self.progress.best_step == step:
            self._save()

    def _fit_to_time(self) -> None:
        left_s = self._left_s()
        timed = sorted(self._step_times[WARM_STEPS:][-20:])
        if left_s is None or not timed:
            return
        step_s, left_s = self.parallel.agree(timed[len(timed) // 2], left_s)
        if fit_to_time(self.job.plan, step=self.progress.step, step_s=step_s, left_s=left_s):
            self.job.reporter.log(
                f"[{self.job.stage}] {step_s:.1f} s por paso: serán "
                f"{self.job.plan.timeline.total} pasos para acabar a tiempo"
            )

    def _left_s(self) -> float | None:
        """Seconds left for steps by the stage's minutes and the rented time, less a measurement."""
        limits = [self.job.left_s()]
        if self.job.settings.max_minutes is not None:
            limits.append(60 * self.job.settings.max_minutes - self.seconds)
        known = [limit for limit in limits if limit is not None]
        return min(known) - self.progress.eval_seconds if known else None

    def _log(self) -> None:
        window, plan = self._window, self.job.plan
        elapsed = max(time.monotonic() - window.started - window.paused_s, 1e-9)
        shape = self.model.config
        speed = window.tokens / elapsed
        flops = shape.train_flops_per_token(self.job.settings.context_tokens) * speed
        mfu = flops / (plan.compute.peak_tflops * 1e12)
        left = plan.timeline.total - self.progress.step
        step_s = sum(self._step_times[-20:]) / len(self._step_times[-20:])
        eta_s = left * step_s + self.progress.eval_seconds
        loss = sum(window.losses) / len(window.losses) if window.losses else None
        figures = {
            "stage": self.job.stage,
            "step": self.progress.step,
            "total_steps": plan.timeline.total,
            "loss": loss,
            "tokens_per_s": speed,
            "mfu": mfu,
            "eta_s": eta_s,
        }
        self.job.reporter.status(**figures)
        self.job.reporter.metrics(
            **figures,
            learning_rate=self._learning_rate(),
            grad_norm=self._norm,
            tokens=self.progress.tokens,
            data_wait_share=window.data_s / elapsed,
            memory_mib=peak_memory_mib(plan.compute.device),
            skipped=self.guard.n_skipped,
        )
        self.job.reporter.log(
            f"[{self.job.stage}] paso {self.progress.step}/{plan.timeline.total} · "
            f"pérdida {'—' if loss is None else f'{loss:.3f}'} · {speed:.0f} tokens/s · "
            f"MFU {100 * mfu:.0f} % · faltan {_minutes(eta_s)}"
        )
        self._window = _Window(time.monotonic())

    def _evaluate_before(self) -> bool:
        if not self._evaluate():
            return False
        self.progress.before = self.progress.after
        return True

    def _evaluate(self) -> bool:
        """Measure held-out text once per step; False if a stop came first."""
        if self.progress.evaluated_step == self.progress.step:
            return True
        began = time.monotonic()
        self.model.eval()
        with self.parallel.whole():
            scores = self.job.evaluate()
        self.model.train()
        self.progress.eval_seconds = time.monotonic() - began
        self._window.paused_s += self.progress.eval_seconds
        if scores is None:
            return False
        self.progress.after = scores
        self.progress.evaluated_step = self.progress.step
        spanish = scores.get("es")
        if self.progress.step > 0:  # the weights it began with are no result of this stage
            self._compare(scores)
        self.job.reporter.metrics(
            stage=self.job.stage, step=self.progress.step, bits_per_byte=scores
        )
        self.job.reporter.status(bits_per_byte=spanish)
        text = " · ".join(f"{language} {value:.4f}" for language, value in scores.items())
        self.job.reporter.log(
            f"[{self.job.stage}] bits por byte en texto apartado, paso {self.progress.step}: {text}"
        )
        return True

    def _compare(self, scores: dict[str, float]) -> None:
        """Keep the count of measurements without a new best, and say at once what is forgotten."""
        progress, spanish = self.progress, scores.get("es")
        if spanish is not None:  # several processes must count alike
            (spanish,) = self.parallel.agree(spanish)
        if spanish is not None and (progress.best is None or spanish < progress.best):
            progress.best, progress.best_step, progress.not_better = spanish, progress.step, 0
            progress.best_scores = scores
        else:
            progress.not_better += 1
        if alarm := forgetting.alarm(progress.before, scores):
            self._warn(alarm)

    def _has_stalled(self) -> bool:
        """Whether patience with measurements that do not improve has run out."""
        patience = self.job.settings.early_stop_patience
        return 0 < patience <= self.progress.not_better

    def _back_to_best(self) -> None:
        """With early stopping, the stage's result is the best of what was measured."""
        progress = self.progress
        if not self.job.settings.early_stop_patience or progress.best_step in (None, progress.step):
            return
        self.saver.close()  # it may be on its way to the disk still
        try:
            best = checkpoints.load(self.job.root / f"step_{progress.best_step:06d}")
        except CheckpointError as error:
            self._warn(f"{error} Se queda con los pesos del último paso.")
            return
        self.saver.load(best)
        progress.after = progress.best_scores
        self.job.reporter.log(
            f"[{self.job.stage}] se queda con el paso {progress.best_step}, el mejor en texto "
            f"apartado ({progress.best:.4f} bits por byte), y no con el {progress.step}"
        )

    # --- saving and coming back ----------------------------------------------------------------

    def _is_save_due(self) -> bool:
        every_steps = self.job.checkpointing.every_steps
        is_due = time.monotonic() - self._last_save > 60 * self.job.checkpointing.every_minutes
        is_due |= every_steps is not None and self.progress.step % every_steps == 0
        return self._hears("save") or bool(self.parallel.agree(float(is_due))[0])

    def _save(self, *, is_final: bool = False) -> None:
        began = time.monotonic()
        self.progress.seconds, self._resumed_at = self.seconds, time.monotonic()
        meta = {
            "stage": self.job.stage,
            "is_final": is_final,
            "progress": vars(self.progress),
            "guard": self.guard.state_dict(),
            "loader": self.job.loader.state_dict(),
            "rng": rng.capture(),
        }
        (self.saver.save_final if is_final else self.saver.save)(self.progress.step, meta)
        self.saver.prune(
            keep_last=1 if is_final else self.job.checkpointing.keep_last,
            keep_step=self.progress.best_step,
        )
        self._last_save = time.monotonic()
        self._window.paused_s += self._last_save - began
        self.job.reporter.log(
            f"[{self.job.stage}] guardado step_{self.progress.step:06d} "
            f"en {self._last_save - began:.1f} s"
        )

    def _restore(self) -> bool:
        """Load the newest verified checkpoint; True if the stage was already finished."""
        found = checkpoints.load_newest(self.job.root, warn=self._warn)
        if found is None:
            self._trim_metrics(-1)
            return False
        self.saver.load(found)
        self.progress = Progress(**found.meta["progress"])
        if found.meta["is_final"]:
            return True
        self.guard.load_state_dict(found.meta["guard"])
        self.job.loader.load_state_dict(found.meta["loader"])
        rng.restore(found.meta["rng"])
        self._trim_metrics(self.progress.step)
        self.job.reporter.log(f"[{self.job.stage}] continúa desde el paso {self.progress.step}")
        return False

    def _trim_metrics(self, step: int) -> None:
        if self.parallel.is_main:
            path = self.job.reporter.run.metrics_path
            trim_metrics(path, stage=self.job.stage, step=step)

    def _stop(self) -> Literal["stopped"]:
        if self.progress.step > 0:
            self._save()
        self.saver.close()
        return "stopped"

    def _handle_bad_step(self, verdict: Verdict, loss: float, norm: float) -> None:
        if verdict is Verdict.STOP:
            self._give_up(loss, norm)
        elif verdict is Verdict.ROLLBACK:
            self._roll_back(loss, norm)
        else:
            self._warn(f"paso {self.progress.step} saltado: pérdida {loss:.3g}, norma {norm:.3g}")

    def _roll_back(self, loss: float, norm: float) -> None:
        """Weights and moments of the last good checkpoint; the data goes on past the bad window."""
        self._warn(
            f"pérdida {loss:.3g} y norma {norm:.3g} tres pasos seguidos: se vuelve al último punto "
            f"bueno con la tasa a {self.guard.rate_scale:.3g} de la prevista"
        )
        found = checkpoints.load_newest(self.job.root, warn=self._warn)
        if found is None:
            self.saver.load_model(self.job.reload_initial())
        else:
            self.saver.load(found)

    def _give_up(self, loss: float, norm: float) -> None:
        raise TrainingError(
            f"El entrenamiento diverge: pérdida {loss:.3g} y norma {norm:.3g} en el paso "
            f"{self.progress.step}, tras {self.guard.n_rollbacks} vueltas atrás. "
            f"Baja training.{self.job.stage}.learning_rate (ahora "
            f"{self.job.settings.learning_rate:g}) o revisa los datos; el último punto guardado "
            "sigue intacto."
        )

    def _warn(self, text: str) -> None:
        self.job.reporter.log(f"[{self.job.stage}] AVISO: {text}")
        self.job.reporter.metrics(stage=self.job.stage, step=self.progress.step, warning=text)


def outcome_of(root: Path) -> dict[str, Any] | None:
    """Progress stored in a finished stage's final checkpoint, or None."""
    for path in reversed(checkpoints.list_checkpoints(root)):
        meta = checkpoints.read_meta(path)
        if meta["is_final"]:
            return dict(meta["progress"])
    return None


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
