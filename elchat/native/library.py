"""The engine's forward pass (model.cpp) through ctypes, built on first use.

Without a compiler, or with ELCHAT_NATIVE=0, everything runs in torch: the same replies, slower.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from elchat.native.builder import Source, attempt, typed

HEADERS = (
    "activations.h", "attention.h", "attention_bf16.h", "lanes.h", "linear.h", "pool.h", "vector.h",
)  # fmt: skip
SOURCE = Source("model.cpp", headers=HEADERS)
VERSION = 4

_pointer, _int32, _int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Matrix(ctypes.Structure):
    """`elchat::Matrix`."""

    _fields_ = [
        ("weights", _pointer), ("scales", _pointer), ("bias", _pointer),
        ("kind", _int32), ("n", _int32), ("k", _int32),
    ]  # fmt: skip


class Layer(ctypes.Structure):
    """`elchat::Layer`."""

    _fields_ = [
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _pointer) for name in ("attention_norm", "mlp_norm", "keys", "values")),
    ]


class Shape(ctypes.Structure):
    """`elchat::Shape`."""

    _fields_ = [
        *((name, _int32) for name in (
            "layers", "c", "f", "heads", "kv_heads", "head_dim", "max_tokens", "max_rows",
            "is_cache_bf16",
        )),
        ("eps", ctypes.c_float),
    ]  # fmt: skip


class Effect(ctypes.Structure):
    """`elchat::Effect`."""

    _fields_ = [
        *((name, _pointer) for name in (
            "keep", "noise", "attention_gain", "mlp_gain", "shift",
        )),
        *((name, _int64) for name in (
            "noise_stride", "attention_stride", "mlp_stride", "shift_stride",
        )),
        ("is_skipped", _int32),
    ]  # fmt: skip


class Library:
    """The C functions, typed."""

    def __init__(self, path: Path) -> None:
        dll = ctypes.CDLL(str(path))
        self.has_bf16 = bool(dll.elchat_has_bf16())
        self.pool_new = typed(dll.elchat_pool_new, _pointer, _int32)
        self.pool_free = typed(dll.elchat_pool_free, None, _pointer)
        self.model_new = typed(dll.elchat_model_new, _pointer, *[_pointer] * 5)
        self.model_free = typed(dll.elchat_model_free, None, _pointer)
        self.rows = typed(dll.elchat_rows, None, _pointer, _pointer, _int32, _pointer)
        self.run = typed(
            dll.elchat_model_run, None,
            _pointer, _pointer, _int32, _pointer, _pointer, _int32, _int32, _pointer, _int32,
        )  # fmt: skip
        self.finish = typed(
            dll.elchat_model_finish, None,
            _pointer, _pointer, _pointer, _pointer, _int32, _pointer, _pointer,
        )  # fmt: skip
        if dll.elchat_native_version() != VERSION:
            raise OSError("otra versión")


@functools.cache
def load() -> Library | None:
    """The library, built if need be; None where it cannot be."""
    return _outcome()[0]


def why_not() -> str | None:
    """Why there is no library, for the user; None if there is."""
    return _outcome()[1]


@functools.cache
def _outcome() -> tuple[Library | None, str | None]:
    return attempt(SOURCE, Library)
