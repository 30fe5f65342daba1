"""What this package raises; the messages are Spanish sentences for the user."""

from __future__ import annotations


class BpeError(ValueError):
    """A vocabulary, a text or an id cannot be used, or the library is not there."""


class UnsupportedError(BpeError):
    """A sound vocabulary that this library does not know how to cut or merge."""


class StoppedError(BpeError):
    """The progress function asked to stop."""
