"""lm-evaluation-harness over local files: its own Spanish tasks, with only the data moved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SPLITS = {
    "xnli_es_spanish_bench": "validation",
    "paws_es_spanish_bench": "test",
    "mgsm_direct_es_spanish_bench": "test",
    "escola": "validation",
}


def write_tasks(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write `local_TASK.yaml` for each task: the harness's own, over a JSON file of these rows."""
    import lm_eval

    shipped = Path(lm_eval.__file__).parent / "tasks" / "spanish_bench"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in rows.items():
        data = folder / f"{name}.jsonl"
        with open(data, "w", encoding="utf-8") as out:
            for row in values:
                out.write(json.dumps(harness_row(name, row), ensure_ascii=False) + "\n")
        # JSON is YAML; the splits that are not here are turned off
        changes = {
            "include": str(shipped / f"{name}.yaml"),
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {SPLITS[name]: str(data)}},
            "training_split": None,
            "validation_split": SPLITS[name] if SPLITS[name] == "validation" else None,
            "test_split": SPLITS[name] if SPLITS[name] == "test" else None,
            "tag": None,
        }
        (folder / f"local_{name}.yaml").write_text(json.dumps(changes), encoding="utf-8")


def harness_row(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns the harness expects."""
    if name == "escola":
        return {"Sentence": row["sentence"], "Label": row["label"]}
    if name.startswith("mgsm"):
        number = int(str(row["answer"]).replace(",", ""))
        return {"question": row["question"], "answer_number": number, "answer": None}
    return dict(row)


def run(model: Any, folder: Path, names: Sequence[str], **options: Any) -> dict[str, Any]:
    """Results of `simple_evaluate` for the tasks of `write_tasks`, by task name."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=model,
        tasks=[f"local_{name}" for name in names],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )
    assert found is not None
    return {
        name: {
            "metrics": found["results"][f"local_{name}"],
            "samples": found["samples"][f"local_{name}"],
        }
        for name in names
    }


def figure(name: str, metrics: Mapping[str, Any]) -> float:
    """The metric that elchat quotes."""
    if name.startswith("mgsm"):
        return float(metrics["exact_match,flexible-extract"])
    return float(metrics["mcc,none" if name == "escola" else "acc,none"])
