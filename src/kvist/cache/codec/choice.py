"""How a codec is asked for, and what that means for each layer.

::

    int4                  K and V of all layers
    k=int5,v=int4         apart
    auto                  the type of the weights
    @codecs.json          layer by layer, as `kvist eval --choose` writes it; there auto stands for the float type:
                          {"layers": [{"k": "int5", "v": "int4"}, {"k": "auto", "v": "int8"}, ...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvist.cache.codec import FLOATS, AnyCodec, Packed, any_codec
from kvist.errors import ModelFileError, UsageError
from kvist.jsonfile import read_json_object


@dataclass(frozen=True, slots=True)
class LayerCodecs:
    """The codecs of a layer's K and V."""

    k: AnyCodec
    v: AnyCodec

    @property
    def packed(self) -> bool:
        """Whether either loses something when a page is packed."""
        return isinstance(self.k, Packed) or isinstance(self.v, Packed)


def spelled(text: str) -> str:
    """The one way in which a choice is written; raises for one that names no codec, or mixes what cannot be mixed."""
    if text == "auto" or text.startswith("@"):
        return text
    match = re.fullmatch(r"\s*k\s*=\s*([\w]+)\s*,\s*v\s*=\s*([\w]+)\s*", text, re.ASCII)
    if match is None:
        return any_codec(text).name
    k, v = any_codec(match[1]), any_codec(match[2])
    if k.name == v.name:
        return k.name
    if k.name in FLOATS and v.name in FLOATS:
        raise UsageError(f"codec {text}: two different float types are not mixed; give one of {', '.join(FLOATS)}")
    return f"k={k.name},v={v.name}"


def layer_codecs(text: str, skip: Sequence[int], layers: int, floats: AnyCodec) -> list[LayerCodecs]:
    """The codecs of each of a model's `layers`; `skip`: those that stay `floats` (-1: the last one)."""
    for layer in skip:
        if not -layers <= layer < layers:
            raise UsageError(f"kv_cache_skip_layers names layer {layer}, and the model has {layers}")
    chosen = _from_file(Path(text[1:]), layers, floats) if text.startswith("@") else [_pair(text, floats)] * layers
    left = {layer % layers for layer in skip}
    plain = LayerCodecs(floats, floats)
    return [plain if i in left or not codecs.packed else codecs for i, codecs in enumerate(chosen)]


def meaning(text: str) -> str:
    """What a choice stands for, as a part of keys: its text, or what the file says that it names."""
    return json.dumps(_entries(Path(text[1:]))) if text.startswith("@") else text


def float_type(text: str, own: str) -> str:
    """The float type that a choice names, or the weights' `own` where it names none."""
    return text if text in FLOATS else own


def _pair(text: str, floats: AnyCodec) -> LayerCodecs:
    text = spelled(text)
    if text == "auto":
        return LayerCodecs(floats, floats)
    names = [part.split("=")[-1] for part in text.split(",")]
    return LayerCodecs(any_codec(names[0]), any_codec(names[-1]))


def _from_file(path: Path, layers: int, floats: AnyCodec) -> list[LayerCodecs]:
    """What a file says of each layer."""
    found = _entries(path)
    if len(found) != layers:
        raise UsageError(f"{path}: it has codecs of {len(found)} layers, and the model has {layers}: choose them anew")
    return [LayerCodecs(*(floats if name == "auto" else any_codec(name) for name in pair)) for pair in found]


def _entries(path: Path) -> list[tuple[str, str]]:
    """The names of each layer's codecs in a file, K's and V's."""
    try:
        found = read_json_object(path).get("layers")
    except ModelFileError as error:
        raise UsageError(f"no codecs can be read from a file: {error}") from error
    if not isinstance(found, list) or not found:
        raise UsageError(f'{path} has no list "layers": give a file that `kvist eval --choose` wrote')
    for entry in found:
        if not isinstance(entry, dict) or {key: type(name) for key, name in entry.items()} != {"k": str, "v": str}:
            raise UsageError(f'{path}: {str(entry)[:60]} is no pair of codecs: write {{"k": "int5", "v": "int4"}}')
    return [(entry["k"], entry["v"]) for entry in found]
