"""XNLI in Spanish: does the first sentence entail the second? Read as one of three sentences."""

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

LINKS = ("Sí", "Así que", "No")  # entailment, neutral, contradiction


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """One item per pair of sentences."""
    items: list[Item] = []
    for i, record in enumerate(records):
        premise = detokenise(record.text("premise")).strip()
        if premise.endswith((".", ",", "!", "?")):
            premise = premise[:-1]
        hypothesis = lower_first(detokenise(record.text("hypothesis")).strip())
        if not hypothesis.endswith("."):
            hypothesis += "."
        texts = [f"{premise}, ¿correcto? {link}, {hypothesis}" for link in LINKS]
        gold = record.index("label", below=3)
        items.append(ChoiceItem(str(i), whole_texts(texts), (gold,)))
    return items


TASKS = (
    Task(
        name="xnli_es_spanish_bench",
        version=1,
        title_es="Inferencia entre dos frases (XNLI)",
        kind="multiple_choice",
        metric="acc",
        random=1 / 3,
        source="facebook/xnli (hub); hitz-zentroa/XNLIvar data/es",
        licence="CC-BY-NC-4.0",
        language="es",
        data=Data(
            files=("xnli_es/test_original.jsonl",),
            hub=HubData("facebook/xnli", "es", "validation"),
        ),
        make_items=make_items,
        groups=("spanish_bench",),
    ),
    Task(
        name="xnli_es_native",
        version=1,
        title_es="Inferencia entre dos frases escritas en español (XNLI nativo)",
        kind="multiple_choice",
        metric="acc",
        random=1 / 3,
        source="hitz-zentroa/XNLIvar data/es",
        licence="CC-BY-NC-4.0",
        language="es",
        data=Data(files=("xnli_es/test_native_eu2es.jsonl",)),
        make_items=make_items,
    ),
)
