"""Texts into the library and arrays out of it, without a copy of the ids."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Iterator, Sequence
from ctypes import c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elchat_bpe import library
from elchat_bpe.errors import BpeError

GROUP_CHARS = 1 << 22


class Texts:
    """UTF-8 of many texts, kept alive while the library reads it."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Encode.

        Raises:
            BpeError: lone surrogates, or something that is not text.
        """
        try:
            self._bytes = [text.encode("utf-8") for text in texts]
        except UnicodeEncodeError:
            raise BpeError(
                "El texto contiene caracteres que no son Unicode válido (sustitutos sueltos): "
                "límpialo antes de convertirlo en tokens."
            ) from None
        except (AttributeError, TypeError):
            raise _not_texts() from None
        n = len(self._bytes)
        pointers = (ctypes.c_char_p * n)(*self._bytes)
        lengths = (ctypes.c_uint64 * n)(*map(len, self._bytes))
        # The first array holds on to the bytes, so the arguments may outlive this object. Not
        # `ctypes.cast`: it makes a cycle, and the bytes of many groups wait for the collector.
        self.arguments = (pointers, lengths, n)


def groups(texts: Iterable[str]) -> Iterator[tuple[list[str], list[bool]]]:
    """Texts in groups of bounded size, and for each whether a text of the caller ends with it.

    The UTF-8 of a group is all there is in memory besides the texts. A longer text goes in parts,
    cut before a space that follows something that is not white space, where no family joins (see
    `scan::safe_cut`).

    Raises:
        BpeError: something that is not text.
    """
    parts: list[str] = []
    ends: list[bool] = []
    held = 0
    for part, is_end in _parts(texts):
        parts.append(part)
        ends.append(is_end)
        held += len(part)
        if held >= GROUP_CHARS:
            yield parts, ends
            parts, ends, held = [], [], 0
    if parts:
        yield parts, ends


def _parts(texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    try:
        for text in texts:
            start = 0
            while len(text) - start > GROUP_CHARS:
                cut = text.find(" ", start + max(GROUP_CHARS // 2, 1))
                while cut > 0 and text[cut - 1].isspace():
                    cut = text.find(" ", cut + 1)
                if cut < 0:
                    break
                yield text[start:cut], False
                start = cut
            yield (text[start:] if start else text), True
    except (AttributeError, TypeError):
        raise _not_texts() from None


def _not_texts() -> BpeError:
    return BpeError("Hace falta una lista de textos (str).")


def take_arrays(handle: c_void_p) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Two numpy arrays over memory of the library, which is freed with the last of them."""
    view = library.ArraysView()
    owner = _Owner(handle)
    library.call("arrays_view", handle, ctypes.byref(view))
    words = _wrap(owner, view.words, view.n_words, ctypes.c_uint32)
    longs = _wrap(owner, view.longs, view.n_longs, ctypes.c_int64)
    return words, longs


class _Owner:
    """Frees the arrays when nothing looks at them any more."""

    def __init__(self, handle: c_void_p) -> None:
        self._finalizer = weakref.finalize(self, library.load().elchat_bpe_arrays_free, handle)


def _wrap(owner: _Owner, address: int | None, n: int, kind: Any) -> NDArray[Any]:
    if n == 0 or address is None:
        return np.empty(0, dtype=kind)
    buffer = (kind * n).from_address(address)
    buffer._owner = owner  # numpy keeps the ctypes buffer alive, and that the owner
    return np.frombuffer(buffer, dtype=kind)
