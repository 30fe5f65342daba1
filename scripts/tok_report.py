"""The report of a trained vocabulary: bytes per token, fertility and a plot, all written here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from elchat.config import SourceSection
from elchat.data.sources import iter_documents
from elchat.errors import TokenizerError
from elchat.evaluation.table import number
from elchat.tokenizer import Tokenizer

HELD_OUT_MB = 4.0
ROW_PX, LABEL_PX, BAR_PX, VALUE_PX = 20, 150, 420, 70
# told apart without colour: solid, hatched, dotted, white, then again in grey
FILLS = ("#000", "url(#rayas)", "url(#puntos)", "#fff", "#777", "#ccc")
PATTERNS = (
    '<pattern id="rayas" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="6" height="6" fill="#fff"/>'
    '<rect width="2.5" height="6" fill="#000"/></pattern>'
    '<pattern id="puntos" width="5" height="5" patternUnits="userSpaceOnUse">'
    '<rect width="5" height="5" fill="#fff"/><circle cx="2.5" cy="2.5" r="1.2"/></pattern>'
)


@dataclass(frozen=True)
class Cell:
    """One vocabulary on one text.

    Attributes:
        bytes_per_token: higher is better.
        tokens_per_word: fertility: lower is better; words are what white space separates.
        whole_words: share of the words, each with the space before it, that are one token.
    """

    bytes_per_token: float
    tokens_per_word: float
    whole_words: float


Table = dict[str, dict[str, Cell]]


def named_paths(items: Sequence[str], option: str) -> Iterator[tuple[str, str]]:
    """NAME=PATH arguments; where a name is optional, a path alone is named after its file."""
    for item in items:
        name, equals, path = item.partition("=")
        if equals:
            yield name, path
        elif option == "--held-out":
            yield Path(item).name, item
        else:
            raise TokenizerError(f"{option} espera NOMBRE=RUTA y se le dio «{item}».")


def measure(tokenizers: dict[str, Tokenizer], held_out: Sequence[str]) -> Table:
    """Every vocabulary on up to 4 MB of every held-out text."""
    table: Table = {}
    for label, path in named_paths(held_out, "--held-out"):
        source = SourceSection(path=path, max_mb=HELD_OUT_MB)
        texts = [document.text for document in iter_documents(source, kind="cpt")]
        words = [f" {word}" for text in texts for word in text.split()]
        n_bytes = sum(len(text.encode("utf-8")) for text in texts)
        table[label] = {
            name: _cell(tokenizer, texts, n_bytes, words) for name, tokenizer in tokenizers.items()
        }
    return table


def _cell(tokenizer: Tokenizer, texts: list[str], n_bytes: int, words: list[str]) -> Cell:
    n_tokens = len(tokenizer.encode_arrays(texts)[0])
    offsets = tokenizer.encode_arrays(words)[1]
    whole = int((offsets[1:] - offsets[:-1] == 1).sum())
    return Cell(
        bytes_per_token=round(n_bytes / max(n_tokens, 1), 3),
        tokens_per_word=round(n_tokens / max(len(words), 1), 3),
        whole_words=round(whole / max(len(words), 1), 3),
    )


def as_json(table: Table) -> dict[str, Any]:
    """The table as plain dicts."""
    return {text: {name: asdict(cell) for name, cell in row.items()} for text, row in table.items()}


def markdown(table: Table) -> str:
    """Three tables, a row for each text and a column for each vocabulary."""
    if not table:
        return "Sin textos apartados (--held-out) no hay nada que comparar.\n"
    parts = [
        _table(table, "bytes por token (más es mejor)", lambda c: number(c.bytes_per_token, 2)),
        _table(
            table, "tokens por palabra (menos es mejor)", lambda c: number(c.tokens_per_word, 2)
        ),
        _table(table, "palabras de un solo token", lambda cell: f"{100 * cell.whole_words:.0f} %"),
    ]
    return "\n".join(parts)


def _table(table: Table, title: str, show: Any) -> str:
    names = list(next(iter(table.values())))
    lines = [f"| {title} | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    lines += [
        f"| {text} | " + " | ".join(show(row[name]) for name in names) + " |"
        for text, row in table.items()
    ]
    return "\n".join(lines) + "\n"


def svg(table: Table) -> str:
    """Bars of bytes per token, grouped by text; readable in black and white and without fonts."""
    top = max((c.bytes_per_token for row in table.values() for c in row.values()), default=1.0)
    parts: list[str] = []
    y = 34
    for text, row in table.items():
        parts.append(f'<text x="8" y="{y + 14}" font-weight="bold">{escape(text)}</text>')
        y += ROW_PX + 4
        for k, (name, cell) in enumerate(row.items()):
            value = cell.bytes_per_token
            width = round(BAR_PX * value / max(top, 1e-9), 1)
            fill = FILLS[k % len(FILLS)]
            parts.append(
                f'<text x="{LABEL_PX - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{LABEL_PX}" y="{y + 2}" width="{width}" height="{ROW_PX - 5}" '
                f'fill="{fill}" stroke="#000"/>'
                f'<text x="{LABEL_PX + width + 6}" y="{y + 14}">{number(value, 2)}</text>'
            )
            y += ROW_PX
        y += 12
    width_px = LABEL_PX + BAR_PX + VALUE_PX
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px} {y}" '
        f'width="{width_px}" height="{y}" font-family="sans-serif" font-size="13" role="img">'
        f"<title>Bytes por token de cada vocabulario</title><defs>{PATTERNS}</defs>"
        f'<rect width="{width_px}" height="{y}" fill="#fff"/>'
        '<text x="8" y="20" font-size="15">Bytes por token (más es mejor)</text>'
        + "".join(parts)
        + "</svg>\n"
    )
