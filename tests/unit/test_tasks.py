"""Tasks: the words of each question, the marks of answers, and our own sets."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from elchat.errors import DataError
from tasks import all_tasks
from tasks.common import (
    DATA,
    ChoiceItem,
    Record,
    TextItem,
    grade_contains,
    grade_letter,
    grade_number,
    grade_squad,
)

TASKS = all_tasks()
OWN = [name for name, task in TASKS.items() if "propias" in task.groups]
# one row per task in the columns of its source, and the text of its first question
ROWS = {
    "xnli_es_spanish_bench": (
        {"premise": "Llueve mucho .", "hypothesis": "Hace sol", "label": 2},
        "Llueve mucho, ¿correcto? Sí, hace sol.",
    ),
    "paws_es_spanish_bench": (
        {"sentence1": "Ana come.", "sentence2": "Come Ana.", "label": 1},
        "Ana come, ¿verdad? No, come Ana.",
    ),
    "escola": (
        {"Sentence": "Ana come.", "Label": 1},
        "Ana come.\nPregunta: ¿Tiene sentido esta frase?\nRespuesta: no",
    ),
    "truthfulqa-multi_mc1_es": (
        {"question": "¿Sí?", "mc1_targets": {"choices": ["Sí", "No"], "labels": [1, 0]}},
        "Q: ¿Sí?\nA: Sí",
    ),
    "copa_es": (
        {
            "premise": "Llovió.",
            "question": "effect",
            "choice1": "Me mojé.",
            "choice2": "Nevó.",
            "label": 0,
        },
        "Llovió y por lo tanto me mojé.",
    ),
    "xstorycloze_es": (
        {f"input_sentence_{n}": f"F{n}." for n in range(1, 5)}
        | {"sentence_quiz1": "Fin A.", "sentence_quiz2": "Fin B.", "answer_right_ending": 2},
        "F1. F2. F3. F4. Fin A.",
    ),
    "openbookqa_es": (
        {
            "question_stem": "El sol es",
            "choices": {"text": ["frío", "caliente"], "label": ["A", "B"]},
            "answerKey": "B ",
        },
        "El sol es frío",
    ),
    "belebele_spa_Latn": (
        {"flores_passage": "P.", "question": "¿Q? ", "correct_answer_num": "3"}
        | {f"mc_answer{n}": f"r{n}" for n in range(1, 5)},
        "P: P.\nQ: ¿Q?\nA: r1\nB: r2\nC: r3\nD: r4\nAnswer: A",
    ),
    "wnli_es": (
        {"sentence1": "Uno.", "sentence2": "Dos.", "label": 0},
        "Uno.\nPregunta: Dos. ¿Verdadero o Falso?\nRespuesta: Falso",
    ),
    "arc_es": (
        {"instruction": "¿Qué?", "answer": "B", "option_e": None}
        | {f"option_{x}": x for x in "abcd"},
        "Question: ¿Qué?\nAnswer: a",
    ),
    "hellaswag_es": (
        {
            "activity_label": "Cocina",
            "ctx_a": "Ana corta.",
            "ctx_b": "luego",
            "endings": ["come", "[x] baila"],
            "label": "1",
        },
        "Cocina: Ana corta. Luego come",
    ),
    "m_mmlu_es": (
        {"instruction": " ¿Qué? ", "answer": "D"} | {f"option_{x}": x for x in "abcd"},
        "¿Qué?\nA. a\nB. b\nC. c\nD. d\nAnswer: A",
    ),
    "mgsm_direct_es_spanish_bench": (
        {"question": "¿2+2?", "answer": "4"},
        "Pregunta: ¿2+2?\nRespuesta: ",
    ),
    "xquad_es": (
        {"id": "1", "context": "C.", "question": "¿Q?", "answers": {"text": ["r"]}},
        "Contexto: C.\n\nPregunta: ¿Q?\n\nRespuesta:",
    ),
}


def items_of(name: str, *rows, examples=()):
    records = [Record(row, f"datos, línea {i}") for i, row in enumerate(rows, start=1)]
    shown = [Record(row, "ejemplos") for row in examples]
    return TASKS[name].make_items(records, shown)


@pytest.mark.parametrize("name", ROWS)
def test_questions_are_worded_as_in_the_harness(name: str):
    row, expected = ROWS[name]
    (item,) = items_of(name, row)
    if isinstance(item, ChoiceItem):
        assert item.options[0].context + item.options[0].continuation == expected
    else:
        assert item.prompt == expected


def test_right_answers():
    golds = {name: items_of(name, ROWS[name][0])[0] for name in ROWS}
    expected = {
        "xnli_es_spanish_bench": (2,),
        "paws_es_spanish_bench": (1,),
        "xstorycloze_es": (1,),
        "openbookqa_es": (1,),
        "belebele_spa_Latn": (2,),
        "arc_es": (1,),
        "hellaswag_es": (1,),
        "m_mmlu_es": (3,),
    }
    for name, gold in expected.items():
        item = golds[name]
        assert isinstance(item, ChoiceItem)
        assert item.gold == gold, name


def test_few_shot_examples_come_first():
    examples = [{"question": "Pregunta: ¿1?", "answer": "Respuesta paso a paso: 1."}]
    row = {"question": "¿2?", "answer": "2"}
    (item,) = items_of("mgsm_native_cot_es", row, examples=examples)
    assert item.prompt == (
        "Pregunta: ¿1?\nRespuesta paso a paso: 1.\n\nPregunta: ¿2?\nRespuesta paso a paso:"
    )


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_key_is_named_with_its_line(name: str):
    row = dict(ROWS[name][0])
    key = next(k for k in row if not k.startswith(("option_e", "id")))
    del row[key]
    with pytest.raises(DataError, match=r"^datos, línea 2: falta la clave «\w+»; las que hay"):
        items_of(name, ROWS[name][0], row)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("xnli_es_spanish_bench", {"label": 7}, "«label» debe ser un entero de 0 a 2 y vale '7'"),
        ("xnli_es_spanish_bench", {"premise": 3}, "«premise» debe ser texto"),
        ("copa_es", {"question": "why"}, "cause o effect"),
        ("openbookqa_es", {"answerKey": "Z"}, "debe ser una de A, B"),
        ("arc_es", {"answer": "F"}, "debe ser una letra de ABCD"),
        ("truthfulqa-multi_mc1_es", {"mc1_targets": []}, "objeto con choices y labels"),
        ("hellaswag_es", {"endings": "una"}, "debe ser una lista de textos"),
    ],
)
def test_a_wrong_value_is_named(name: str, change: dict, message: str):
    with pytest.raises(DataError, match=message):
        items_of(name, ROWS[name][0] | change)


def test_every_task_says_what_it_is():
    for name, task in TASKS.items():
        assert task.title_es
        assert task.source
        assert task.licence
        assert task.language in ("es", "en")
        assert task.version >= 1
        assert (task.grade is None) == (task.kind in ("multiple_choice", "code")), name
        assert task.data.files or task.data.generated or task.data.hub


@pytest.mark.parametrize(
    ("text", "answer", "mark"),
    [
        ("Son 18.", "18", 1),
        ("5 + 6 = 11. La respuesta es 11.", "11", 1),
        ("Gana $1.000 al día", "1000", 1),
        ("Gana 1,000 dólares", "1000", 1),
        ("17 y luego 18", "17", 0),
        ("no lo sé", "3", 0),
        ("...", "3", 0),
    ],
)
def test_numbers(text: str, answer: str, mark: int):
    assert grade_number(TextItem("1", "", (answer,)), text) == {"exact_match": float(mark)}


def test_letters_and_contained_answers():
    item = TextItem("1", "", ("B",))
    assert grade_letter(item, "La correcta es la B.") == {"acc": 1.0}
    assert grade_letter(item, "Barcelona") == {"acc": 0.0}
    item = TextItem("1", "", ("paella", "jamón serrano"))
    assert grade_contains(item, "Pues... ¡JAMON Serrano!") == {"exact_match": 1.0}
    assert grade_contains(item, "paellas") == {"exact_match": 0.0}


def test_squad_marks():
    item = TextItem("1", "", ("La Torre Eiffel",))
    assert grade_squad(item, "la torre eiffel.") == {"f1": 1.0, "exact_match": 1.0}
    assert grade_squad(item, "torre") == {"f1": 0.5, "exact_match": 0.0}
    assert grade_squad(item, "") == {"f1": 0.0, "exact_match": 0.0}


@pytest.mark.parametrize("name", OWN)
def test_our_own_sets_are_minimal_pairs(name: str):
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 100
    assert len({row["good"] for row in rows}) == len(rows)
    assert min(Counter(row["phenomenon"] for row in rows).values()) >= 4
    for row in rows:
        good, bad = row["good"].split(), row["bad"].split()
        assert row["good"] != row["bad"]
        assert sum((Counter(good) - Counter(bad)).values()) <= 4, row  # one place, a few words
        assert re.search(r"[.?!»]$", row["good"]), row


def test_pairs_about_signs_only_move_signs():
    for line in (DATA / "signos_es.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert re.sub("[¿¡?!]", "", row["good"]) == re.sub("[¿¡?!]", "", row["bad"])
        opened, closed = row["good"].count("¿"), row["good"].count("?")
        assert opened == closed, row
        assert row["good"].count("¡") == row["good"].count("!"), row


def test_letters_are_counted_right():
    for item in items_of("deletreo_es", *TASKS["deletreo_es"].data.generated()):
        word, _, letter = item.id.rpartition("-")
        assert item.answers == (str(word.count(letter)),)
        assert int(item.answers[0]) >= 1
