"""BLEnD: everyday life in Spain and Mexico, short answers checked against people's own."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import Data, Item, Record, Task, TextItem, grade_contains


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """A user's turn per question; any answer that a person gave is accepted."""
    items: list[Item] = []
    for record in records:
        given = record.get("answers")
        accepted = tuple(text for entry in given for text in entry["answers"])
        if accepted:
            question = f"{record.text('question')} Responde con pocas palabras."
            items.append(TextItem(record.text("id"), question, accepted, max_new_tokens=48))
    return items


def _task(country: str, country_es: str) -> Task:
    return Task(
        name=f"blend_es_{country}",
        version=1,
        title_es=f"Vida cotidiana en {country_es} (BLEnD)",
        kind="exact_match",
        metric="exact_match",
        random=0.0,
        source="nlee0212/BLEnD",
        licence="CC-BY-SA-4.0",
        language="es",
        data=Data(files=(f"blend_es/{country}.jsonl",)),
        make_items=make_items,
        grade=grade_contains,
        uses_chat=True,
    )


TASKS = (_task("spain", "España"), _task("mexico", "México"))
