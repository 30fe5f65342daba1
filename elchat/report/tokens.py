"""Token views as a page and as coloured or plain lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from elchat.data.view import Packing, Piece, Token, totals
from elchat.report import page
from elchat.report.words import documents, number

RESET, DIM = "\x1b[0m", "\x1b[2m"
BACKGROUNDS = ("\x1b[48;5;24m\x1b[97m", "\x1b[48;5;238m\x1b[97m")
TRAINED = "\x1b[1;4m"
LEGEND = (
    "Cada token lleva un fondo que alterna; subrayado y en negrita, lo que se aprende a decir; "
    "en gris o recuadrado, los tokens especiales."
)
PLAIN_LEGEND = "Sin color: los tokens van separados por │ y lo que se aprende a decir, entre ⟦ ⟧."


def summary(view: Packing) -> list[str]:
    """What a stage's packing comes to, in sentences."""
    lines = [
        f"Etapa {view.stage}: filas de {view.context_tokens} posiciones, llenas al "
        f"{number(100 * view.fill, 1)} %; una vuelta son {number(view.epoch_rows, 0)} filas."
    ]
    for source in view.sources:
        share = 100 * source.supervised / max(1, source.tokens)
        lines.append(
            f"  {source.name} ({source.language}, {source.licence}): "
            f"{documents(source.documents)}, {number(source.tokens, 0)} tokens, "
            f"se aprende el {number(share, 1)} %, "
            f"se lee {number(source.passes, 2)} veces por vuelta"
        )
    return lines


def row_title(view: Packing, index: int) -> str:
    """'Fila 1 (00-cpt): 3 trozos, 512 de 512 posiciones, 509 se aprenden'."""
    row = view.rows[index]
    pieces = f"{len(row.pieces)} trozo{'' if len(row.pieces) == 1 else 's'}"
    return (
        f"Fila {index + 1} ({row.source}): {pieces}, {row.n_used} de {row.n_positions} "
        f"posiciones, {row.n_targets} se aprenden"
    )


def piece_title(piece: Piece) -> str:
    """'datos.jsonl, línea 1: 56 tokens, 21 se aprenden (37,5 %)'."""
    share = 100 * piece.n_supervised / max(1, len(piece.tokens))
    return (
        f"{piece.title}: {len(piece.tokens)} tokens, {piece.n_supervised} se aprenden "
        f"({number(share, 1)} %)"
    )


def coloured(tokens: Sequence[Token]) -> str:
    """ANSI colours; every token ends with a reset, and so does every line."""
    parts = []
    for i, token in enumerate(tokens):
        style = DIM if token.is_special else BACKGROUNDS[i % 2]
        style += TRAINED if token.is_supervised else ""
        lines = token.text.split("\n")
        parts.append("\n".join(f"{style}{line}{RESET}" if line else "" for line in lines))
    return "".join(parts)


def plain(tokens: Sequence[Token]) -> str:
    """Separators instead of colours."""
    parts: list[str] = []
    was_trained = False
    for i, token in enumerate(tokens):
        if token.is_supervised != was_trained:
            parts.append("⟦" if token.is_supervised else "⟧")
            was_trained = token.is_supervised
        elif i:
            parts.append("│")
        parts.append(token.text)
    return "".join(parts) + ("⟧" if was_trained else "")


def packing_page(title: str, views: Sequence[Packing]) -> str:
    """HTML of what training will draw."""
    body = [_head(title)]
    for view in views:
        lines = summary(view)
        rows = [
            f"<h3>{page.escape(row_title(view, i))}</h3>"
            + "".join(f"{page.paragraph(p.title, css='soft')}{_tokens(p)}" for p in row.pieces)
            for i, row in enumerate(view.rows)
        ]
        body.append(page.section(lines[0], page.bullets(lines[1:]), *rows))
    return page.page(f"{title} — datos de elchat", body)


def mask_page(title: str, pieces: Sequence[Piece]) -> str:
    """HTML of conversations with what is trained underlined."""
    n_tokens, n_supervised = totals(pieces)
    share = f"Se aprenden {n_supervised} de {n_tokens} tokens."
    blocks = [f"<h3>{page.escape(piece_title(piece))}</h3>{_tokens(piece)}" for piece in pieces]
    body = [_head(title), page.section("Conversaciones", page.paragraph(share), *blocks)]
    return page.page(f"{title} — máscara de elchat", body)


def _head(title: str) -> str:
    return (
        "<header>"
        + page.paragraph("Lo que verá el modelo", css="soft")
        + f"<h1>{page.escape(title)}</h1>{page.paragraph(LEGEND)}</header>"
    )


def _tokens(piece: Piece) -> str:
    return f'<p class="tokens">{"".join(_spans(piece.tokens))}</p>'


def _spans(tokens: Sequence[Token]) -> Iterator[str]:
    for i, token in enumerate(tokens):
        css = "x" if token.is_special else "ab"[i % 2]
        css += " t" if token.is_supervised else ""
        yield f'<span class="{css}" title="{token.id}">{page.escape(token.text)}</span>'
