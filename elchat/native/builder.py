"""Compile one C++ file for this very processor, once per machine.

The library is kept in elchat's folder under a name that changes with its sources, the flags, the
compiler and the processor.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from elchat import paths

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
BUILD_TIMEOUT_S = 180

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A file to compile and what else its library depends on.

    Attributes:
        headers: files it includes, whose changes count.
    """

    name: str
    headers: tuple[str, ...]
    compile_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()


def attempt(source: Source, make: Callable[[Path], T]) -> tuple[T | None, str | None]:
    """Build and load: what `make` makes of the library, or why there is none, in Spanish.

    Args:
        make: may raise OSError or AttributeError for a library that will not do.
    """
    if os.environ.get("ELCHAT_NATIVE") == "0":
        return None, "ELCHAT_NATIVE=0 lo desactiva"
    if os.name != "posix":
        return None, "solo se compila en Linux y macOS"
    compiler = find_compiler()
    if compiler is None:
        return None, "no hay compilador de C++ (instala g++ o clang)"
    try:
        return make(built(source, compiler)), None
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        return None, f"no se pudo compilar o cargar ({_first_line(error)})"


def find_compiler() -> str | None:
    """A C++ compiler, or None."""
    candidates = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def built(source: Source, compiler: str, processor: str = "native") -> Path:
    """The library for a processor in the compiler's words, compiled if it is not there yet."""
    flags = (*FLAGS, *source.compile_flags, f"-march={processor}")
    folder = paths.native_dir()
    target = folder / f"{_fingerprint(source, compiler, flags)}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".so.tmp")
    os.close(handle)
    try:
        command = [compiler, *flags, str(FOLDER / source.name), "-o", name, *source.link_flags]
        subprocess.run(command, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
        os.replace(name, target)  # two processes may build at once: either result will do
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return target


def typed(function: ctypes._CFuncPtr, result: object, *arguments: object):  # type: ignore[name-defined]
    """A C function with its signature."""
    function.restype = result
    function.argtypes = list(arguments)
    return function


def _fingerprint(source: Source, compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20).stdout
    digest = hashlib.sha256(version)
    digest.update(repr((flags, source.link_flags, platform.machine(), _processor())).encode())
    for name in (source.name, *source.headers):
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
