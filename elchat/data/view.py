"""What the model will see: tokens one by one, which are trained, how rows are packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elchat.data.loader import Batch, PackedLoader
from elchat.data.packing import IGNORED
from elchat.data.shards import ShardSet
from elchat.tokenizer import Tokenizer

CONTROL_PICTURES = 0x2400


@dataclass(frozen=True)
class Token:
    """One token as it is shown.

    Attributes:
        text: printable; bytes that are no whole character are hexadecimal, «‹c3›».
        is_special: a token no text can spell.
        is_supervised: predicting it is trained.
    """

    id: int
    text: str
    is_special: bool
    is_supervised: bool


@dataclass(frozen=True)
class Piece:
    """A document, or a chunk of one, inside a row; or a whole conversation."""

    title: str
    tokens: list[Token]

    @property
    def n_supervised(self) -> int:
        return sum(token.is_supervised for token in self.tokens)


@dataclass(frozen=True)
class Row:
    """One packed row.

    Attributes:
        n_used: positions that are not padding.
        n_targets: positions whose next token is trained.
    """

    source: str
    pieces: list[Piece]
    n_used: int
    n_targets: int
    n_positions: int


@dataclass(frozen=True)
class SourceStats:
    """A training source in figures; `passes` is how often a mixture's epoch reads it."""

    name: str
    language: str
    licence: str
    documents: int
    tokens: int
    supervised: int
    passes: float


@dataclass(frozen=True)
class Packing:
    """A stage's data as training will draw it.

    Attributes:
        fill: share of positions that are not padding, expected over an epoch.
        epoch_rows: rows until some source has been read once.
    """

    stage: str
    context_tokens: int
    fill: float
    epoch_rows: int
    sources: list[SourceStats]
    rows: list[Row]


def packing(
    shards: ShardSet,
    *,
    stage: str,
    context_tokens: int,
    seed: int,
    n_rows: int,
    tokenizer: Tokenizer | None,
    pad_id: int = 0,
) -> Packing:
    """Draw the first rows of a stage, exactly as training with this seed does.

    Args:
        shards: prepared data.
        stage: "cpt" or "sft", to be shown.
        context_tokens: positions per row.
        seed: of the mixture.
        n_rows: rows to draw.
        tokenizer: None shows the ids.
        pad_id: written in padding.
    """
    loader = PackedLoader(shards.train, context_tokens=context_tokens, seed=seed, pad_id=pad_id)
    counted = {
        entry["name"]: entry["targets"]
        for entry in shards.manifest["splits"]
        if entry["split"] == "train"
    }
    epoch_rows = loader.epoch_rows()
    sources = [
        SourceStats(
            name=source.name,
            language=source.language,
            licence=source.licence,
            documents=source.n_documents,
            tokens=source.n_tokens,
            supervised=int(counted[source.name]),
            passes=passes,
        )
        for source, passes in zip(shards.train, loader.passes(epoch_rows), strict=True)
    ]
    names = [source.name for source in shards.train]
    return Packing(
        stage=stage,
        context_tokens=context_tokens,
        fill=loader.tokens_per_row() / context_tokens,
        epoch_rows=epoch_rows,
        sources=sources,
        rows=_rows(loader.next_step(n_rows), names, tokenizer) if n_rows else [],
    )


def conversation(
    title: str, ids: Sequence[int], is_target: Sequence[bool], tokenizer: Tokenizer
) -> Piece:
    """A rendered conversation as it is shown."""
    special = special_texts(tokenizer)
    return Piece(
        title, [show(i, t, tokenizer, special) for i, t in zip(ids, is_target, strict=True)]
    )


def special_texts(tokenizer: Tokenizer | None) -> dict[int, str]:
    """Special tokens by id."""
    if tokenizer is None:
        return {}
    return {token_id: text for text, token_id in tokenizer.special_ids.items()}


def show(
    token_id: int, is_supervised: bool, tokenizer: Tokenizer | None, special: dict[int, str]
) -> Token:
    """One token in print; no control character of the data reaches a terminal."""
    if tokenizer is None:
        return Token(token_id, f"{token_id} ", False, is_supervised)
    if token_id in special:
        return Token(token_id, special[token_id], True, is_supervised)
    if token_id >= tokenizer.vocab_size:
        return Token(token_id, f"‹{token_id}›", True, is_supervised)
    text = tokenizer.token_bytes(token_id).decode("utf-8", "surrogateescape")
    return Token(token_id, printable(text), False, is_supervised)


def printable(text: str) -> str:
    """Control characters as pictures (U+2400), a line break as «↵» and itself.

    Marks that would turn the direction of what follows, and bytes that are no whole character
    (as `surrogateescape` leaves them), become their code: «‹c3›».
    """
    return "".join(_picture(char) for char in text)


def _picture(char: str) -> str:
    code = ord(char)
    if char == "\n":
        return "↵\n"
    if code < 0x20:
        return chr(CONTROL_PICTURES + code)
    if 0xDC80 <= code <= 0xDCFF:
        return f"‹{code - 0xDC00:x}›"
    if 0x7F <= code < 0xA0 or 0x200B <= code <= 0x200F or 0x202A <= code <= 0x202E:
        return f"‹{code:x}›"
    return f"‹{code:x}›" if 0x2066 <= code <= 0x2069 else char


def _rows(batch: Batch, names: Sequence[str], tokenizer: Tokenizer | None) -> list[Row]:
    special = special_texts(tokenizer)
    rows = []
    for r in range(batch.ids.shape[0]):
        ids, targets = batch.ids[r].tolist(), batch.targets[r].tolist()
        segments = batch.segments[r].tolist()
        pieces = []
        for number in range(1, max(segments) + 1):
            where = [i for i, segment in enumerate(segments) if segment == number]
            pieces.append(
                Piece(
                    f"trozo {number}, posiciones {where[0]}–{where[-1]}",
                    _chunk(ids, targets, where, tokenizer, special),
                )
            )
        rows.append(
            Row(
                source=names[batch.source[r]],
                pieces=pieces,
                n_used=sum(segment != 0 for segment in segments),
                n_targets=sum(target != IGNORED for target in targets),
                n_positions=len(ids),
            )
        )
    return rows


def _chunk(
    ids: list[int],
    targets: list[int],
    where: list[int],
    tokenizer: Tokenizer | None,
    special: dict[int, str],
) -> list[Token]:
    """A chunk's tokens: its ids, and its last target, which only the targets hold if trained."""
    flags = [False, *(targets[i] != IGNORED for i in where[:-1])]
    shown = [show(ids[i], flag, tokenizer, special) for i, flag in zip(where, flags, strict=True)]
    last = targets[where[-1]]
    return shown if last == IGNORED else [*shown, show(last, True, tokenizer, special)]


def totals(pieces: Iterable[Piece]) -> tuple[int, int]:
    """Tokens and supervised tokens of several pieces."""
    listed = list(pieces)
    return sum(len(p.tokens) for p in listed), sum(p.n_supervised for p in listed)
