"""XStoryCloze and COPA in Spanish: the likely end of a story, the likely cause or effect."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import ChoiceItem, Data, HubData, Item, Record, Task, lower_first, options

LINKS = {"cause": "porque", "effect": "y por lo tanto"}


def story_cloze(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """Four sentences and two endings."""
    items: list[Item] = []
    for i, record in enumerate(records):
        context = " ".join(record.text(f"input_sentence_{n}") for n in range(1, 5))
        endings = [record.text("sentence_quiz1"), record.text("sentence_quiz2")]
        gold = record.index("answer_right_ending", below=3) - 1
        items.append(ChoiceItem(str(i), options(context, endings), (gold,)))
    return items


def copa(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """A premise joined to two alternatives by "porque" or "y por lo tanto"."""
    items: list[Item] = []
    for i, record in enumerate(records):
        asked = record.text("question")
        if asked not in LINKS:
            raise record.wrong("question", "debe ser cause o effect", asked)
        context = f"{record.text('premise')[:-1].strip()} {LINKS[asked]}"
        choices = [lower_first(record.text("choice1")), lower_first(record.text("choice2"))]
        gold = record.index("label", below=2)
        items.append(ChoiceItem(str(i), options(context, choices), (gold,)))
    return items


TASKS = (
    Task(
        name="xstorycloze_es",
        version=1,
        title_es="El final de una historia (XStoryCloze)",
        kind="multiple_choice",
        metric="acc",
        random=1 / 2,
        source="juletxara/xstory_cloze",
        licence="CC-BY-SA-4.0",
        language="es",
        data=Data(
            files=("xstorycloze_es/eval.jsonl",),
            hub=HubData("juletxara/xstory_cloze", "es", "eval"),
        ),
        make_items=story_cloze,
        groups=("spanish_bench",),
    ),
    Task(
        name="copa_es",
        version=1,
        title_es="Causas y efectos (COPA)",
        kind="multiple_choice",
        metric="acc",
        random=1 / 2,
        source="BSC-LT/COPA-es",
        licence="CC-BY-4.0",
        language="es",
        data=Data(files=("copa_es/test.jsonl",), hub=HubData("BSC-LT/COPA-es", split="test")),
        make_items=copa,
        groups=("spanish_bench",),
    ),
)
