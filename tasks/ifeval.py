"""M-IFEval in Spanish: instructions whose fulfilment a program can check, written by natives.

Rows and instruction ids of lightblue-tech/M-IFEval, which lm-evaluation-harness asks as
`ifeval_es`; how each is checked, and the strict and loose ways of marking, follow Zhou et al. 2023
(arXiv 2311.07911). The harness counts words and sentences with spaCy and tells languages apart
with langdetect; here they are counted with the rules below, so that figures are near its own but
not the same: the task has a name of its own.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.common import Data, HubData, Item, Marks, Record, Task, TextItem

MAX_NEW_TOKENS = 1280
BULLETS = re.compile(r"^\s*(?:\d+\.|[-*])\s*", re.MULTILINE)
WORD = re.compile(r"\w+(?:[-'’]\w+)*")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"»”')\]]*\s+|\n+")
ABBREVIATIONS = re.compile(r"\b(Sr|Sra|Srta|Dr|Dra|D|Dña|Ud|Uds|p|ej|etc|art|núm|pág|aprox)\.\s")
# Words so common that a paragraph of the language has several of them, and that tell it from the
# others here; enough for the languages these instructions name.
COMMON_WORDS = {
    "es": "el la los las de que y en un una por con para es no se su como más pero del al lo",
    "en": "the of and to in a is that for it as with are this be by on not from or an at",
    "de": "der die das und in zu den ist nicht von mit sich auf für ein eine dem des im auch",
    "it": "il di che e la in un per è non una sono con del della le si come più dei anche gli",
    "fi": "ja on ei että se hän oli ovat joka mutta myös kun niin tai sekä voi mukaan kuin olla",
    "fr": "le la les de des et en un une que est pour dans qui pas sur au avec ce il plus du",
    "pt": "o a os as de que e em um uma para com não se por mais do da no na ao como é",
}


def words(text: str) -> list[str]:
    """Words of a text; one with a hyphen counts once."""
    return WORD.findall(text)


def n_sentences(text: str) -> int:
    """Stretches between full stops, question and exclamation marks or line ends."""
    parts = SENTENCE_END.split(ABBREVIATIONS.sub(r"\1 ", text))
    return sum(1 for part in parts if WORD.search(part))


def language(text: str) -> str:
    """The language with most of its common words in a text; "" if there is none of any."""
    said = [word.lower() for word in words(text)]
    hits = {
        code: sum(word in common.split() for word in said) for code, common in COMMON_WORDS.items()
    }
    best = max(hits, key=lambda code: hits[code])
    return best if hits[best] else ""


def holds(count: int, kwargs: Mapping[str, Any], limit: str, *, relation: str = "relation") -> bool:
    """Whether a count is within "al menos" or "como máximo" of a limit."""
    most = str(kwargs.get(relation) or "al menos").strip().lower() == "como máximo"
    return count <= int(kwargs[limit]) if most else count >= int(kwargs[limit])


# --- one check per instruction -------------------------------------------------------------------

Check = Callable[[str, Mapping[str, Any]], bool]


def _existence(text: str, kwargs: Mapping[str, Any]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in kwargs["keywords"])


def _forbidden(text: str, kwargs: Mapping[str, Any]) -> bool:
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
        for word in kwargs["forbidden_words"]
    )


def _frequency(text: str, kwargs: Mapping[str, Any]) -> bool:
    found = re.findall(re.escape(str(kwargs["keyword"]).strip()), text, re.IGNORECASE)
    return holds(len(found), kwargs, "frequency")


def _letter_frequency(text: str, kwargs: Mapping[str, Any]) -> bool:
    found = text.lower().count(str(kwargs["letter"]).lower())
    return holds(found, kwargs, "let_frequency", relation="let_relation")


def _n_words(text: str, kwargs: Mapping[str, Any]) -> bool:
    return holds(len(words(BULLETS.sub("", text))), kwargs, "num_words")


def _n_sentences(text: str, kwargs: Mapping[str, Any]) -> bool:
    return holds(n_sentences(BULLETS.sub("", text)), kwargs, "num_sentences")


def _n_paragraphs(text: str, kwargs: Mapping[str, Any]) -> bool:
    parts = _inner_parts(re.split(r"\s?\*\*\*\s?", text))
    return parts is not None and len(parts) == int(kwargs["num_paragraphs"])


def _first_word(text: str, kwargs: Mapping[str, Any]) -> bool:
    paragraphs = text.split("\n\n")
    full = [part for part in paragraphs if part.strip()]
    nth = int(kwargs["nth_paragraph"])
    if len(full) != int(kwargs["num_paragraphs"]) or nth > len(full):
        return False
    said = [_bare(word) for word in paragraphs[nth - 1].split()]
    asked = [_bare(word) for word in str(kwargs["first_word"]).split()]
    return said[: len(asked)] == asked


def _bare(word: str) -> str:
    return word.strip(string.punctuation + "¿¡«»").lower()


def _placeholders(text: str, kwargs: Mapping[str, Any]) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= int(kwargs["num_placeholders"])


def _postscript(text: str, kwargs: Mapping[str, Any]) -> bool:
    marker = str(kwargs["postscript_marker"]).strip().lower()
    pattern = r"p\.\s?d\." if marker == "p.d." else re.escape(marker)
    return re.search(pattern, text.lower()) is not None


def _bullets(text: str, kwargs: Mapping[str, Any]) -> bool:
    found = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    return len(found) == int(kwargs["num_bullets"])


def _constrained(text: str, _: Mapping[str, Any]) -> bool:
    return any(answer in text for answer in ("Sí.", "No.", "Quizás."))


def _highlights(text: str, kwargs: Mapping[str, Any]) -> bool:
    single = re.findall(r"\*[^\n*]*\*", text)
    double = re.findall(r"\*\*[^\n*]*\*\*", text)
    count = sum(bool(part.strip("*").strip()) for part in single + double)
    return count >= int(kwargs["num_highlights"])


def _sections(text: str, kwargs: Mapping[str, Any]) -> bool:
    splitter = re.escape(str(kwargs["section_spliter"]).strip())
    return len(re.findall(rf"{splitter}\s?\d+", text)) >= int(kwargs["num_sections"])


def _json(text: str, _: Mapping[str, Any]) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(bare.strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, _: Mapping[str, Any]) -> bool:
    return any(part.strip("<> ") for part in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, _: Mapping[str, Any]) -> bool:
    parts = _inner_parts(text.split("******"))
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _inner_parts(parts: Sequence[str]) -> list[str] | None:
    """Parts with something in them; None if one that is neither first nor last has nothing."""
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part for part in parts if part.strip()]


def _repeat(text: str, kwargs: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(str(kwargs["prompt_to_repeat"]).strip().lower())


def _ends(text: str, kwargs: Mapping[str, Any]) -> bool:
    said = text.strip().strip('"').lower().removesuffix(".")
    return said.endswith(str(kwargs["end_phrase"]).strip().lower())


def _quoted(text: str, _: Mapping[str, Any]) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _between(opening: str, closing: str) -> Check:
    """Whether there is something between a pair of signs, as ¿ and ?."""
    pattern = re.compile(rf"{re.escape(opening)}[^{closing}]*\{closing}")

    def check(text: str, _: Mapping[str, Any]) -> bool:
        return any(part[1:-1].strip() for part in pattern.findall(text))

    return check


def _capital_words(text: str, kwargs: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in words(text))
    return holds(count, kwargs, "capital_frequency", relation="capital_relation")


def _all_capital(text: str, _: Mapping[str, Any]) -> bool:
    letters = [c for c in unicodedata.normalize("NFKD", text) if c.isalpha()]
    return all(c.isupper() for c in letters) and language(text) == "es"


def _with_letters(letters: str) -> Callable[[str], int]:
    def count(text: str) -> int:
        return sum(any(c in letters for c in word.lower()) for word in words(text))

    return count


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": lambda text, kw: language(text) == kw["language"],
    "length_constraints:number_words": _n_words,
    "length_constraints:number_sentences": _n_sentences,
    "length_constraints:number_paragraphs": _n_paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "punctuation:no_comma": lambda text, _: "," not in text,
    "punctuation:question_marks": _between("¿", "?"),
    "punctuation:exclamation_marks": _between("¡", "!"),
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:spanish_capital": _all_capital,
    "change_case:spanish_lowercase": lambda text, _: text.islower() and language(text) == "es",
    "special_character:enie": lambda text, kw: _with_letters("ñ")(text) == kw["let_frequency"],
    "special_character:dieresis": lambda text, kw: _with_letters("ü")(text) == kw["let_frequency"],
    "special_character:tildes": lambda text, kw: holds(
        _with_letters("áéíóú")(text), kw, "num_words"
    ),
}


# --- questions and marks -------------------------------------------------------------------------


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """One item per request; what its answer must fulfil goes in `test`."""
    return [
        TextItem(
            str(record.get("key")),
            record.text("prompt"),
            (),
            max_new_tokens=MAX_NEW_TOKENS,
            test=json.dumps(_instructions(record), ensure_ascii=False, sort_keys=True),
        )
        for record in records
    ]


def _instructions(record: Record) -> list[tuple[str, dict[str, Any]]]:
    names = record.texts("instruction_id_list")
    given = record.get("kwargs")
    if not isinstance(given, Sequence) or len(given) != len(names):
        raise record.wrong("kwargs", f"debe ser una lista de {len(names)}", given)
    found = []
    for name, kwargs in zip(names, given, strict=True):
        kind = name.removeprefix("es:")
        if kind not in CHECKS:
            raise record.wrong("instruction_id_list", "tiene una instrucción desconocida", name)
        known = {key: value for key, value in dict(kwargs).items() if value is not None}
        try:
            CHECKS[kind]("a", known)
        except (KeyError, TypeError, ValueError):
            raise record.wrong("kwargs", f"no basta para comprobar {name}", kwargs) from None
        found.append((kind, known))
    return found


def grade(item: TextItem, text: str) -> Marks:
    """1 if every instruction is fulfilled, as written (strict) or in some lighter form (loose)."""
    asked = json.loads(item.test)
    return {
        "prompt_strict": float(all(follows(text, *one) for one in asked)),
        "prompt_loose": float(
            all(any(follows(form, *one) for form in loose_forms(text)) for one in asked)
        ),
    }


def follows(text: str, kind: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether an answer fulfils one instruction; an empty one fulfils none."""
    return bool(text.strip()) and CHECKS[kind](text, kwargs)


def loose_forms(text: str) -> list[str]:
    """The answer without its first line, its last or both, with and without asterisks."""
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [form for one in (text, *cut) for form in (one, one.replace("*", ""))]


TASKS = (
    Task(
        name="m_ifeval_es",
        version=1,
        title_es="Instrucciones comprobables (M-IFEval)",
        kind="exact_match",
        metric="prompt_strict",
        also=("prompt_loose",),
        random=0.0,
        source="lightblue-tech/M-IFEval",
        licence="Apache-2.0",
        language="es",
        data=Data(files=("m_ifeval_es/es.jsonl",), hub=HubData("BSC-LT/IFEval_es")),
        make_items=make_items,
        grade=grade,
        uses_chat=True,
    ),
)
