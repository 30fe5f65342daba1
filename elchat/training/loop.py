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
from elchat.autonomy.training_knobs import TrainingKnobs
from elchat.config import CheckpointSection, EvaluationSection, StageSection, TrainingSection
from elchat.data.loader import Batch, Inputs, PackedLoader
from elchat.errors import TrainingError
from elchat.gpt import GPT
from elchat.hooks import LayerHook
from elchat.training import rng
from elchat.training.device import out_of_memory_as_none
from elchat.training.guard import Guard, Verdict
from elchat.training.loss import summed_cross_entropy
from elchat.training.optim import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from elchat.training.plan import StagePlan, fit_to_time
from elchat.training.reporter import Reporter, trim_metrics
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
    evaluated_step: int | None = None


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
        self.model = job.model
        self.optimizer = build_optimizer(job.model, weight_decay=job.settings.weight_decay)
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
        while self.progress.step < self.job.plan.timeline.total:
            if not self._step():
                return self._stop()
            self._after_step()
        if not self._evaluate():
            return self._stop()
        self._save(is_final=True)
        return "done"

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent in this stage over all its starts."""
        return self.progress.seconds + time.monotonic() - self._resumed_at

    # --- one step -----------------------------------------------------------------------------

    def _step(self) -> bool:
        """Take one optimizer step; False if a stop came first (nothing consumed)."""
        began = time.monotonic()
        data_state = self.job.loader.state_dict()
        batch = self.job.loader.next_step(self._rows)
        self._window.data_s += time.monotonic() - began
        result = self._forward_backward(batch)
        if result is None:
            self.optimizer.zero_grad(set_to_none=True)
            self.job.loader.load_state_dict(data_state)
            return False
        loss, norm = result
        verdict = self.guard.judge(loss, norm)
        if verdict is Verdict.OK:
            set_learning_rate(self.optimizer, self._learning_rate())
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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
                norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.job.settings.clip_norm)
                return total / max(batch.n_targets, 1), float(norm)
            assert out_of_memory
            self.optimizer.zero_grad(set_to_none=True)
            self._halve_micro_batch()

    def _accumulate(self, batch: Batch) -> float | None:
        plan, device = self.job.plan, self.job.plan.compute.device
        total = torch.zeros((), device=device)
        for start in range(0, self._rows, plan.micro_batch_rows):
            if self.job.reporter.should_stop():
                return None
            part = batch.part(slice(start, start + plan.micro_batch_rows), device)
            with plan.compute.autocast():
                hidden = self.model.hidden(
                    part.ids,
                    positions_BT=part.positions,
                    segments_BT=part.segments,
                    hook=self._knobs(part, start),
                )
                loss = summed_cross_entropy(hidden, self.model.head_weight_VC, part.targets)
            (loss / max(batch.n_targets, 1)).backward()
            total += loss.detach()
        return float(total)

    def _knobs(self, part: Inputs, first_row: int) -> LayerHook | None:
        if self.job.knobs is None:
            return None
        return self.job.knobs.hook(
            part.targets,
            part.segments,
            step=self.progress.step,
            first_row=first_row,
            progress=self.job.plan.timeline.progress(self.progress.step),
        )

    def _halve_micro_batch(self) -> None:
        plan = self.job.plan
        if plan.micro_batch_rows == 1:
            raise TrainingError(
                f"Una sola secuencia de {self.job.settings.context_tokens} tokens no cabe en la "
                f"memoria: baja training.{self.job.stage}.context_tokens o activa "
                "training.activation_checkpointing."
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
        step, evaluation = self.progress.step, self.job.evaluation
        is_log_step = step % evaluation.log_every_steps == 0
        if self.job.settings.max_minutes is not None and (is_log_step or step in REPLAN_AT_STEPS):
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
        timed = sorted(self._step_times[WARM_STEPS:][-20:])
        if not timed:
            return
        assert self.job.settings.max_minutes is not None
        left_s = 60 * self.job.settings.max_minutes - self.seconds - self.progress.eval_seconds
        step_s = timed[len(timed) // 2]
        if fit_to_time(self.job.plan, step=self.progress.step, step_s=step_s, left_s=left_s):
            self.job.reporter.log(
                f"[{self.job.stage}] {step_s:.1f} s por paso: serán "
                f"{self.job.plan.timeline.total} pasos para acabar a tiempo"
            )

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
        scores = self.job.evaluate()
        self.model.train()
        self.progress.eval_seconds = time.monotonic() - began
        self._window.paused_s += self.progress.eval_seconds
        if scores is None:
            return False
        self.progress.after = scores
        self.progress.evaluated_step = self.progress.step
        spanish = scores.get("es")
        if spanish is not None and (self.progress.best is None or spanish < self.progress.best):
            self.progress.best, self.progress.best_step = spanish, self.progress.step
        self.job.reporter.metrics(
            stage=self.job.stage, step=self.progress.step, bits_per_byte=scores
        )
        self.job.reporter.status(bits_per_byte=spanish)
        text = " · ".join(f"{language} {value:.4f}" for language, value in scores.items())
        self.job.reporter.log(
            f"[{self.job.stage}] bits por byte en texto apartado, paso {self.progress.step}: {text}"
        )
        return True

    # --- saving and coming back ----------------------------------------------------------------

    def _is_save_due(self) -> bool:
        every_steps = self.job.checkpointing.every_steps
        is_due = time.monotonic() - self._last_save > 60 * self.job.checkpointing.every_minutes
        is_due |= every_steps is not None and self.progress.step % every_steps == 0
        return self.job.reporter.should_save() or is_due

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
        path = checkpoints.save(
            self.job.root,
            self.progress.step,
            model={name: t.detach().contiguous() for name, t in self.model.state_dict().items()},
            optimizer={} if is_final else optimizer_tensors(self.model, self.optimizer),
            meta=meta,
        )
        best = self.progress.best_step
        checkpoints.prune(
            self.job.root,
            keep_last=1 if is_final else self.job.checkpointing.keep_last,
            keep=None if best is None else self.job.root / f"step_{best:06d}",
        )
        self._last_save = time.monotonic()
        self._window.paused_s += self._last_save - began
        self.job.reporter.log(
            f"[{self.job.stage}] guardado {path.name} en {self._last_save - began:.1f} s"
        )

    def _restore(self) -> bool:
        """Load the newest verified checkpoint; True if the stage was already finished."""
        found = checkpoints.load_newest(self.job.root, warn=self._warn)
        if found is None:
            trim_metrics(self.job.reporter.run.metrics_path, stage=self.job.stage, step=-1)
            return False
        self._load_weights(found)
        self.progress = Progress(**found.meta["progress"])
        if found.meta["is_final"]:
            return True
        self.guard.load_state_dict(found.meta["guard"])
        self.job.loader.load_state_dict(found.meta["loader"])
        rng.restore(found.meta["rng"])
        trim_metrics(
            self.job.reporter.run.metrics_path, stage=self.job.stage, step=self.progress.step
        )
        self.job.reporter.log(f"[{self.job.stage}] continúa desde el paso {self.progress.step}")
        return False

    def _load_weights(self, found: checkpoints.Checkpoint) -> None:
        self.model.load_state_dict(found.model)
        if found.optimizer:
            load_optimizer_tensors(self.model, self.optimizer, found.optimizer)
        else:  # a final checkpoint, or one in which every step so far was skipped
            self.optimizer.state.clear()

    def _stop(self) -> Literal["stopped"]:
        if self.progress.step > 0:
            self._save()
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
            self.model.load_state_dict(self.job.reload_initial())
            self.optimizer.state.clear()
        else:
            self._load_weights(found)

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
