"""WNLI in Spanish: what does the pronoun stand for?"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import ChoiceItem, Data, HubData, Item, Record, Task, options


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """True or false?"""
    items: list[Item] = []
    for i, record in enumerate(records):
        context = (
            f"{record.text('sentence1')}\nPregunta: {record.text('sentence2')} "
            "¿Verdadero o Falso?\nRespuesta:"
        )
        gold = record.index("label", below=2)
        items.append(ChoiceItem(str(i), options(context, ("Falso", "Verdadero")), (gold,)))
    return items


TASKS = (
    Task(
        name="wnli_es",
        version=1,
        title_es="A quién se refiere el pronombre (WNLI)",
        kind="multiple_choice",
        metric="acc",
        random=1 / 2,
        source="PlanTL-GOB-ES/wnli-es",
        licence="CC-BY-4.0",
        language="es",
        data=Data(
            files=("wnli_es/dev.jsonl",),
            hub=HubData("PlanTL-GOB-ES/wnli-es", split="validation"),
        ),
        make_items=make_items,
        groups=("spanish_bench",),
    ),
)
