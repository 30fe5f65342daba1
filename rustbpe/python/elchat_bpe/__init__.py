"""Byte-level BPE in Rust: encode, decode and train, straight into numpy arrays.

    from elchat_bpe import Encoder
    encoder = Encoder.from_spec(json.loads(Path("tokenizer.json").read_text()))
    ids, offsets = encoder.encode_batch(["hola", "¿qué tal?"])   # uint32, int64

The shared library is built by `pip install -e .` when cargo is there. Importing this package needs
neither the library nor numpy; `why_not()` says whether it can be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elchat_bpe.errors import BpeError, UnsupportedError
from elchat_bpe.library import ABI_VERSION, why_not

if TYPE_CHECKING:
    from elchat_bpe.encoder import Encoder, normalize, pieces
    from elchat_bpe.trainer import Trainer

__all__ = [
    "ABI_VERSION",
    "BpeError",
    "Encoder",
    "Trainer",
    "UnsupportedError",
    "normalize",
    "pieces",
    "why_not",
]


def __getattr__(name: str) -> Any:
    if name in ("Encoder", "normalize", "pieces"):
        from elchat_bpe import encoder

        return getattr(encoder, name)
    if name == "Trainer":
        from elchat_bpe.trainer import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
