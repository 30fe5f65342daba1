"""Build model.cpp once per machine and call it through ctypes.

The library is compiled for this very processor on first use (some seconds) and kept in elchat's
folder under a name that changes with the sources, the compiler and the processor. Without a
compiler, or with ELCHAT_NATIVE=0, everything runs in torch: the same replies, slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from elchat import paths

FOLDER = Path(__file__).parent
SOURCES = ("model.cpp", "linear.h", "attention.h", "lanes.h", "pool.h", "vector.h")
FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
VERSION = 2
BUILD_TIMEOUT_S = 180

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
        self.pool_new = _typed(dll.elchat_pool_new, _pointer, _int32)
        self.pool_free = _typed(dll.elchat_pool_free, None, _pointer)
        self.model_new = _typed(dll.elchat_model_new, _pointer, *[_pointer] * 5)
        self.model_free = _typed(dll.elchat_model_free, None, _pointer)
        self.rows = _typed(dll.elchat_rows, None, _pointer, _pointer, _int32, _pointer)
        self.run = _typed(
            dll.elchat_model_run, None,
            _pointer, _pointer, _int32, _pointer, _pointer, _int32, _int32, _pointer,
        )  # fmt: skip
        self.finish = _typed(
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
    if os.environ.get("ELCHAT_NATIVE") == "0":
        return None, "ELCHAT_NATIVE=0 lo desactiva"
    if os.name != "posix":
        return None, "solo se compila en Linux y macOS"
    compiler = find_compiler()
    if compiler is None:
        return None, "no hay compilador de C++ (instala g++ o clang)"
    try:
        return Library(built(compiler)), None
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        return None, f"no se pudo compilar o cargar ({_first_line(error)})"


def find_compiler() -> str | None:
    """A C++ compiler, or None."""
    candidates = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def built(compiler: str, processor: str = "native") -> Path:
    """The library for a processor in the compiler's words, compiled if it is not there yet."""
    folder, flags = paths.native_dir(), (*FLAGS, f"-march={processor}")
    target = folder / f"{_fingerprint(compiler, flags)}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".so.tmp")
    os.close(handle)
    try:
        command = [compiler, *flags, str(FOLDER / "model.cpp"), "-o", name]
        subprocess.run(command, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
        os.replace(name, target)  # two processes may build at once: either result will do
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return target


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20).stdout
    digest = hashlib.sha256(version)
    digest.update(repr((flags, platform.machine(), _processor())).encode())
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _first_line(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return next((line for line in text.splitlines() if "error" in line), text.strip())[:200]


def _typed(function: ctypes._CFuncPtr, result: object, *arguments: object):  # type: ignore[name-defined]
    function.restype = result
    function.argtypes = list(arguments)
    return function
