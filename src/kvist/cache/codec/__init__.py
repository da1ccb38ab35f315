"""Codecs by name. Each lives in a file of its own, imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module

from kvist.cache.codec.base import AnyCodec, Codec, Packed
from kvist.errors import unknown_name

__all__ = ["CODECS", "FLOATS", "PACKED", "AnyCodec", "Codec", "Packed", "any_codec", "codec"]

FLOATS = ("bf16", "f16", "f32")
PACKED = ("fp8", "int3", "int4", "int5", "int6", "int8", "kivi2", "kivi4", "lm3", "lm4")
CODECS = (*FLOATS, *PACKED)


def codec(name: str) -> Codec:
    """Return the float codec called `name`; an unknown one raises `UnknownNameError` with those that are known."""
    if name not in FLOATS:
        raise unknown_name("float type", name, FLOATS)
    found: Codec = import_module(f"kvist.cache.codec.{name}").CODEC
    return found


def any_codec(name: str) -> AnyCodec:
    """Return the codec called `name`, whichever kind it is; an unknown one raises `UnknownNameError`."""
    if name not in CODECS:
        raise unknown_name("KV cache codec", name, CODECS)
    found: AnyCodec = import_module(f"kvist.cache.codec.{name}").CODEC
    return found
