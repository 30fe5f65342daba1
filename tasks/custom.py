"""A task of the user's own: a JSONL file, one question a line.

    {"prompt": "La capital de Perú es", "choices": ["Lima", "Quito"], "answer": 0}
    {"prompt": "¿Capital de Perú?", "answers": ["Lima"], "chat": true}

With `choices` the likeliest is the model's answer; without them the model writes, and any of
`answers` in what it writes counts. Every line of a file must be of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elchat.errors import DataError
from tasks.common import (
    ChoiceItem,
    Data,
    Item,
    Record,
    Task,
    TextItem,
    grade_contains,
    options,
)

TASKS: tuple[Task, ...] = ()


def task_for(path: Path, records: Sequence[Record]) -> Task:
    """The task of a file; its first line says of which kind.

    Raises:
        DataError: no line, or the first has neither `choices` nor `answers`.
    """
    if not records:
        raise DataError(f"{path} está vacío: hace falta al menos una pregunta por línea.")
    first = records[0].values
    if "choices" not in first and "answers" not in first:
        raise DataError(
            f"{records[0].origin}: hace falta «choices» (opciones) o «answers» (respuestas "
            f"válidas); las claves que hay son: {', '.join(first) or 'ninguna'}."
        )
    is_choice = "choices" in first
    return Task(
        name=path.name.removesuffix(".gz").removesuffix(".jsonl"),
        version=1,
        title_es=f"Tarea propia ({path.name})",
        kind="multiple_choice" if is_choice else "exact_match",
        metric="acc" if is_choice else "exact_match",
        also=("acc_norm",) if is_choice else (),
        random=None if is_choice else 0.0,
        source=path.name,
        licence="del usuario",
        language="es",
        data=Data(),
        make_items=choice_items if is_choice else text_items,
        grade=None if is_choice else grade_contains,
        uses_chat=not is_choice and bool(first.get("chat", False)),
    )


def choice_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """Questions with options."""
    items: list[Item] = []
    for i, record in enumerate(records):
        choices = record.texts("choices")
        if len(choices) < 2:
            raise record.wrong("choices", "debe tener dos opciones o más", choices)
        gold = record.index("answer", below=len(choices))
        items.append(ChoiceItem(_id(record, i), options(record.text("prompt"), choices), (gold,)))
    return items


def text_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """Questions answered in writing."""
    return [
        TextItem(
            _id(record, i), record.text("prompt"), tuple(record.texts("answers")), max_new_tokens=64
        )
        for i, record in enumerate(records)
    ]


def _id(record: Record, i: int) -> str:
    return str(record.values.get("id", i))
