"""Texts to ids and back, with one vocabulary."""

from __future__ import annotations

import ctypes
import itertools
import re
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elchat_bpe import library, vocabulary
from elchat_bpe.arrays import Texts, groups, take_arrays
from elchat_bpe.errors import BpeError


class Encoder:
    """A byte-level BPE vocabulary in Rust. Threads may share it; it keeps caches of words.

    Attributes:
        special_ids: every added token by its text.
    """

    def __init__(self, arrays: vocabulary.Arrays, special_ids: dict[str, int]) -> None:
        """Hand the arrays over (see `from_spec`).

        Raises:
            BpeError: they do not fit together, or the library is not there.
        """
        self.special_ids = special_ids
        spec = library.EncoderSpec(
            arrays.scanner,
            arrays.flags,
            len(arrays.is_text),
            len(arrays.token_bytes),
            len(arrays.merges),
            ctypes.cast(ctypes.c_char_p(arrays.token_bytes), ctypes.c_void_p),
            arrays.token_offsets.ctypes.data,
            arrays.is_text.ctypes.data,
            arrays.byte_ids.ctypes.data,
            arrays.merges.ctypes.data,
        )
        self._handle = library.make("encoder_new", ctypes.byref(spec))
        weakref.finalize(self, library.load().elchat_bpe_encoder_free, self._handle)

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Encoder:
        """From a parsed tokenizer.json.

        Raises:
            UnsupportedError: a sound vocabulary of a kind this library lacks.
            BpeError: a broken one, or the library is not there.
        """
        added = spec.get("added_tokens") or []
        return cls(vocabulary.from_spec(spec), {item["content"]: item["id"] for item in added})

    def encode_batch(
        self, texts: Iterable[str], *, threads: int = 0, allowed_special: Iterable[str] = ()
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of all texts, joined, and where each starts: text k is ids[offsets[k]:offsets[k+1]].

        Args:
            texts: to encode, read once and in groups: an open file or a generator need not fit
                in memory. Nothing is added to them.
            threads: at most this many; 0, one per core.
            allowed_special: special tokens that text may spell; the others are plain text.

        Raises:
            BpeError: lone surrogates, or a special token that does not exist.
        """
        allowed = list(allowed_special)
        if allowed:
            return self._encode_with_special(texts, allowed, threads)
        handle = library.make("arrays_new")
        joined: list[int] = []
        n_parts = 0
        try:
            for parts, ends in groups(texts):
                prepared = Texts(parts).arguments
                library.call("encode_append", self._handle, *prepared, max(threads, 0), handle)
                joined += (n_parts + k + 1 for k, is_end in enumerate(ends) if not is_end)
                n_parts += len(parts)
        finally:
            ids, offsets = take_arrays(handle)  # on failure nothing else would free them
        return ids, np.delete(offsets, joined) if joined else offsets

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text], threads=1)[0].tolist()

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """Bytes of the ids, special tokens included.

        Raises:
            BpeError: an id outside the vocabulary.
        """
        array = np.asarray(ids)
        if array.size and (
            array.dtype.kind not in "iu" or not 0 <= array.min() <= array.max() < 2**32
        ):
            raise BpeError("los identificadores son enteros de 0 a 2**32 - 1")
        array = np.ascontiguousarray(array, dtype=np.uint32)
        handle = library.make("decode", self._handle, array.ctypes.data, array.size)
        return library.take_bytes(handle)

    def decode(self, ids: ArrayLike) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def _encode_with_special(
        self, texts: Iterable[str], allowed: list[str], threads: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Cut at the allowed tokens, the longest first, and encode what lies between."""
        unknown = [name for name in allowed if name not in self.special_ids]
        if unknown:
            raise BpeError(f"no existe el token especial {unknown[0]!r}")
        by_length = sorted(allowed, key=len, reverse=True)
        cut = re.compile("(" + "|".join(map(re.escape, by_length)) + ")")
        parts = [cut.split(text) for text in texts]  # plain, special, plain, ...
        ids, offsets = self.encode_batch([p for part in parts for p in part[::2]], threads=threads)
        runs = (ids[a:b] for a, b in itertools.pairwise(offsets))
        rows = [np.concatenate(list(self._weave(part, runs))) for part in parts]
        joined = np.concatenate([np.empty(0, np.uint32), *rows])
        return joined, np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def _weave(
        self, parts: list[str], runs: Iterator[NDArray[np.uint32]]
    ) -> Iterator[NDArray[np.uint32]]:
        for k, part in enumerate(parts):
            yield np.array([self.special_ids[part]], np.uint32) if k % 2 else next(runs)


def pieces(scanner: int, text: str) -> list[str]:
    """What a pre-tokenizer cuts a text into (`vocabulary.GPT2`, `SMOLLM2`, `QWEN2`, `LLAMA3`)."""
    raw = text.encode("utf-8")
    ends = take_arrays(library.make("pieces", scanner, raw, len(raw)))[1].tolist()
    return [raw[a:b].decode("utf-8") for a, b in zip([0, *ends], ends, strict=False)]


def normalize(text: str) -> str:
    """NFC of the Unicode version `tokenizers` uses."""
    raw = text.encode("utf-8")
    return library.take_bytes(library.make("normalize", raw, len(raw))).decode("utf-8")
