"""What the worker's evaluation stage measures of each of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elchat.config import Config
from elchat.errors import DataError, NetworkError
from elchat.evaluation import comparison, datasets, documents, table
from elchat.evaluation.datasets import Request
from elchat.evaluation.passes import compiled_weights
from elchat.evaluation.results import Subject, save_figures, weights_sha256
from elchat.evaluation.runner import Asked, run_task
from elchat.panels import NativeWeights
from elchat.runs import Run
from elchat.training.reporter import Reporter
from elchat.weights import LoadedModel
from tasks.common import Item


class Stopped(Exception):
    """A stop was asked for and obeyed; the run can be resumed."""


@dataclass(frozen=True)
class RunMeter:
    """Held-out text and tasks of one run; the figures go to RUN/evaluation.

    Attributes:
        questions: tasks that could be read, with their items.
    """

    run: Run
    config: Config
    reporter: Reporter
    texts: list[documents.HeldOut]
    questions: list[tuple[Request, list[Item]]]

    @classmethod
    def open(
        cls, run: Run, config: Config, reporter: Reporter, texts: list[documents.HeldOut]
    ) -> RunMeter:
        """Read the tasks; one whose data cannot be read is left out with a warning."""
        questions = []
        for request in datasets.parse_requests(config.evaluation.tasks):
            try:
                items = datasets.load_items(request, config.evaluation.task_limit, reporter.log)
                questions.append((request, items))
            except (DataError, NetworkError) as error:
                reporter.log(f"[eval] AVISO: {error} Se sigue sin esa tarea.")
        return cls(run, config, reporter, texts, questions)

    @property
    def folder(self) -> Path:
        return self.run.path / "evaluation"

    def measure(self, label: str, loaded: LoadedModel, replies: list[str], path: str) -> None:
        """Measure one model.

        Raises:
            Stopped: a stop was asked for; what is known stays.
        """
        base = loaded.base.key if loaded.base else None
        subject = Subject(label, path, weights_sha256(loaded.model), base, "fp32")
        prompts = self.config.evaluation.sample_prompts
        samples = [{"prompt": p, "reply": r} for p, r in zip(prompts, replies, strict=True)]
        save_figures(self.folder, subject, self.command, samples=samples)
        compiled = compiled_weights(loaded.model)
        for text in self.texts:
            bits = documents.measure(
                self.folder,
                subject,
                loaded.model,
                text,
                should_stop=self.reporter.should_stop,
                note=self.reporter.log,
                compiled=compiled,
            )
            if bits is None:
                raise Stopped
            changes = {"bits_per_byte": {text.language: bits}}
            save_figures(self.folder, subject, self.command, **changes)
            self.reporter.log(
                f"[eval] {label}: {table.number(bits['value'], 4)} bits por byte ({text.language})"
            )
        for request, items in self.questions:
            self._ask(subject, loaded, compiled, request, items)

    def compare(self, a: str, b: str) -> None:
        """Compare two of the models measured, if anything was."""
        if not self.texts and not self.questions:
            self.reporter.log("[eval] no hay texto apartado ni tareas: nada que comparar")
            return
        found = comparison.compare(self.folder, a, b)
        self.reporter.log(f"[eval] veredicto: {found['verdict']} ({'; '.join(found['reasons'])})")

    @property
    def command(self) -> str:
        """What repeats the measurement."""
        return f"elchat eval {self.run.id} --compare base"

    def _ask(
        self,
        subject: Subject,
        loaded: LoadedModel,
        compiled: NativeWeights | None,
        request: Request,
        items: list[Item],
    ) -> None:
        task = request.task
        asked = Asked(
            should_stop=self.reporter.should_stop,
            progress=self._progress(f"{subject.label}: {task.name}"),
            note=self.reporter.log,
            compiled=compiled,
        )
        entry = run_task(self.folder, subject, loaded, task, items, asked)
        if entry is None:
            raise Stopped
        save_figures(self.folder, subject, self.command, tasks={task.name: entry})
        self.reporter.log(
            f"[eval] {subject.label}: {task.name} {table.percent(entry['value'])} % "
            f"({entry['n']} preguntas, azar {table.percent(entry['random'])} %)"
        )

    def _progress(self, what: str) -> Callable[[int, int], None]:
        def show(done: int, total: int) -> None:
            if done % max(1, total // 10) == 0 and done < total:
                self.reporter.log(f"[eval] {what}: {done}/{total}")

        return show
