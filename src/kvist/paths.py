"""Where kvist keeps things: one cache directory per user, nothing anywhere else."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache directory for kvist: ``$XDG_CACHE_HOME/kvist``, else ``~/.cache/kvist``. Not created here.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG base directory specification says.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "kvist"


def models_dir() -> Path:
    """Where pulled models live: one folder a model, named as it was pulled. Not created here."""
    return cache_dir() / "models"
