"""Belebele: reading comprehension with four options."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import ChoiceItem, Data, HubData, Item, Record, Task, options


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The letters are the options."""
    items: list[Item] = []
    for i, record in enumerate(records):
        listed = "\n".join(
            f"{letter}: {record.text(f'mc_answer{n}')}" for n, letter in enumerate("ABCD", start=1)
        )
        context = (
            f"P: {record.text('flores_passage')}\nQ: {record.text('question').strip()}\n"
            f"{listed}\nAnswer:"
        )
        gold = record.index("correct_answer_num", below=5) - 1
        items.append(ChoiceItem(str(i), options(context, "ABCD"), (gold,)))
    return items


TASKS = (
    Task(
        name="belebele_spa_Latn",
        version=1,
        title_es="Comprensión lectora (Belebele)",
        kind="multiple_choice",
        metric="acc",
        random=1 / 4,
        source="facebook/belebele",
        licence="CC-BY-SA-4.0",
        language="es",
        data=Data(
            files=("belebele_spa_Latn/test.jsonl",),
            hub=HubData("facebook/belebele", "spa_Latn", "test"),
        ),
        make_items=make_items,
        groups=("spanish_bench",),
    ),
)
