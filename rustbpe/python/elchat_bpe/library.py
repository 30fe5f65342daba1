"""The shared library over ctypes: finding it, its signatures, statuses to exceptions.

The other side is `rustbpe/src/ffi.rs`. ctypes lets go of the GIL during every call.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

from elchat_bpe.errors import BpeError, StoppedError

ABI_VERSION = 2
NAMES = ("libelchat_bpe.so", "libelchat_bpe.dylib", "elchat_bpe.dll")
OK, BAD_INPUT, PANIC, STOPPED = range(4)
Progress = ctypes.CFUNCTYPE(c_int32, c_uint64, c_uint64, c_void_p)


class EncoderSpec(ctypes.Structure):
    """`ffi::EncoderSpec`."""

    _fields_ = (
        ("scanner", c_uint32),
        ("flags", c_uint32),
        ("n_tokens", c_uint64),
        ("n_token_bytes", c_uint64),
        ("n_merges", c_uint64),
        ("token_bytes", c_void_p),
        ("token_offsets", c_void_p),
        ("is_text", c_void_p),
        ("byte_ids", c_void_p),
        ("merges", c_void_p),
    )


class ArraysView(ctypes.Structure):
    """`ffi::ArraysView`."""

    _fields_ = (
        ("words", c_void_p),
        ("n_words", c_uint64),
        ("longs", c_void_p),
        ("n_longs", c_uint64),
    )


_OUT = POINTER(c_void_p)
_SIGNATURES: dict[str, list[type]] = {
    "encoder_new": [POINTER(EncoderSpec), _OUT],
    "arrays_new": [_OUT],
    "encode_append": [c_void_p, c_void_p, c_void_p, c_uint64, c_uint64, c_void_p],
    "decode": [c_void_p, c_void_p, c_uint64, _OUT],
    "pieces": [c_uint32, c_char_p, c_uint64, _OUT],
    "normalize": [c_char_p, c_uint64, _OUT],
    "arrays_view": [c_void_p, POINTER(ArraysView)],
    "bytes_view": [c_void_p, POINTER(POINTER(c_uint8)), POINTER(c_uint64)],
    "trainer_new": [c_uint32, c_uint32, _OUT],
    "trainer_feed": [c_void_p, c_void_p, c_void_p, c_uint64, c_uint64],
    "trainer_train": [c_void_p, c_void_p, c_uint64, c_uint64, Progress, c_void_p, _OUT],
}
_FREES = ("encoder_free", "arrays_free", "bytes_free", "trainer_free")


def find() -> Path | None:
    """The shared library next to this file, if it was built."""
    paths = (Path(__file__).with_name(name) for name in NAMES)
    return next((path for path in paths if path.is_file()), None)


def why_not() -> str | None:
    """Why the library cannot be used, as a Spanish sentence; None if it can."""
    try:
        load()
    except BpeError as error:
        return str(error)
    return None


@functools.cache
def load() -> ctypes.CDLL:
    """The library with its signatures declared.

    Raises:
        BpeError: it was not built, does not load here, or is of another version.
    """
    path = find()
    if path is None:
        raise BpeError("rustbpe no está compilado: instala Rust (cargo) y repite pip install -e .")
    return load_from(path)


def load_from(path: Path) -> ctypes.CDLL:
    """The library at a path; see `load`."""
    try:
        library = ctypes.CDLL(str(path))
        version = library.elchat_bpe_abi_version
    except (OSError, AttributeError) as error:
        raise BpeError(f"{path.name} no se puede cargar: {str(error)[:200]}.") from None
    version.restype, version.argtypes = c_uint32, []
    if version() != ABI_VERSION:
        raise BpeError(
            f"{path.name} es de la versión {version()} y hace falta la {ABI_VERSION}: "
            "repite pip install -e ."
        )
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, f"elchat_bpe_{name}")
        function.restype, function.argtypes = c_int32, arguments
    for name in _FREES:
        function = getattr(library, f"elchat_bpe_{name}")
        function.restype, function.argtypes = None, [c_void_p]
    library.elchat_bpe_last_error.restype = c_char_p
    library.elchat_bpe_last_error.argtypes = []
    return library


def call(name: str, *arguments: object) -> None:
    """Call a function that returns a status.

    Raises:
        BpeError: with the library's own reason.
        StoppedError: the progress function asked for it.
    """
    library = load()
    status = getattr(library, f"elchat_bpe_{name}")(*arguments)
    if status == OK:
        return
    reason = (library.elchat_bpe_last_error() or b"").decode("utf-8", "replace")
    raise (StoppedError if status == STOPPED else BpeError)(reason)


def make(name: str, *arguments: object) -> c_void_p:
    """Call a function that hands something out through its last argument."""
    out = c_void_p()
    call(name, *arguments, ctypes.byref(out))
    return out


def take_bytes(handle: c_void_p) -> bytes:
    """Copy bytes the library handed out, and free them."""
    data, size = POINTER(c_uint8)(), c_uint64()
    try:
        call("bytes_view", handle, ctypes.byref(data), ctypes.byref(size))
        return ctypes.string_at(data, size.value)
    finally:
        load().elchat_bpe_bytes_free(handle)
