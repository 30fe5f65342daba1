"""PAWS-X in Spanish: do two sentences with the same words say the same?"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import (
    ChoiceItem,
    Data,
    HubData,
    Item,
    Record,
    Task,
    detokenise,
    lower_first,
    whole_texts,
)


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """One item per pair of sentences; pairs with an empty one are left out, as in the harness."""
    items: list[Item] = []
    for i, record in enumerate(records):
        first, second = record.text("sentence1"), record.text("sentence2")
        if not first or not second:
            continue
        first = detokenise(first).strip()
        if first.endswith((".", ",", ";")):
            first = first[:-1]
        second = lower_first(detokenise(second).strip())
        texts = [f"{first}, ¿verdad? {word}, {second}" for word in ("No", "Sí")]
        items.append(ChoiceItem(str(i), whole_texts(texts), (record.index("label", below=2),)))
    return items


TASKS = (
    Task(
        name="paws_es_spanish_bench",
        version=1,
        title_es="Paráfrasis (PAWS-X)",
        kind="multiple_choice",
        metric="acc",
        random=1 / 2,
        source="google-research-datasets/paws-x",
        licence="uso libre con atribución a Google",
        language="es",
        data=Data(
            files=("pawsx_es/test.jsonl",),
            hub=HubData("google-research-datasets/paws-x", "es", "test"),
        ),
        make_items=make_items,
        groups=("spanish_bench",),
    ),
)
