"""Everything known of a run, gathered once: report.html, report.md and the model card say this.

A run folder at any age is enough: only run.json and config.yaml must be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from elchat import bases, estimate
from elchat.config import Config
from elchat.errors import ElchatError
from elchat.model_config import GPTConfig, config_from_hf
from elchat.report.reading import FolderReader, figure, items, mapping
from elchat.runs import Run

TRAINED = ("cpt", "sft")
STAGE_NAMES = {"cpt": "preentrenamiento continuado", "sft": "ajuste de conversación"}
LANGUAGES = {"es": "español", "en": "inglés"}
LABELS = {"base": "base", "cpt": "CPT", "sft": "SFT", "final": "elchat", "result": "elchat"}
LABEL_ORDER = ("base", "cpt", "sft", "result", "final")
FACTS_FILE = "report.json"
FERTILITY_KEYS = ("tokens", "words", "bytes")


@dataclass(frozen=True)
class Score:
    """Bits per byte at one moment, with its interval where it was measured."""

    moment: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class StageFacts:
    """What one training stage took. `seconds` leaves the measuring out.

    Attributes:
        planned_tokens_per_s: from elchat's estimate for this machine; None where it has none.
    """

    name: str
    is_finished: bool
    steps: int
    tokens: int
    seconds: float
    peak_memory_mib: float | None
    device: str | None
    precision: str | None
    threads: int | None
    peak_tflops: float | None
    mfu: float | None
    planned_tokens_per_s: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True)
class Moment:
    """One logged line; `tokens` counts from the beginning of the run."""

    stage: str
    tokens: float
    loss: float | None
    tokens_per_s: float | None
    bits_per_byte: dict[str, float]


@dataclass(frozen=True)
class TaskScore:
    """One model on one task."""

    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class Task:
    """A task with every model measured on it, by label."""

    name: str
    title: str
    metric: str
    random: float | None
    is_higher_better: bool
    licence: str
    source: str
    scores: dict[str, TaskScore]


@dataclass(frozen=True)
class Sample:
    """A prompt and what each model answered, by label."""

    prompt: str
    replies: dict[str, str]


@dataclass(frozen=True)
class Source:
    """Training data of one stage, or held-out text."""

    stage: str
    name: str
    split: str
    language: str
    licence: str
    documents: int
    tokens: int
    bytes: int
    weight: float | None


@dataclass(frozen=True)
class Facts:
    """A run as its files tell it.

    Attributes:
        comparison: the newest evaluation/compare-*.json, as it is.
        fertility: by language, {"tokens", "words", "bytes"} of held-out text.
        card: autonomy_card.json, as it is.
        files: sha256 of the result, by file.
        problems: what could not be read.
    """

    id: str
    created: float
    provider: str
    config: Config
    config_sha256: str
    versions: dict[str, str]
    git_commit: str | None
    outcome: str | None
    message: str | None
    usd_spent: float
    n_params: int | None
    stages: dict[str, StageFacts]
    scores: dict[str, list[Score]]
    curve: list[Moment]
    tasks: list[Task]
    comparison: dict[str, Any] | None
    samples: list[Sample]
    data: list[Source]
    fertility: dict[str, dict[str, int]]
    card: dict[str, Any] | None
    licence: str
    files: dict[str, str]
    problems: list[str] = field(default_factory=list)

    @property
    def is_trained(self) -> bool:
        """Whether every training stage that was asked for ended."""
        asked = [name for name in TRAINED if getattr(self.config.training, name).enabled]
        return all(name in self.stages and self.stages[name].is_finished for name in asked)

    @property
    def labels(self) -> list[str]:
        """Models evaluated on tasks, in order of training."""
        seen = {label for task in self.tasks for label in task.scores}
        return [label for label in LABEL_ORDER if label in seen]

    @property
    def held_out(self) -> list[Source]:
        """Text set apart to measure: the first stage's that has any."""
        held = [source for source in self.data if source.split != "train"]
        return [source for source in held if source.stage == held[0].stage]


def gather(run: Run, *, fertility: dict[str, dict[str, int]] | None = None) -> Facts:
    """Read a run folder.

    Args:
        run: finished or not.
        fertility: counts of held-out text where somebody just made them; else the last report's.

    Raises:
        RunError: its configuration cannot be read.
    """
    config = run.config()
    reader = FolderReader(run.path)
    earlier = reader.object(FACTS_FILE) or {}
    try:
        status = run.status()
        outcome, message, spent = status.outcome, status.message, status.usd_spent
    except ElchatError as error:
        reader.problems.append(str(error))
        outcome, message, spent = None, None, 0.0
    lines = reader.lines("metrics.jsonl")
    markers = {stage: reader.object(f"stages/{stage}.json") or {} for stage in _all_stages()}
    shape = _shape(reader, config)
    curve = _curve(lines)
    stages = dict(_stages(reader, config, markers, lines, shape))
    evaluations = _evaluations(reader)
    return Facts(
        id=run.id,
        created=run.created,
        provider=run.provider,
        config=config,
        config_sha256=run.config_sha256,
        versions=dict(run.versions),
        git_commit=run.git_commit,
        outcome=outcome,
        message=message,
        usd_spent=spent,
        n_params=shape.n_params if shape else None,
        stages=stages,
        scores=_scores(markers, curve, evaluations),
        curve=curve,
        tasks=_tasks(evaluations),
        comparison=_comparison(reader),
        samples=_samples(markers["eval"], evaluations),
        data=_data(reader, markers["data"], earlier),
        fertility=fertility or _counts(earlier.get("fertility")),
        card=reader.object("model/autonomy_card.json"),
        licence=_licence(reader, config),
        files={
            k: str(v)
            for marker in (markers["export"], reader.object("stages/mood.json") or {})
            for k, v in mapping(marker.get("outputs")).items()
        },
        problems=reader.problems,
    )


def saved(facts: Facts) -> dict[str, Any]:
    """What report.json keeps: figures for programs, and the data of shards that may vanish."""
    return {
        "schema": 1,
        "run": facts.id,
        "outcome": facts.outcome,
        "scores": {k: [asdict(s) for s in v] for k, v in facts.scores.items()},
        "stages": {
            k: {**asdict(v), "tokens_per_s": v.tokens_per_s} for k, v in facts.stages.items()
        },
        "tasks": [asdict(task) for task in facts.tasks],
        "samples": [asdict(sample) for sample in facts.samples],
        "data": [asdict(source) for source in facts.data],
        "fertility": facts.fertility,
        "usd_spent": facts.usd_spent,
        "n_params": facts.n_params,
        "licence": facts.licence,
        "files": facts.files,
        "problems": facts.problems,
    }


def _all_stages() -> tuple[str, ...]:
    return ("data", "cpt", "sft", "eval", "export")


def _shape(reader: FolderReader, config: Config) -> GPTConfig | None:
    if config.model.base in bases.BASES:
        return bases.BASES[config.model.base].shape
    try:
        return config_from_hf(reader.object("model/config.json") or {})
    except (ElchatError, TypeError, ValueError, KeyError, AttributeError):
        return None


def _licence(reader: FolderReader, config: Config) -> str:
    known = bases.BASES.get(config.model.base)
    settings = mapping((reader.object("model/tokenizer_config.json") or {}).get("elchat"))
    return str(settings.get("licence") or (known.licence if known else "desconocida"))


def _curve(lines: list[dict[str, Any]]) -> list[Moment]:
    """Logged lines over tokens since the run began; a line without its own count keeps the last."""
    curve: list[Moment] = []
    offset = reached = 0.0
    stage = None
    for line in lines:
        if line.get("stage") != stage:
            stage, offset = line.get("stage"), reached
        tokens = figure(line.get("tokens"))
        reached = offset + tokens if tokens is not None else reached
        scores = {k: figure(v) for k, v in mapping(line.get("bits_per_byte")).items()}
        curve.append(
            Moment(
                stage=str(stage),
                tokens=reached,
                loss=figure(line.get("loss")),
                tokens_per_s=figure(line.get("tokens_per_s")),
                bits_per_byte={k: v for k, v in scores.items() if v is not None},
            )
        )
    return curve


def _stages(
    reader: FolderReader,
    config: Config,
    markers: dict[str, dict[str, Any]],
    lines: list[dict[str, Any]],
    shape: GPTConfig | None,
) -> Iterator[tuple[str, StageFacts]]:
    for name in TRAINED:
        logged = [line for line in lines if line.get("stage") == name and "tokens" in line]
        if not markers[name] and not logged:
            continue
        progress = mapping(markers[name].get("progress"))
        last = logged[-1] if logged else {}
        speeds = [s for line in logged if (s := figure(line.get("tokens_per_s")))]
        tokens = figure(progress.get("tokens")) or figure(last.get("tokens")) or 0.0
        compute = mapping((reader.object(f"stages/{name}.plan.json") or {}).get("compute"))
        shares = [m for line in logged if (m := figure(line.get("mfu")))]
        seconds = figure(progress.get("seconds"))
        if seconds is None:
            seconds = tokens * len(speeds) / sum(speeds) if speeds else 0.0
        yield (
            name,
            StageFacts(
                name=name,
                is_finished=bool(markers[name]),
                steps=int(figure(progress.get("step")) or figure(last.get("step")) or 0),
                tokens=int(tokens),
                seconds=seconds,
                peak_memory_mib=figure(markers[name].get("peak_memory_mib")),
                device=compute.get("device"),
                precision=compute.get("precision"),
                threads=compute.get("threads"),
                peak_tflops=figure(compute.get("peak_tflops")),
                mfu=sum(shares) / len(shares) if shares else None,
                planned_tokens_per_s=_planned(config, shape, compute),
            ),
        )


def _planned(config: Config, shape: GPTConfig | None, compute: dict[str, Any]) -> float | None:
    """Tokens per second that `elchat estimate` would have said for this machine."""
    peak = figure(compute.get("peak_tflops"))
    if shape is None:
        return None
    try:
        if config.compute.gpus:
            offers = estimate.offers(config, shape)
            return offers[0].tokens_per_s if offers else None
        if compute.get("device") != "cpu" or not peak:
            return None
        cores = int(compute.get("threads") or 1)
        return estimate.on_cpu(config, shape, cores=cores, peak_tflops=peak).tokens_per_s
    except (ElchatError, KeyError):
        return None


def _scores(
    markers: dict[str, dict[str, Any]], curve: list[Moment], evaluations: dict[str, dict[str, Any]]
) -> dict[str, list[Score]]:
    """By language, bits per byte before, after CPT and after SFT."""
    rows: dict[str, list[Score]] = {}
    last = "sft" if "sft" in evaluations else "final"
    intervals = {"antes": "base", "tras CPT": "cpt", "tras SFT": last}
    for stage in TRAINED:
        progress = mapping(markers[stage].get("progress"))
        before, after = mapping(progress.get("before")), mapping(progress.get("after"))
        measured = [m.bits_per_byte for m in curve if m.stage == stage and m.bits_per_byte]
        before = before or (measured[0] if measured else {})
        after = after or (measured[-1] if len(measured) > 1 else {})
        moments = [("antes", before)] if not rows else []
        for moment, values in [*moments, (f"tras {stage.upper()}", after)]:
            label = intervals[moment]
            for language, value in values.items():
                score = _score(moment, value, evaluations.get(label), language)
                if score is not None:
                    rows.setdefault(language, []).append(score)
    return rows


def _score(
    moment: str, value: Any, evaluation: dict[str, Any] | None, language: str
) -> Score | None:
    """What training measured, or the evaluation's own figure, which has an interval."""
    measured = mapping(mapping(mapping(evaluation).get("bits_per_byte")).get(language))
    number = figure(measured.get("value"))
    if number is None:
        number = figure(value)
    low, high = _pair(measured.get("ci95"))
    return None if number is None else Score(moment, number, low, high)


def _pair(value: Any) -> tuple[float | None, float | None]:
    ends = [figure(end) for end in items(value)]
    return (ends[0], ends[1]) if len(ends) == 2 else (None, None)


def _evaluations(reader: FolderReader) -> dict[str, dict[str, Any]]:
    found = {}
    for label in LABEL_ORDER:
        value = reader.object(f"evaluation/{label}.json")
        if value is not None:
            found[label] = value
    return found


def _tasks(evaluations: dict[str, dict[str, Any]]) -> list[Task]:
    tasks: dict[str, Task] = {}
    for label, evaluation in evaluations.items():
        for name, raw in mapping(evaluation.get("tasks")).items():
            result = mapping(raw)
            value = figure(result.get("value"))
            if value is None:
                continue
            if name not in tasks:
                tasks[name] = Task(
                    name=name,
                    title=str(result.get("title_es") or name),
                    metric=str(result.get("metric") or ""),
                    random=figure(result.get("random")),
                    is_higher_better=result.get("higher_is_better") is not False,
                    licence=str(result.get("licence") or "desconocida"),
                    source=str(result.get("source") or ""),
                    scores={},
                )
            low, high = _pair(result.get("ci95"))
            n = figure(result.get("n"))
            tasks[name].scores[label] = TaskScore(value, low, high, None if n is None else int(n))
    return list(tasks.values())


def _comparison(reader: FolderReader) -> dict[str, Any] | None:
    """The comparison of the base with the most trained model there is."""
    for last in ("final", "sft", "cpt"):
        found = reader.object(f"evaluation/compare-base-{last}.json")
        if found is not None:
            return found
    return None


def _samples(marker: dict[str, Any], evaluations: dict[str, dict[str, Any]]) -> list[Sample]:
    replies: dict[str, dict[str, str]] = {}
    prompts = [str(prompt) for prompt in items(marker.get("prompts"))]
    for label, texts in mapping(marker.get("replies")).items():
        for question, text in zip(prompts, items(texts), strict=False):
            replies.setdefault(question, {})[str(label)] = str(text)
    for label, evaluation in evaluations.items():
        for raw in items(evaluation.get("samples")):
            sample = mapping(raw)
            prompt, reply = sample.get("prompt"), sample.get("reply", sample.get("text"))
            if isinstance(prompt, str) and isinstance(reply, str):
                replies.setdefault(prompt, {})[label] = reply
    return [Sample(prompt, _in_order(by_label)) for prompt, by_label in replies.items()]


def _in_order(by_label: dict[str, str]) -> dict[str, str]:
    known = [label for label in LABEL_ORDER if label in by_label]
    return {label: by_label[label] for label in [*known, *(set(by_label) - set(known))]}


def _data(reader: FolderReader, marker: dict[str, Any], earlier: dict[str, Any]) -> list[Source]:
    """From the shards' manifests where they are; a run brought home keeps its report's list."""
    found: list[Source] = []
    for stage, path in mapping(marker.get("shards")).items():
        manifest = FolderReader(Path(str(path))).object("manifest.json")
        found += [_source(stage, mapping(s)) for s in items(mapping(manifest).get("splits"))]
    if not found:
        found = [_source(str(s.get("stage")), s) for s in map(mapping, items(earlier.get("data")))]
    if not found:
        reader.problems.append(
            "No se encuentran los datos preparados de esta ejecución: el informe no puede decir "
            "con qué se entrenó."
        )
    return found


def _source(stage: str, split: dict[str, Any]) -> Source:
    return Source(
        stage=stage,
        name=str(split.get("name")),
        split=str(split.get("split")),
        language=str(split.get("language")),
        licence=str(split.get("licence")),
        documents=int(figure(split.get("documents")) or 0),
        tokens=int(figure(split.get("tokens")) or 0),
        bytes=int(figure(split.get("bytes")) or 0),
        weight=figure(split.get("weight")),
    )


def _counts(value: Any) -> dict[str, dict[str, int]]:
    found = {}
    for language, raw in mapping(value).items():
        counts = {key: figure(mapping(raw).get(key)) for key in FERTILITY_KEYS}
        if all(counts.values()):
            found[language] = {key: int(number or 0) for key, number in counts.items()}
    return found
