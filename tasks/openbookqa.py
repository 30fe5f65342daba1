"""OpenBookQA in Spanish: elementary science that takes a step of reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.common import ChoiceItem, Data, HubData, Item, Record, Task, options


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The stem is continued by each answer."""
    items: list[Item] = []
    for i, record in enumerate(records):
        choices = record.get("choices")
        if not isinstance(choices, Mapping):
            raise record.wrong("choices", "debe ser un objeto con text y label", choices)
        inner = Record(choices, f"{record.origin}, choices")
        texts, labels = inner.texts("text"), inner.texts("label")
        answer = record.text("answerKey").strip()
        if answer not in labels:
            raise record.wrong("answerKey", f"debe ser una de {', '.join(labels)}", answer)
        stem = record.text("question_stem")
        items.append(ChoiceItem(str(i), options(stem, texts), (labels.index(answer),)))
    return items


TASKS = (
    Task(
        name="openbookqa_es",
        version=1,
        title_es="Ciencias con libro abierto (OpenBookQA)",
        kind="multiple_choice",
        metric="acc_norm",
        also=("acc",),
        random=1 / 4,
        source="BSC-LT/openbookqa-es",
        licence="CC-BY-4.0",
        language="es",
        data=Data(
            files=("openbookqa_es/test.jsonl",), hub=HubData("BSC-LT/openbookqa-es", split="test")
        ),
        make_items=make_items,
        groups=("spanish_bench",),
    ),
)
