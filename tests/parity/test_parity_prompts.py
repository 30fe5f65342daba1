"""Our questions, options and right answers against those the harness makes of the same rows."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tasks.common import ChoiceItem
from tests.unit.test_tasks import ROWS, items_of

pytest.importorskip("lm_eval")

# columns that the harness reads and our tasks do not
EXTRA: dict[str, dict[str, Any]] = {
    "mgsm_direct_es_spanish_bench": {"answer": None, "answer_number": 4},
    "hellaswag_es": {"ctx": "Ana corta. luego", "source_id": "1", "split": "val", "ind": 1},
    "arc_es": {"id": "1"},
    "xquad_es": {"answers": {"text": ["r"], "answer_start": [0]}},
    "openbookqa_es": {"answerKey": " B"},  # it strips one side only
}


@cache
def shipped() -> dict[str, Path]:
    """Configuration file of each task the installed harness has, by name."""
    import lm_eval

    found = {}
    for path in (Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("task: "):
                found[line.removeprefix("task: ").strip().strip("\"'")] = path
    return found


def harness_task(name: str, row: dict[str, Any], folder: Path) -> Any:
    """The harness's own task over one row of ours."""
    from lm_eval.tasks import TaskManager

    data = folder / "fila.jsonl"
    data.write_text(json.dumps(row | EXTRA.get(name, {}), ensure_ascii=False), encoding="utf-8")
    changes = {
        "include": str(shipped()[name]),
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
        "fewshot_config": None,
        "tag": None,
    }
    (folder / f"local_{name}.yaml").write_text(json.dumps(changes), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load_task_or_group(f"local_{name}")[f"local_{name}"]


@pytest.mark.parametrize("name", ROWS)
def test_questions_are_those_of_the_harness(name: str, tmp_path: Path):
    (item,) = items_of(name, ROWS[name][0])
    task = harness_task(name, ROWS[name][0], tmp_path)
    (doc,) = task.eval_docs
    context, delimiter = task.doc_to_text(doc), task.config.target_delimiter
    if not isinstance(item, ChoiceItem):
        assert item.prompt == context
        return
    choices = task.doc_to_choice(doc)
    if isinstance(context, int):  # several contexts and one ending, as in copa
        pytest.fail("una tarea de varios contextos: compárese aparte")
    assert [o.context + o.continuation for o in item.options] == [
        context + delimiter + choice for choice in choices
    ]
    target = task.doc_to_target(doc)
    gold = choices.index(target) if isinstance(target, str) and target in choices else int(target)
    assert item.gold == (gold,)
