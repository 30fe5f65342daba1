"""The fused pieces of a training step (train.cpp) through ctypes, built on first use.

They share the threads of torch's own products: linked to the OpenMP library torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from elchat.native.builder import Source, attempt, typed

VERSION = 2

_int32, _int64, _float = ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class _Tensor:
    """What a C function takes as a pointer: a contiguous tensor, by its first element, or none."""

    @classmethod
    def from_param(cls, tensor: Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class TrainLibrary:
    """The C functions, typed; shapes and dtypes are said in train.cpp."""

    def __init__(self, path: Path) -> None:
        dll = ctypes.CDLL(str(path))
        if dll.elchat_train_version() != VERSION:
            raise OSError("este procesador no multiplica en bf16")
        self.norm = typed(dll.elchat_norm, None, *[_Tensor] * 4, _int64, _int32, _float)
        self.norm_back = typed(
            dll.elchat_norm_back, None, *[_Tensor] * 6, _int64, _int32, _int32
        )  # fmt: skip
        self.swiglu = typed(dll.elchat_swiglu, None, *[_Tensor] * 3, _int64)
        self.swiglu_back = typed(dll.elchat_swiglu_back, None, *[_Tensor] * 5, _int64)
        self.rotate = typed(
            dll.elchat_rotate, None, *[_Tensor] * 4, _int64, _int32, _int32, _int64, _float
        )  # fmt: skip
        self.attend = typed(
            dll.elchat_attend, None,
            *[_Tensor] * 4, _int32, _int64, *[_int32] * 3, *[_Tensor] * 2,
        )  # fmt: skip
        self.attend_back = typed(
            dll.elchat_attend_back, None,
            *[_Tensor] * 7, _int32, _int64, *[_int32] * 3, *[_Tensor] * 3,
        )  # fmt: skip
        self.loss = typed(dll.elchat_loss, None, *[_Tensor] * 3, _int64, _int64)
        self.quantize = typed(
            dll.elchat_quantize, None, _Tensor, _int64, _int64, *[_Tensor] * 4
        )  # fmt: skip
        self.quantize_weight = typed(
            dll.elchat_quantize_weight, None, _Tensor, _int64, _int64, *[_Tensor] * 3
        )  # fmt: skip
        self.dequantize = typed(
            dll.elchat_dequantize, None, *[_Tensor] * 3, _int64, _int64, _Tensor, _int32
        )  # fmt: skip
        self.dequantize_weight = typed(
            dll.elchat_dequantize_weight, None, *[_Tensor] * 3, _int64, _int64
        )  # fmt: skip


class DryLibrary:
    """Stands in for the library where tensors hold no data: every function does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def load() -> TrainLibrary | None:
    """The library, built if need be; None where it cannot be."""
    return _outcome()[0]


def why_not() -> str | None:
    """Why there is no library, for the user; None if there is."""
    return _outcome()[1]


@functools.cache
def _outcome() -> tuple[TrainLibrary | None, str | None]:
    openmp = _loaded_openmp()
    if openmp is None:
        return None, "no se encuentra el OpenMP de torch"
    source = Source(
        "train.cpp",
        headers=("train.h", "train_int8.h"),
        compile_flags=("-fopenmp",),
        link_flags=(openmp,),
    )
    return attempt(source, TrainLibrary)


def _loaded_openmp() -> str | None:
    """GNU OpenMP as this process has it: a second copy would fight for the cores."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = (line.partition("/")[1] + line.partition("/")[2] for line in lines)
    return next((name for name in names if "/libgomp" in name), None)
