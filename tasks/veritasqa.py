"""VeritasQA: truthfulness questions that depend neither on the country nor on the year."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import ChoiceItem, Data, Item, Record, Task, options


def mc1(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The best answer among the false ones."""
    return [
        _item(record, [record.text("best_answer")], record.texts("incorrect_answers"))
        for record in records
    ]


def mc2(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """All true answers against all false ones."""
    return [
        _item(record, record.texts("correct_answers"), record.texts("incorrect_answers"))
        for record in records
    ]


def _item(record: Record, true: list[str], false: list[str]) -> Item:
    context = f"Pregunta: {record.text('question')}\nRespuesta:"
    gold = tuple(range(len(true)))
    return ChoiceItem(record.text("id"), options(context, [*true, *false]), gold)


TASKS = tuple(
    Task(
        name=f"veritasqa_{kind}_es",
        version=1,
        title_es=f"Veracidad sin país ni fecha (VeritasQA, {kind})",
        kind="multiple_choice",
        metric="acc" if kind == "mc1" else "mc2",
        source="langtech-bsc/veritasQA",
        licence="Apache-2.0",
        language="es",
        data=Data(files=("veritasqa_es/test.jsonl",)),
        make_items=mc1 if kind == "mc1" else mc2,
    )
    for kind in ("mc1", "mc2")
)
