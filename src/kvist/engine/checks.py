"""Refuse arguments that cannot be meant, each with its name and what to give instead."""

from __future__ import annotations

import math
from typing import Any

from kvist.errors import UsageError


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; NumPy's count, a truth value does not."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def whole(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> None:
    """Refuse what is no whole number from least to most; why: what sets that bound."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        wanted = f"from {least}" if most is None else f"{least} to {most}{', ' + why if why else ''}"
        raise UsageError(f"{name} is {value!r}: give a whole number {wanted}")


def number(name: str, value: Any, least: float, most: float, wanted: str, *, above: bool = False) -> None:
    """Refuse what is no number from least to most; above: nor least itself."""
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most or (above and number == least):  # NaN is never between
        raise UsageError(f"{name} is {value!r}: give {wanted}")


def salt_bytes(cache_salt: str | None) -> bytes:
    """A salt as the cache takes it, which hashes it. Refuses what is no text, or empty."""
    if cache_salt is None:
        return b""
    if not isinstance(cache_salt, str) or not cache_salt:
        raise UsageError(f"cache_salt is {cache_salt!r}: give some text, or leave it out")
    return cache_salt.encode("utf-8", "surrogatepass")


def flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}: give True or False")
