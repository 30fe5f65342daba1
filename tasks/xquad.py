"""XQuAD in Spanish: the answer is a stretch of the paragraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.common import Data, HubData, Item, Record, Task, TextItem, grade_squad


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """One item per question."""
    return [
        TextItem(
            record.text("id"),
            f"Contexto: {record.text('context')}\n\nPregunta: {record.text('question')}"
            "\n\nRespuesta:",
            _answers(record),
            until=("\n",),
            max_new_tokens=64,
        )
        for record in records
    ]


def _answers(record: Record) -> tuple[str, ...]:
    answers = record.get("answers")
    if isinstance(answers, Mapping):  # the hub's {"text": [...], "answer_start": [...]}
        return tuple(Record(answers, record.origin).texts("text"))
    return tuple(record.texts("answers"))


TASKS = (
    Task(
        name="xquad_es",
        version=1,
        title_es="Preguntas sobre un párrafo (XQuAD)",
        kind="exact_match",
        metric="f1",
        also=("exact_match",),
        random=0.0,
        source="google/xquad",
        licence="CC-BY-SA-4.0",
        language="es",
        data=Data(
            files=("xquad_es/validation.jsonl",),
            hub=HubData("google/xquad", "xquad.es", "validation"),
        ),
        make_items=make_items,
        grade=grade_squad,
        groups=("spanish_bench",),
    ),
)
