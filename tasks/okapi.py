"""ARC, HellaSwag and MMLU in Spanish: machine translations made for Okapi."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tasks.common import ChoiceItem, Data, HubData, Item, Record, Task, options

LETTERS = "ABCDE"


def arc(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The answers themselves are the options."""
    items: list[Item] = []
    for i, record in enumerate(records):
        names = [f"option_{letter}" for letter in LETTERS.lower()]
        choices = [clean(record.values[n]) for n in names if record.values.get(n)]
        context = f"Question: {clean(record.text('instruction'))}\nAnswer:"
        items.append(ChoiceItem(str(i), options(context, choices), (_letter(record, choices),)))
    return items


def hellaswag(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """Four ways for a story to go on."""
    items: list[Item] = []
    for i, record in enumerate(records):
        scene = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
        endings = [clean(ending) for ending in record.texts("endings")]
        context = clean(f"{record.text('activity_label')}: {scene}")
        gold = record.index("label", below=len(endings))
        items.append(ChoiceItem(str(i), options(context, endings), (gold,)))
    return items


def mmlu(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The letters are the options."""
    items: list[Item] = []
    for i, record in enumerate(records):
        listed = "\n".join(
            f"{letter}. {record.text(f'option_{letter.lower()}')}" for letter in LETTERS[:4]
        )
        context = f"{record.text('instruction').strip()}\n{listed}\nAnswer:"
        gold = _letter(record, LETTERS[:4])
        items.append(ChoiceItem(str(i), options(context, LETTERS[:4]), (gold,)))
    return items


def clean(text: str) -> str:
    """Take out the marks of the WikiHow part of HellaSwag."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _letter(record: Record, choices: Sequence[str]) -> int:
    letter = record.text("answer")
    if letter not in tuple(LETTERS[: len(choices)]):
        raise record.wrong("answer", f"debe ser una letra de {LETTERS[: len(choices)]}", letter)
    return LETTERS.index(letter)


def _task(
    name: str,
    title: str,
    hub: HubData,
    licence: str,
    make: Callable[[Sequence[Record], Sequence[Record]], list[Item]],
    is_normed: bool = True,
) -> Task:
    return Task(
        name=name,
        version=1,
        title_es=title,
        kind="multiple_choice",
        metric="acc_norm" if is_normed else "acc",
        also=("acc",) if is_normed else (),
        random=1 / 4,
        source=hub.id,
        licence=licence,
        language="es",
        data=Data(files=(f"{name}/test.jsonl",), hub=hub),
        make_items=make,
        groups=("nanochat",),
    )


TASKS = (
    _task(
        "arc_es",
        "Ciencias de primaria (ARC)",
        HubData("alexandrainst/m_arc", "es", "test"),
        "CC-BY-NC-4.0",
        arc,
    ),
    _task(
        "hellaswag_es",
        "Cómo sigue la escena (HellaSwag)",
        HubData("alexandrainst/m_hellaswag", "es", "val"),
        "CC-BY-NC-4.0",
        hellaswag,
    ),
    _task(
        "m_mmlu_es",
        "Conocimientos de 57 materias (MMLU)",
        HubData("alexandrainst/m_mmlu", "es", "test"),
        "CC-BY-NC-4.0",
        mmlu,
        is_normed=False,
    ),
)
