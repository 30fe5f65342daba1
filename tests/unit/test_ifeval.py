"""M-IFEval: each instruction has an answer that follows it and one that does not."""

from __future__ import annotations

import json

import pytest

from elchat.errors import DataError
from tasks.common import Record
from tasks.ifeval import CHECKS, follows, grade, language, loose_forms, make_items, n_sentences

CASES = [
    ("keywords:existence", {"keywords": ["mar", "sol"]}, "El Sol y el mar.", "El sol."),
    ("keywords:frequency", {"relation": "al menos", "keyword": "mar", "frequency": 2},
     "Mar y mar.", "Un mar."),
    ("keywords:frequency", {"relation": "como máximo", "keyword": "mar", "frequency": 1},
     "Un mar.", "Mar y mar."),
    ("keywords:forbidden_words", {"forbidden_words": ["mar"]}, "La marea.", "El mar."),
    ("keywords:letter_frequency", {"let_relation": "al menos", "letter": "f", "let_frequency": 2},
     "Fofo", "foco"),
    ("language:response_language", {"language": "de"}, "Das ist nicht der Weg.", "Es el camino."),
    ("length_constraints:number_words", {"relation": "como máximo", "num_words": 3},
     "1. Uno dos\n- tres", "uno dos tres cuatro"),
    ("length_constraints:number_sentences", {"relation": "al menos", "num_sentences": 3},
     "Sí. ¿Y tú? ¡Claro!", "El Sr. Pérez tiene 3.5 kg. Nada más."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Desde mi"},
     "Uno.\n\n«Desde mi casa", "Uno.\n\nDesde tu casa"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] y [b]", "[a] y b"),
    ("detectable_content:postscript", {"postscript_marker": "P.D."}, "Fin. P. D. Hola", "Fin."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "Quizás. Depende.", "Depende."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     "*uno* y *dos*", "*uno* y ** **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Sección", "num_sections": 2},
     "Sección 1\na\nSección 2\nb", "Sección 1\na\nSección b"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Un título>>\nTexto", "<< >>\nTexto"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Di algo."}, "di algo. Algo.", "Algo."),
    ("punctuation:no_comma", {}, "Uno y dos", "Uno, dos"),
    ("punctuation:question_marks", {}, "¿Qué?", "Qué?"),
    ("punctuation:exclamation_marks", {}, "¡Qué bien!", "Qué bien!"),
    ("startend:end_checker", {"end_phrase": "Un saludo"}, "Hola. Un saludo.", "Un saludo. Ana"),
    ("startend:quotation", {}, '"Hola"', '"Hola'),
    ("change_case:capital_word_frequency",
     {"capital_relation": "al menos", "capital_frequency": 2}, "SÍ y NO", "Sí y NO"),
    ("change_case:spanish_capital", {}, "EL NIÑO ESTÁ EN LA CASA.", "EL niño ESTÁ EN LA CASA."),
    ("change_case:spanish_lowercase", {}, "el niño está en la casa.", "El niño está en la casa."),
    ("special_character:enie", {"let_frequency": 2}, "El niño y la niña.", "El niño."),
    ("special_character:dieresis", {"let_frequency": 1}, "Un pingüino", "Un pingüino sinvergüenza"),
    ("special_character:tildes", {"relation": "al menos", "num_words": 2}, "Sí está", "Sí esta"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "kwargs", "good", "bad"), CASES)
def test_an_instruction_is_followed_or_not(kind: str, kwargs: dict, good: str, bad: str):
    assert follows(good, kind, kwargs)
    assert not follows(bad, kind, kwargs)
    assert not follows("  ", kind, kwargs)


def test_every_check_has_a_case():
    assert {case[0] for case in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Los perros no comen de todo.", "es"),
        ("The dogs do not eat that.", "en"),
        ("I cani non mangiano di tutto, ma è così.", "it"),
        ("Se ei ole niin, mutta se on hyvä.", "fi"),
        ("Les chiens sont dans la rue avec des chats.", "fr"),
        ("123 xyz", ""),
    ],
)
def test_languages_are_told_apart(text: str, code: str):
    assert language(text) == code


def test_sentences_and_loose_forms():
    assert n_sentences("Uno... Dos.\nTres") == 3
    assert loose_forms("a\n*b*\nc")[:4] == ["a\n*b*\nc", "a\nb\nc", "*b*\nc", "b\nc"]


def row(**changes) -> Record:
    values = {
        "key": 7,
        "prompt": "Habla sin comas y termina con «Adiós».",
        "instruction_id_list": ["es:punctuation:no_comma", "es:startend:end_checker"],
        "kwargs": [{"relation": None}, {"end_phrase": "Adiós"}],
    }
    return Record(values | changes, "es.jsonl, línea 1")


def test_all_instructions_of_a_request_count():
    (item,) = make_items([row()], [])
    assert json.loads(item.test) == [["punctuation:no_comma", {}],
                                     ["startend:end_checker", {"end_phrase": "Adiós"}]]  # fmt: skip
    assert grade(item, "Hola. Adiós") == {"prompt_strict": 1.0, "prompt_loose": 1.0}
    assert grade(item, "Hola, bueno. Adiós") == {"prompt_strict": 0.0, "prompt_loose": 0.0}
    assert grade(item, "Sí, claro:\nHola. Adiós") == {"prompt_strict": 0.0, "prompt_loose": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction_id_list": ["es:rima:soneto"], "kwargs": [{}]}, "instrucción desconocida"),
        ({"kwargs": [{}]}, "«kwargs» debe ser una lista de 2"),
        ({"kwargs": [{}, {}]}, "«kwargs» no basta para comprobar es:startend:end_checker"),
    ],
)
def test_a_request_that_cannot_be_checked_is_refused(changes: dict, message: str):
    with pytest.raises(DataError, match=message):
        make_items([row(**changes)], [])
