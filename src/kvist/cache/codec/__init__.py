"""Codecs by name. Each lives in a file of its own, imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module

from kvist.cache.codec.base import Codec
from kvist.errors import unknown_name

__all__ = ["CODECS", "Codec", "codec"]

CODECS = ("bf16", "f16", "f32")


def codec(name: str) -> Codec:
    """Return the codec called `name`; an unknown name raises `UnknownNameError` with those that are known."""
    if name not in CODECS:
        raise unknown_name("KV cache codec", name, CODECS)
    found: Codec = import_module(f"kvist.cache.codec.{name}").CODEC
    return found
