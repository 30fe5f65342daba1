"""Count a letter in a word: easy for people, hard for models that read pieces of words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.common import Data, Item, Record, Task, TextItem, grade_number

WORDS = [
    "murciélago",
    "otorrinolaringólogo",
    "carretera",
    "ferrocarril",
    "guitarra",
    "zanahoria",
    "cigüeña",
    "pingüino",
    "paralelepípedo",
    "electroencefalografista",
    "ornitorrinco",
    "cacahuete",
    "berenjena",
    "aguacate",
    "mariposa",
    "biblioteca",
    "desayuno",
    "terremoto",
    "arrecife",
    "sacacorchos",
    "parrilla",
    "llovizna",
    "castillo",
    "ballena",
    "hormiguero",
    "relámpago",
    "escalofrío",
    "bicicleta",
    "esternocleidomastoideo",
    "ahorro",
    "azahar",
    "huérfano",
    "alcachofa",
    "rinoceronte",
    "hipopótamo",
    "espantapájaros",
    "paraguas",
    "rompecabezas",
    "sacapuntas",
    "telaraña",
    "abuela",
    "nieve",
    "niño",
    "montaña",
    "mañana",
    "otoño",
    "cuñado",
    "pañuelo",
    "champiñón",
    "muñeca",
]


def rows() -> Iterator[Mapping[str, Any]]:
    """Two questions per word: its most repeated letter, and its first one."""
    for word in WORDS:
        often = max(sorted(set(word)), key=word.count)
        for letter in dict.fromkeys((often, word[0])):
            yield {"word": word, "letter": letter, "count": word.count(letter)}


def make_items(records: Sequence[Record], _: Sequence[Record]) -> list[Item]:
    """A user's turn per word and letter."""
    return [
        TextItem(
            f"{record.text('word')}-{record.text('letter')}",
            f"¿Cuántas veces aparece la letra «{record.text('letter')}» en la palabra "
            f"«{record.text('word')}»? Responde solo con el número.",
            (str(record.get("count")),),
            max_new_tokens=24,
        )
        for record in records
    ]


TASKS = (
    Task(
        name="deletreo_es",
        version=1,
        title_es="Contar letras de una palabra",
        kind="exact_match",
        metric="exact_match",
        random=0.0,
        source="elchat",
        licence="CC0-1.0",
        language="es",
        data=Data(is_own=True, generated=rows),
        make_items=make_items,
        grade=grade_number,
        uses_chat=True,
        groups=("nanochat",),
    ),
)
