"""MGSM in Spanish: school problems in words, answered straight or step by step."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import Data, HubData, Item, Record, Task, TextItem, grade_number

UNTIL = ("Pregunta:", "</s>", "<|im_end|>")
HUB = HubData("juletxara/mgsm", "es", "test")


def _answer(record: Record) -> str:
    return str(record.get("answer_number", "answer"))


def direct(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """The question and "Respuesta: ", as spanish_bench."""
    return [
        TextItem(
            str(i),
            f"Pregunta: {record.text('question')}\nRespuesta: ",
            (_answer(record),),
            until=UNTIL,
        )
        for i, record in enumerate(records)
    ]


def step_by_step(records: Sequence[Record], examples: Sequence[Record]) -> list[Item]:
    """Eight solved problems before each question; examples bring "Pregunta:" of their own."""
    solved = "".join(
        f"{example.text('question')}\n{example.text('answer')}\n\n" for example in examples
    )
    return [
        TextItem(
            str(i),
            f"{solved}Pregunta: {record.text('question')}\nRespuesta paso a paso:",
            (_answer(record),),
            until=("\n\n", "Pregunta:"),
        )
        for i, record in enumerate(records)
    ]


TASKS = (
    Task(
        name="mgsm_direct_es_spanish_bench",
        version=1,
        title_es="Problemas de aritmética (MGSM)",
        kind="exact_match",
        metric="exact_match",
        random=0.0,
        source="google-research/url-nlp mgsm; juletxara/mgsm",
        licence="CC-BY-4.0",
        language="es",
        data=Data(files=("mgsm_es/test.jsonl",), hub=HUB),
        make_items=direct,
        grade=grade_number,
        groups=("spanish_bench",),
    ),
    Task(
        name="mgsm_native_cot_es",
        version=1,
        title_es="Problemas de aritmética paso a paso (MGSM, 8 ejemplos)",
        kind="exact_match",
        metric="exact_match",
        random=0.0,
        source="google-research/url-nlp mgsm; juletxara/mgsm",
        licence="CC-BY-4.0",
        language="es",
        data=Data(
            files=("mgsm_es/test.jsonl",),
            hub=HUB,
            examples_file="mgsm_es/exemplars_es.jsonl",
            examples_split="train",
        ),
        make_items=step_by_step,
        grade=grade_number,
        num_fewshot=8,
    ),
)
