"""A parsed `tokenizer.json` into the flat arrays the library takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elchat_bpe.errors import BpeError, UnsupportedError

GPT2, SMOLLM2, QWEN2, LLAMA3 = range(4)
FLAG_NFC, FLAG_IGNORE_MERGES = 1, 2
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {SPLIT % r"\p{N}": QWEN2, SPLIT % r"\p{N}{1,3}": LLAMA3}
MAX_ID = 2**21 - 1
NONE = 2**32 - 1  # ffi: no id


@dataclass(frozen=True)
class Arrays:
    """What `ffi::EncoderSpec` points to."""

    scanner: int
    flags: int
    token_bytes: bytes
    token_offsets: NDArray[np.uint64]
    is_text: NDArray[np.uint8]
    byte_ids: NDArray[np.uint32]
    merges: NDArray[np.uint32]


def from_spec(spec: dict[str, Any]) -> Arrays:
    """Arrays of a tokenizer.json; its special tokens decode, and no text becomes them.

    Raises:
        UnsupportedError: a normalizer, pre-tokenizer or option that the library lacks.
        BpeError: a broken vocabulary.
    """
    model = spec.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UnsupportedError("el modelo no es BPE")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise BpeError("el vocabulario está incompleto: le faltan tokens o uniones (merges)")
    _refuse_options(model)
    scanner = scanner_of(spec.get("pre_tokenizer"))
    flags = FLAG_NFC * has_nfc(spec.get("normalizer"))
    flags |= FLAG_IGNORE_MERGES * bool(model.get("ignore_merges"))
    added = {item["content"]: item["id"] for item in spec.get("added_tokens") or []}
    special = {t["content"] for t in spec.get("added_tokens") or [] if t.get("special")}
    table, is_text = _token_table(vocab, added, special)
    offsets = np.zeros(len(table) + 1, dtype=np.uint64)
    np.cumsum(np.fromiter(map(len, table), dtype=np.uint64, count=len(table)), out=offsets[1:])
    return Arrays(
        scanner,
        flags,
        b"".join(table),
        offsets,
        is_text,
        _byte_ids(vocab, model.get("unk_token")),
        _merge_triples(vocab, merges, is_text),
    )


def scanner_of(pre_tokenizer: Any) -> int:
    """Which hand-written scanner does the same as a pre-tokenizer.

    Raises:
        UnsupportedError: none does.
    """
    steps = pre_tokenizer
    if isinstance(steps, dict) and steps.get("type") == "Sequence":
        steps = steps.get("pretokenizers")
    steps = [steps] if isinstance(steps, dict) else steps
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UnsupportedError("no hay pre-tokenizador")
    kinds = [step.get("type") for step in steps]
    last = steps[-1] if steps else {}
    is_plain = kinds[-1:] == ["ByteLevel"] and last.get("add_prefix_space", True) is False
    if is_plain and last.get("use_regex", True) is True:
        if kinds == ["ByteLevel"]:
            return GPT2
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") is True:
            return SMOLLM2
    if is_plain and last.get("use_regex", True) is False and kinds == ["Split", "ByteLevel"]:
        split = steps[0]
        pattern = split.get("pattern")
        scanner = SPLITS.get(pattern.get("Regex", "") if isinstance(pattern, dict) else "")
        is_isolated = split.get("behavior") == "Isolated" and not split.get("invert")
        if scanner is not None and is_isolated:
            return scanner
    raise UnsupportedError(f"un pre-tokenizador que rustbpe no conoce: {kinds}")


def has_nfc(normalizer: Any) -> bool:
    """Whether the normalizer is NFC; none at all is False.

    Raises:
        UnsupportedError: it is something else.
    """
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        inner = normalizer.get("normalizers") or [None]
        normalizer = inner[0] if len(inner) == 1 else normalizer
    if normalizer is None:
        return False
    if isinstance(normalizer, dict) and normalizer.get("type") == "NFC":
        return True
    raise UnsupportedError("un normalizador que rustbpe no conoce")


def _refuse_options(model: dict[str, Any]) -> None:
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(option):
            raise UnsupportedError(f"la opción {option} del BPE")


def byte_chars() -> str:
    """GPT-2's stand-ins of the 256 bytes: character k is byte k."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


def _token_table(
    vocab: dict[str, int], added: dict[str, int], special: set[str]
) -> tuple[list[bytes], NDArray[np.uint8]]:
    """Bytes of each id, and which ids text may become."""
    ids = [*vocab.values(), *added.values()]
    if not ids or not all(type(i) is int and 0 <= i < MAX_ID for i in ids):
        raise BpeError("el vocabulario contiene un identificador imposible")
    # Characters that stand for no byte become one outside Latin-1, so that encoding them fails.
    to_latin = dict.fromkeys(range(256), "\uffff") | {
        ord(char): chr(byte) for byte, char in enumerate(byte_chars())
    }
    table = [b""] * (max(ids) + 1)
    is_text = np.zeros(len(table), dtype=np.uint8)
    for token, token_id in vocab.items():
        try:
            table[token_id] = token.translate(to_latin).encode("latin-1")
            is_text[token_id] = token not in special or len(token) == 1
        except UnicodeEncodeError:
            table[token_id] = token.encode("utf-8")  # as the decoder of tokenizers does
    for token, token_id in added.items():
        table[token_id] = token.encode("utf-8")
        is_text[token_id] &= token in vocab
    return table, is_text


def _byte_ids(vocab: dict[str, int], unknown: str | None) -> NDArray[np.uint32]:
    """The id of each byte, or NONE: without an unknown token, text loses what has no id."""
    ids = [vocab.get(char, NONE) for char in byte_chars()]
    if unknown is not None and NONE in ids:
        raise UnsupportedError("un vocabulario con token desconocido (unk_token)")
    return np.array(ids, dtype=np.uint32)


def _merge_triples(
    vocab: dict[str, int], merges: list[Any], is_text: NDArray[np.uint8]
) -> NDArray[np.uint32]:
    """Triples of ids, in rank order, without the merges that touch a special token."""
    flat: list[int] = []
    try:
        for merge in merges:
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            flat += (vocab[left], vocab[right], vocab[left + right])
    except (KeyError, ValueError, TypeError):
        raise BpeError(f"la unión {merge!r} no encaja en el vocabulario") from None
    triples = np.array(flat, dtype=np.uint32).reshape(-1, 3)
    return np.ascontiguousarray(triples[is_text[triples].all(axis=1)])
