"""Where elchat keeps things: one home folder, overridable by ELCHAT_HOME."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Root of everything elchat writes (default ~/.elchat)."""
    return Path(os.environ.get("ELCHAT_HOME") or Path.home() / ".elchat").expanduser().absolute()


def runs_dir() -> Path:
    """Run folders, one per run."""
    return home() / "runs"


def models_dir() -> Path:
    """Downloaded base models, one folder per model."""
    return home() / "models"


def shards_dir() -> Path:
    """Tokenised shards, content-addressed and shared by runs."""
    return home() / "shards"


def spool_dir() -> Path:
    """Cleaned text of large corpora, before it becomes shards."""
    return home() / "spool"


def native_dir() -> Path:
    """Compiled kernels (ELCHAT_NATIVE_DIR puts them elsewhere, to share them between homes)."""
    return Path(os.environ.get("ELCHAT_NATIVE_DIR") or home() / "native").expanduser().absolute()
