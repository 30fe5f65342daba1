"""The forward pass in C++, where a compiler exists; `why_not()` says why it is not there."""

from elchat.native.library import Library, load, why_not

__all__ = ["Library", "load", "why_not"]
