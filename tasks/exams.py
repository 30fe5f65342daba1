"""EXAMS: secondary school questions written in Spanish, by likelihood and in conversation."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import (
    ChoiceItem,
    Data,
    Item,
    Record,
    Task,
    TextItem,
    grade_letter,
    options,
)

LETTERS = "ABCDEFGH"
SOURCE = "mhardalov/exams-qa (multilingual, test, Spanish)"
DATA = Data(files=("exams_es/test.jsonl",))


def by_likelihood(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The answers themselves are the options."""
    items: list[Item] = []
    for record in records:
        choices = record.texts("choices")
        context = f"Pregunta: {record.text('question')}\nRespuesta:"
        gold = record.index("answer", below=len(choices))
        subject = record.text("subject")
        items.append(
            ChoiceItem(record.text("id"), options(context, choices), (gold,), group=subject)
        )
    return items


def by_generation(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """A user's turn that asks for a letter."""
    items: list[Item] = []
    for record in records:
        choices = record.texts("choices")
        listed = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
        )
        prompt = f"{record.text('question')}\n{listed}\n\nResponde solo con la letra correcta."
        gold = record.index("answer", below=len(choices))
        items.append(
            TextItem(
                record.text("id"),
                prompt,
                (LETTERS[gold],),
                max_new_tokens=16,
                group=record.text("subject"),
                random=1 / len(choices),
            )
        )
    return items


TASKS = (
    Task(
        name="exams_es",
        version=1,
        title_es="Exámenes de bachillerato (EXAMS)",
        kind="multiple_choice",
        metric="acc",
        also=("acc_norm",),
        source=SOURCE,
        licence="CC-BY-SA-4.0",
        language="es",
        data=DATA,
        make_items=by_likelihood,
    ),
    Task(
        name="exams_es_chat",
        version=1,
        title_es="Exámenes de bachillerato, conversando (EXAMS)",
        kind="multiple_choice_generation",
        metric="acc",
        source=SOURCE,
        licence="CC-BY-SA-4.0",
        language="es",
        data=DATA,
        make_items=by_generation,
        grade=grade_letter,
        uses_chat=True,
    ),
)
