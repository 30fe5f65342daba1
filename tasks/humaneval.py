"""HumanEval with its explanations in Spanish (HumanEval-XL) and in English: write a function."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import Data, HubData, Item, Record, Task, TextItem

UNTIL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The test runs `check` on the function that the model completed."""
    return [
        TextItem(
            record.text("task_id"),
            record.text("prompt"),
            (),
            until=UNTIL,
            max_new_tokens=384,
            test=f"{record.text('test')}\ncheck({record.text('entry_point')})\n",
        )
        for record in records
    ]


def _task(name: str, title: str, file: str, language: str, hub: HubData | None, src: str) -> Task:
    return Task(
        name=name,
        version=1,
        title_es=title,
        kind="code",
        metric="pass@1",
        random=0.0,
        source=src,
        licence="MIT",
        language=language,
        data=Data(files=(f"humaneval/{file}.jsonl",), hub=hub),
        make_items=make_items,
    )


TASKS = (
    _task(
        "humaneval_xl_es",
        "Programar en Python con enunciados en español (HumanEval-XL)",
        "humaneval_xl_python_es",
        "es",
        None,
        "FloatAI/humaneval-xl",
    ),
    _task(
        "humaneval",
        "Programar en Python con enunciados en inglés (HumanEval)",
        "humaneval_en",
        "en",
        HubData("openai/openai_humaneval"),
        "openai/openai_humaneval",
    ),
)
