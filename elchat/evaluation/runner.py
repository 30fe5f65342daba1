"""Ask a model the questions of a task and mark its answers, item by item.

Each mark is written as soon as it is known; started again, only what is missing is asked.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elchat.errors import ConfigError
from elchat.evaluation import sandbox, stats
from elchat.evaluation.generation import generate_greedy
from elchat.evaluation.results import ItemFile, Row, Subject, item_sha
from elchat.evaluation.scoring import PairEncoder, Scored, score_groups
from elchat.panels import NativeWeights
from elchat.weights import LoadedModel
from tasks.common import ChoiceItem, Item, Marks, Task, TextItem

KEPT_CHARS = 2000  # of a written answer, in its row


@dataclass(frozen=True)
class Asked:
    """How to ask.

    Attributes:
        allow_code: run programs that the model writes (in `sandbox`).
        progress: told (done, total) after each item.
        should_stop: polled after each item.
        note: told in a sentence what is not an answer.
        compiled: the weights for the compiled passes (`passes.compiled_weights`), or None.
    """

    allow_code: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False
    note: Callable[[str], None] = lambda line: None
    compiled: NativeWeights | None = None


def run_task(
    folder: Path,
    subject: Subject,
    loaded: LoadedModel,
    task: Task,
    items: Sequence[Item],
    asked: Asked,
) -> dict[str, Any] | None:
    """The figures of one task; None if stopped (what is known stays written).

    Raises:
        ConfigError: a code task without `allow_code`.
        DataError: an item that cannot be asked.
    """
    if task.kind == "code" and not asked.allow_code:
        raise ConfigError(
            f"{task.name} ejecuta programas que escribe el modelo: repite con --allow-code si lo "
            "aceptas."
        )
    store = ItemFile(folder, subject, task.name, task.version, asked.note)
    shas = {item.id: item_sha(item) for item in items}
    todo = [item for item in items if store.rows.get(item.id, {}).get("sha") != shas[item.id]]
    done, began = len(items) - len(todo), time.monotonic()
    try:
        for row in answers(loaded, task, todo, asked.compiled):
            store.append({**row, "sha": shas[row["id"]]})
            done += 1
            asked.progress(done, len(items))
            if asked.should_stop():
                return None
    finally:
        store.close(time.monotonic() - began)
    rows = [store.rows[item.id] for item in items]
    return figures(task, items, rows, store.seconds)


def answers(
    loaded: LoadedModel,
    task: Task,
    items: Sequence[Item],
    compiled: NativeWeights | None = None,
) -> Iterator[Row]:
    """One row per item, in whatever order they are ready."""
    if task.kind == "multiple_choice":
        yield from _choose(loaded, task, [i for i in items if isinstance(i, ChoiceItem)], compiled)
    else:
        yield from _write(loaded, task, [i for i in items if isinstance(i, TextItem)], compiled)


def figures(
    task: Task, items: Sequence[Item], rows: Sequence[Row], seconds: float
) -> dict[str, Any]:
    """The `tasks` entry of the results."""
    found = estimate(task.metric, rows)
    random = task.random
    if random is None:
        random = statistics.fmean(item.random for item in items)
    groups = sorted({item.group for item in items if item.group})
    entry: dict[str, Any] = {
        "version": task.version,
        "title_es": task.title_es,
        "kind": task.kind,
        "metric": task.metric,
        "value": found.value,
        "stderr": found.stderr,
        "ci95": list(found.ci95) if found.ci95 else None,
        "n": found.n,
        "random": random,
        "higher_is_better": True,
        "num_fewshot": task.num_fewshot,
        "source": task.source,
        "licence": task.licence,
        "language": task.language,
        "seconds": round(seconds, 1),
        "also": {name: _brief(stats.mean([row[name] for row in rows])) for name in task.also},
    }
    if len(groups) > 1:
        entry["groups"] = {
            group: _brief(
                stats.mean(
                    [r["score"] for i, r in zip(items, rows, strict=True) if i.group == group]
                )
            )
            for group in groups
        }
    return entry


def estimate(metric: str, rows: Sequence[Row]) -> stats.Estimate:
    """A task's figure from its rows."""
    if metric == "mcc":
        return stats.mcc([row["gold"] for row in rows], [row["pred"] for row in rows])
    return stats.mean([row["score"] for row in rows])


def encoder_of(loaded: LoadedModel) -> PairEncoder:
    """How texts become ids: Llama's begin of text in front, as its own tokenizer does."""
    starts = loaded.doc_prefix_ids if loaded.family == "llama3" else ()
    empty = loaded.bos_id if loaded.bos_id is not None else loaded.eos_id
    return PairEncoder(loaded.tokenizer, starts, empty)


# --- multiple choice ---------------------------------------------------------------------------


def _choose(
    loaded: LoadedModel, task: Task, items: Sequence[ChoiceItem], compiled: NativeWeights | None
) -> Iterator[Row]:
    encoder = encoder_of(loaded)
    groups = [
        [
            encoder.pair(option.context, option.continuation, where=f"{task.name}, {item.id}")
            for option in item.options
        ]
        for item in items
    ]
    is_relative = "acc_norm" not in {task.metric, *task.also}
    for at, scores in score_groups(
        loaded.model,
        groups,
        n_ids=loaded.tokenizer.vocab_size,
        is_relative=is_relative,
        compiled=compiled,
    ):
        yield _choice_row(task, items[at], scores)


def _choice_row(task: Task, item: ChoiceItem, scores: Sequence[Scored]) -> Row:
    logprobs = np.array([scored.logprob for scored in scores])
    lengths = np.array([max(1, option.length) for option in item.options])
    best, best_norm = int(logprobs.argmax()), int((logprobs / lengths).argmax())
    marks: Marks = {
        "acc": float(best in item.gold),
        "acc_norm": float(best_norm in item.gold),
        "mcc": float(best in item.gold),
        "mc2": _mass(logprobs, item.gold),
    }
    return {
        "id": item.id,
        "score": marks[task.metric],
        **{name: marks[name] for name in task.also},
        "pred": best,
        "gold": item.gold[0],
        "logprobs": [round(float(value), 5) for value in logprobs],
    }


def _mass(logprobs: np.ndarray, gold: Sequence[int]) -> float:
    """Share of the options' probability that lies on the right ones."""
    p = np.exp(logprobs - logprobs.max())
    return float(p[list(gold)].sum() / p.sum())


# --- written answers ---------------------------------------------------------------------------


def _write(
    loaded: LoadedModel, task: Task, items: Sequence[TextItem], compiled: NativeWeights | None
) -> Iterator[Row]:
    """Items of the same length limit are continued together."""
    for limit in sorted({item.max_new_tokens for item in items}):
        group = [item for item in items if item.max_new_tokens == limit]
        prompts = [_prompt(loaded, task, item) for item in group]
        for at, ids in generate_greedy(
            loaded.model,
            prompts,
            max_new_tokens=limit,
            stop_ids=[loaded.eos_id, *loaded.chat_eos_ids],
            n_ids=loaded.tokenizer.vocab_size,
            is_finished=functools.partial(_is_finished, loaded, group),
            compiled=compiled,
        ):
            text = cut_at(loaded.tokenizer.decode(ids), group[at].until)
            yield _text_row(task, group[at], text)


def _prompt(loaded: LoadedModel, task: Task, item: TextItem) -> list[int]:
    if not task.uses_chat:
        return encoder_of(loaded).prompt(item.prompt)
    messages = [{"role": "user", "content": item.prompt}]
    return loaded.chat.render(messages, add_generation_prompt=True).ids


def _is_finished(loaded: LoadedModel, items: Sequence[TextItem], at: int, ids: list[int]) -> bool:
    """Whether the last token completed one of the texts that end the answer."""
    item = items[at]
    if not item.until:
        return False
    longest = max(len(stop.encode("utf-8")) for stop in item.until)
    tail = loaded.tokenizer.decode(ids[-longest - 1 :])
    return any(stop in tail for stop in item.until)


def cut_at(text: str, until: Sequence[str]) -> str:
    """The text before the first of these."""
    return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=len(text))]


def _text_row(task: Task, item: TextItem, text: str) -> Row:
    row: Row = {"id": item.id, "text": text[:KEPT_CHARS]}
    if task.kind == "code":
        outcome = sandbox.run_program(f"{item.prompt}{text}\n{item.test}")
        return {**row, "score": float(outcome.is_ok), "reason": outcome.reason}
    assert task.grade is not None
    marks = task.grade(item, text)
    return {**row, "score": marks[task.metric], **{name: marks[name] for name in task.also}}


def _brief(found: stats.Estimate) -> Mapping[str, Any]:
    value = None if math.isnan(found.value) else found.value
    return {"value": value, "stderr": found.stderr, "n": found.n}
