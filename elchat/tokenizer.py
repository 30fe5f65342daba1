"""Byte-level BPE behind one small class, fed by a Hugging Face tokenizer.json.

The added tokens (`<|im_end|>` and its kin) are taken out of the BPE, so no text can ever spell
them: they exist only as ids that `chat_format` writes. That is the difference with
`transformers`, where a user who types `<|im_end|>` ends the turn.

Encoding is done by rustbpe (`elchat_bpe`) when it is built and knows the vocabulary's family, else
by `tokenizers`; the ids are the same, and ELCHAT_TOKENIZER=tokenizers forces the second.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

import elchat_bpe
from elchat.errors import TokenizerError

MAX_ID = 1 << 24


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: highest id + 1; the model's embedding may have more rows.
        special_ids: every added token by its text.
        sha256: of the tokenizer.json bytes.
        backend: what encodes, "rustbpe" or "tokenizers".
    """

    def __init__(self, raw: bytes, *, where: str = "tokenizer.json") -> None:
        """Build from the bytes of a tokenizer.json (see `from_file`, `from_json`).

        Raises:
            TokenizerError: broken JSON, a model that is not byte-level BPE, impossible ids.
        """
        self._raw = raw
        self.sha256 = hashlib.sha256(raw).hexdigest()
        spec = _parse(raw, where)
        vocab: dict[str, int] = spec["model"]["vocab"]
        added = _added_tokens(spec, where)
        self.special_ids: dict[str, int] = {item["content"]: item["id"] for item in added}
        self._hidden_ids = frozenset(item["id"] for item in added if item.get("special"))
        self._bytes = _byte_table(vocab, added, where)
        self.vocab_size = len(self._bytes)
        special = {item["content"] for item in added if item.get("special")}
        self._plain_spec = _plain_spec(spec, special)
        self._where = where
        self._rust = _rust_encoder(self._plain_spec)
        self.backend = "tokenizers" if self._rust is None else "rustbpe"
        if self._rust is None:
            _ = self._bpe  # a broken vocabulary fails now

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json file."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"No se puede leer el vocabulario {path}: {error.strerror or error}."
            ) from None
        return cls(raw, where=str(path))

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read the text of a tokenizer.json."""
        return cls(text.encode("utf-8"))

    def to_json(self) -> str:
        """The original tokenizer.json."""
        return self._raw.decode("utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of the text; nothing is added, and special-token text is ordinary text."""
        if self._rust is not None:
            return self.encode_arrays([text], threads=1)[0].tolist()
        try:
            return self._bpe.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise _not_unicode() from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts on all cores (RAYON_NUM_THREADS limits them)."""
        if self._rust is not None:
            ids, offsets = self.encode_arrays(texts)
            flat, ends = ids.tolist(), offsets.tolist()
            return [flat[a:b] for a, b in itertools.pairwise(ends)]
        try:
            batch = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise _not_unicode() from None
        return [encoding.ids for encoding in batch]

    def encode_arrays(
        self, texts: Sequence[str], *, threads: int | None = None
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of many texts, joined, and n + 1 offsets: text k is ids[offsets[k]:offsets[k + 1]].

        Args:
            texts: to encode.
            threads: at most this many; by default RAYON_NUM_THREADS, or one per core.
        """
        if self._rust is None:
            rows = self.encode_batch(texts)
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            return np.fromiter(itertools.chain.from_iterable(rows), np.uint32), offsets
        try:
            return self._rust.encode_batch(
                texts, threads=_thread_limit() if threads is None else threads
            )
        except elchat_bpe.BpeError as error:
            raise TokenizerError(str(error)) from None

    @functools.cached_property
    def _bpe(self) -> tokenizers.Tokenizer:
        return _plain_bpe(self._plain_spec, self._where)

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            keep_special: write the special tokens' text too.
        """
        pieces = (self._piece(token_id, keep_special) for token_id in ids)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes one id stands for; b"" for special tokens and unused ids.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"El token {token_id} no existe: el vocabulario va de 0 a {self.vocab_size - 1}."
            )
        return b"" if token_id in self._hidden_ids else self._bytes[token_id]

    @property
    def json_text(self) -> str:
        """The tokenizer.json this was built from."""
        return self._raw.decode("utf-8")

    def save(self, path: Path) -> None:
        """Write the original tokenizer.json, byte for byte, flushed to disk."""
        with open(path, "wb") as handle:
            handle.write(self._raw)
            handle.flush()
            os.fsync(handle.fileno())

    def _piece(self, token_id: int, keep_special: bool) -> bytes:
        if keep_special and token_id in self._hidden_ids:
            return self._bytes[token_id]
        return self.token_bytes(token_id)


class StreamDecoder:
    """Turn ids into text one by one, in linear time, never showing half a character.

    The pieces join to `tokenizer.decode(all ids)`. Example: "ñ" split over two tokens gives "" and
    then "ñ".
    """

    def __init__(self, tokenizer: Tokenizer, *, keep_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Text that this id completes, possibly none."""
        return self._utf8.decode(self._tokenizer._piece(token_id, self._keep_special))

    def finish(self) -> str:
        """What remains at the end: U+FFFD if a character was cut, else nothing."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def byte_to_char() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: 0x20 -> 'Ġ', 0x41 -> 'A'.

    Source: openai/gpt-2 `encoder.py`, bytes_to_unicode.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _not_unicode() -> TokenizerError:
    return TokenizerError(
        "El texto contiene caracteres que no son Unicode válido (sustitutos sueltos): límpialo "
        "antes de convertirlo en tokens."
    )


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        spec = json.loads(raw)
    except (ValueError, RecursionError):
        raise TokenizerError(
            f"{where} no es JSON válido: el archivo está dañado o incompleto; bájalo de nuevo."
        ) from None
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise TokenizerError(f"{where} no es un tokenizer.json de Hugging Face: falta su modelo.")
    kind = model.get("type", "BPE" if "merges" in model else "desconocido")
    if kind != "BPE":
        raise TokenizerError(
            f"{where} usa un vocabulario de tipo {kind} y elchat solo lee BPE de bytes "
            "(SmolLM2, Qwen2.5, Llama 3)."
        )
    if not isinstance(model["vocab"], dict) or not isinstance(model.get("merges"), list):
        raise TokenizerError(f"{where} está incompleto: le faltan las uniones (merges) del BPE.")
    is_byte_level = "ByteLevel" in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    if not is_byte_level or model.get("byte_fallback"):
        raise TokenizerError(
            f"{where} usa BPE de caracteres (SentencePiece) y elchat solo lee BPE de bytes "
            "(SmolLM2, Qwen2.5, Llama 3)."
        )
    return spec


def _added_tokens(spec: dict[str, Any], where: str) -> list[dict[str, Any]]:
    added = spec.get("added_tokens") or []
    if not all(
        isinstance(item, dict) and isinstance(item.get("content"), str) and "id" in item
        for item in added
    ):
        raise TokenizerError(f"{where} tiene una lista added_tokens que no se entiende.")
    return added


def _byte_table(vocab: dict[str, int], added: list[dict[str, Any]], where: str) -> list[bytes]:
    """Bytes of every id; an id may be declared twice only with the same text."""
    ids = [*vocab.values(), *(item["id"] for item in added)]
    if not ids:
        raise TokenizerError(f"{where} tiene un vocabulario vacío.")
    for token_id in ids:
        if not isinstance(token_id, int) or not 0 <= token_id < MAX_ID:
            raise TokenizerError(f"{where} contiene un identificador imposible: {token_id!r}.")
    if len(set(vocab.values())) != len(vocab):
        raise TokenizerError(f"{where} da el mismo identificador a dos tokens distintos.")
    table = [b""] * (max(ids) + 1)
    to_byte = {char: byte for byte, char in byte_to_char().items()}
    for token, token_id in vocab.items():
        try:
            table[token_id] = bytes([to_byte[char] for char in token])
        except KeyError:
            table[token_id] = token.encode("utf-8")  # as the ByteLevel decoder of tokenizers does
    owner = {token_id: token for token, token_id in vocab.items()}
    for item in added:
        if owner.get(item["id"], item["content"]) != item["content"]:
            raise TokenizerError(
                f"{where} da el identificador {item['id']} a «{owner[item['id']]}» y a "
                f"«{item['content']}»."
            )
        owner[item["id"]] = item["content"]
        table[item["id"]] = item["content"].encode("utf-8")
    return table


def _plain_spec(spec: dict[str, Any], special: set[str]) -> dict[str, Any]:
    """The BPE without added tokens, templates, truncation, padding or dropout."""
    model = dict(spec["model"], dropout=None)
    banned = {token for token in special if token in model["vocab"] and len(token) > 1}
    if banned:
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in banned}
        model["merges"] = [m for m in model["merges"] if not _touches(m, banned)]
    return dict(
        spec, model=model, added_tokens=[], post_processor=None, truncation=None, padding=None
    )


def _plain_bpe(plain: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"{where} no se puede cargar: {str(error).splitlines()[0][:200]}."
        ) from None


def _rust_encoder(plain: dict[str, Any]) -> elchat_bpe.Encoder | None:
    """None when the library is not built, or the vocabulary is not one it knows."""
    if os.environ.get("ELCHAT_TOKENIZER") == "tokenizers" or elchat_bpe.why_not():
        return None
    try:
        return elchat_bpe.Encoder.from_spec(plain)
    except elchat_bpe.BpeError:
        return None  # tokenizers reads it, or says why not


def _thread_limit() -> int:
    value = os.environ.get("RAYON_NUM_THREADS", "")
    return int(value) if value.isdecimal() else 0


def _touches(merge: str | list[str], banned: set[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in banned or right in banned or left + right in banned
