"""What a benchmark is: where its rows come from, how they become questions, how answers count.

A task is a value, not a class: it turns rows of data into items (`make_items`), and the runner in
`elchat.evaluation` does the rest. Change anything that changes a question or its mark and raise
`version`: figures of two versions are never mixed.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from elchat.errors import DataError

DATA = Path(__file__).parent / "data"

Kind = Literal["multiple_choice", "multiple_choice_generation", "exact_match", "code"]
Metric = Literal[
    "acc",
    "acc_norm",
    "mcc",
    "mc2",
    "exact_match",
    "f1",
    "pass@1",
    "prompt_strict",
    "prompt_loose",
]


@dataclass(frozen=True)
class Record:
    """One row of data and where it was read, for messages."""

    values: Mapping[str, Any]
    origin: str

    def get(self, *names: str) -> Any:
        """The first of these keys that the row has.

        Raises:
            DataError: it has none of them; the sentence says which there are.
        """
        for name in names:
            if name in self.values:
                return self.values[name]
        present = ", ".join(map(str, self.values)) or "ninguna"
        raise DataError(f"{self.origin}: falta la clave «{names[0]}»; las que hay son: {present}.")

    def text(self, *names: str) -> str:
        """Like `get`, for a text."""
        value = self.get(*names)
        if not isinstance(value, str):
            raise self.wrong(names[0], "debe ser texto", value)
        return value

    def texts(self, *names: str) -> list[str]:
        """Like `get`, for a list of texts that is not empty."""
        value = self.get(*names)
        good = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
        if not good or not all(isinstance(item, str) for item in value):
            raise self.wrong(names[0], "debe ser una lista de textos", value)
        return list(value)

    def index(self, *names: str, below: int) -> int:
        """Like `get`, for a whole number from 0 to `below` - 1; digits in a text count."""
        value = self.get(*names)
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < below:
            raise self.wrong(names[0], f"debe ser un entero de 0 a {below - 1}", value)
        return number

    def wrong(self, name: str, rule: str, value: Any) -> DataError:
        """The error for a value that cannot be used."""
        return DataError(f"{self.origin}: «{name}» {rule} y vale {str(value)[:60]!r}.")


@dataclass(frozen=True)
class Option:
    """A continuation to score after a context; `length` divides it in acc_norm."""

    context: str
    continuation: str
    length: int


@dataclass(frozen=True)
class ChoiceItem:
    """A question answered by the most likely of its options; `gold` are the right ones.

    Attributes:
        group: part of the set it belongs to, for a breakdown ("" for none).
    """

    id: str
    options: tuple[Option, ...]
    gold: tuple[int, ...]
    group: str = ""

    @property
    def random(self) -> float:
        """Chance of guessing right."""
        return len(self.gold) / len(self.options)

    @property
    def text(self) -> str:
        """What to look for in the training data."""
        right = self.options[self.gold[0]]
        return right.context + right.continuation


@dataclass(frozen=True)
class TextItem:
    """A question answered in writing.

    Attributes:
        prompt: text to continue; the user's turn if the task uses the chat format.
        until: the answer ends before any of these.
        answers: accepted ones.
        test: what the answer must pass: a program (code tasks), or whatever the task's `grade`
            reads.
        random: chance of guessing right.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    until: tuple[str, ...] = ()
    max_new_tokens: int = 256
    test: str = ""
    group: str = ""
    random: float = 0.0

    @property
    def text(self) -> str:
        """What to look for in the training data."""
        return self.prompt


Item = ChoiceItem | TextItem
Marks = dict[str, float]


@dataclass(frozen=True)
class HubData:
    """A data set of the hub."""

    id: str
    subset: str | None = None
    split: str = "test"


@dataclass(frozen=True)
class Data:
    """Where a task's rows are.

    Attributes:
        files: paths inside the folder of ELCHAT_EVAL_DATA, or inside `tasks/data` (`own`).
        hub: the same rows on the hub, if they are there.
        examples: file, or split of the hub data set, with the few-shot examples.
        generated: makes the rows; nothing is read.
    """

    files: tuple[str, ...] = ()
    hub: HubData | None = None
    examples_file: str | None = None
    examples_split: str | None = None
    is_own: bool = False
    generated: Callable[[], Iterator[Mapping[str, Any]]] | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: as in lm-evaluation-harness where it exists there.
        version: raised with every change of questions or marks.
        title_es: for people.
        metric: the figure quoted; `also` are computed too.
        random: what guessing scores on `metric`; None for the mean of the items' own.
        make_items: (rows, few-shot rows) -> items.
        grade: marks of a written answer, by metric (not for multiple choice nor code).
        uses_chat: the prompt is a user's turn in the model's chat format.
        num_fewshot: examples shown before each question.
    """

    name: str
    version: int
    title_es: str
    kind: Kind
    metric: Metric
    source: str
    licence: str
    language: str
    data: Data
    make_items: Callable[[Sequence[Record], Sequence[Record]], list[Item]]
    random: float | None = None
    also: tuple[Metric, ...] = ()
    grade: Callable[[TextItem, str], Marks] | None = None
    uses_chat: bool = False
    num_fewshot: int = 0
    groups: tuple[str, ...] = field(default=())


# --- multiple choice ---------------------------------------------------------------------------


def options(context: str, choices: Sequence[str], *, delimiter: str = " ") -> tuple[Option, ...]:
    """Options after one context, as the harness writes them: context + delimiter + choice."""
    return tuple(Option(context, delimiter + choice, len(choice)) for choice in choices)


def whole_texts(texts: Sequence[str]) -> tuple[Option, ...]:
    """Options that are whole texts, scored from their first word."""
    return options("", texts, delimiter="")


def minimal_pairs(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """Items of {"id", "good", "bad", "phenomenon"}: the right sentence against the wrong one."""
    return [
        ChoiceItem(
            id=record.text("id"),
            options=whole_texts((record.text("good"), record.text("bad"))),
            gold=(0,),
            group=record.text("phenomenon"),
        )
        for record in records
    ]


# --- written answers ---------------------------------------------------------------------------

NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")  # the harness's "flexible-extract"


def grade_number(item: TextItem, text: str) -> Marks:
    """1 if the last number written is the answer, punctuation apart: "$1.000." is 1000."""
    found = NUMBER.findall(text)
    given = next(part for part in found[-1] if part) if found else ""
    return {"exact_match": float(_digits(given) == _digits(item.answers[0]))}


def grade_letter(item: TextItem, text: str) -> Marks:
    """1 if the first letter standing alone in the answer is the right one."""
    found = re.search(r"\b([A-H])\b", text)
    return {"acc": float(found is not None and found.group(1) == item.answers[0])}


def grade_squad(item: TextItem, text: str) -> Marks:
    """Exact match and word F1 against the first answer, as SQuAD's own script for English.

    The harness compares Spanish sets the same way: only the English articles are dropped.
    """
    given, gold = _squad_words(text), _squad_words(item.answers[0])
    common = sum((Counter(given) & Counter(gold)).values())
    if not given or not gold:
        f1 = float(given == gold)
    else:
        f1 = 2 * common / (len(given) + len(gold)) if common else 0.0
    return {"f1": f1, "exact_match": float(given == gold)}


def grade_contains(item: TextItem, text: str) -> Marks:
    """1 if any accepted answer is in the text, whatever its accents, case and punctuation."""
    said = f" {plain(text)} "
    return {"exact_match": float(any(f" {plain(answer)} " in said for answer in item.answers))}


def plain(text: str) -> str:
    """Lower case words without accents or punctuation (ñ becomes n)."""
    bare = unicodedata.normalize("NFD", text.lower())
    kept = "".join(c for c in bare if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^\w\s]", " ", kept).split())


def _digits(text: str) -> str:
    return "".join(c for c in text.strip() if c not in string.punctuation)


def _squad_words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


# --- texts -------------------------------------------------------------------------------------


def detokenise(text: str) -> str:
    """Undo the spaces that tokenised corpora put around punctuation, as the harness does."""
    for old, new in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(old, new)
    return re.sub(r" (['.,])", r"\1", text)


def lower_first(text: str) -> str:
    """Lower-case the first letter."""
    return text[:1].lower() + text[1:]
