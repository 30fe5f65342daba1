"""EsCoLA: is the sentence good Spanish? Matthews correlation, because most of them are."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import ChoiceItem, Data, HubData, Item, Record, Task, options


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """One item per sentence."""
    items: list[Item] = []
    for i, record in enumerate(records):
        sentence = record.text("sentence", "Sentence")
        context = f"{sentence}\nPregunta: ¿Tiene sentido esta frase?\nRespuesta:"
        gold = record.index("label", "Label", below=2)
        items.append(ChoiceItem(str(i), options(context, ("no", "sí")), (gold,)))
    return items


TASKS = (
    Task(
        name="escola",
        version=1,
        title_es="Frases correctas e incorrectas (EsCoLA)",
        kind="multiple_choice",
        metric="mcc",
        also=("acc",),
        random=0.0,
        source="nbel/EsCoLA",
        licence="CC-BY-4.0 según el artículo (CC-BY-NC-SA-4.0 según la ficha)",
        language="es",
        data=Data(files=("escola/dev.jsonl",), hub=HubData("nbel/EsCoLA", split="validation")),
        make_items=make_items,
        groups=("spanish_bench",),
    ),
)
