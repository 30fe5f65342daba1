"""GSM8K in English: the pair of MGSM, to see what is forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.common import Data, HubData, Item, Record, Task, TextItem, grade_number

SHOTS = 5


def make_items(records: Sequence[Record], examples: Sequence[Record]) -> list[Item]:
    """The first five training problems, then the question."""
    solved = "".join(
        f"Question: {example.text('question')}\nAnswer: {example.text('answer')}\n\n"
        for example in examples[:SHOTS]
    )
    return [
        TextItem(
            str(i),
            f"{solved}Question: {record.text('question')}\nAnswer:",
            (record.text("answer").rpartition("#### ")[2],),
            until=("Question:", "</s>", "<|im_end|>"),
        )
        for i, record in enumerate(records)
    ]


TASKS = (
    Task(
        name="gsm8k",
        version=1,
        title_es="Problemas de aritmética en inglés (GSM8K, 5 ejemplos)",
        kind="exact_match",
        metric="exact_match",
        random=0.0,
        source="openai/gsm8k",
        licence="MIT",
        language="en",
        data=Data(
            files=("gsm8k_en/test.jsonl",),
            hub=HubData("openai/gsm8k", "main", "test"),
            examples_file="gsm8k_en/train.jsonl",
            examples_split="train",
        ),
        make_items=make_items,
        grade=grade_number,
        num_fewshot=SHOTS,
    ),
)
