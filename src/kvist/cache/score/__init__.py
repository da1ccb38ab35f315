"""Scores by name: which of a prompt's entries matter. Each lives in a file of its own, imported when asked for."""

from __future__ import annotations

from importlib import import_module

from kvist.cache.score.base import Pass, Prompt, Score, Seen
from kvist.errors import unknown_name

__all__ = ["SCORES", "Pass", "Prompt", "Score", "Seen", "score"]

SCORES = ("expected", "h2o", "knorm", "kvzip", "snapkv", "tova")


def score(name: str) -> Score:
    """Return the score called `name`; an unknown name raises `UnknownNameError` with those that are known."""
    if name not in SCORES:
        raise unknown_name("score", name, SCORES)
    found: Score = import_module(f"kvist.cache.score.{name}").SCORE
    return found
