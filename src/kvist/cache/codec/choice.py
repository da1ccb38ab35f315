"""How a codec is asked for, and what that means for each layer.

::

    int4                  K and V of all layers
    k=int5,v=int4         apart
    auto                  the type of the weights
    @codecs.json          layer by layer, as `kvist eval --choose` writes it; there auto stands for the float type:
                          {"layers": [{"k": "int5", "v": "int4"}, {"k": "auto", "v": "int8"}, ...],
                           "key_means": ["<base64 of float16 [KV heads][head size]>", null, ...]}

Key means may be absent. A packed layer's keys are stored without their mean: what is taken from all keys of a layer
alike changes no softmax, and what is left is smaller, so its codes are finer.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec import FLOATS, AnyCodec, Packed, any_codec
from kvist.errors import ModelFileError, UsageError
from kvist.jsonfile import read_json_object

AUTO = "auto"
"""What stands for the type of the weights."""


@dataclass(frozen=True, slots=True)
class LayerCodecs:
    """The codecs of a layer's K and V. mean: of its keys, float16 numbers as bytes; empty: not known, or not used."""

    k: AnyCodec
    v: AnyCodec
    mean: bytes = b""

    @property
    def packed(self) -> bool:
        """Whether either loses something when a page is packed."""
        return isinstance(self.k, Packed) or isinstance(self.v, Packed)


def spelled(text: str) -> str:
    """The one way in which a choice is written; raises for one that names no codec, or mixes what cannot be mixed."""
    if text == AUTO or text.startswith("@"):
        return text
    match = re.fullmatch(r"\s*k\s*=\s*([\w]+)\s*,\s*v\s*=\s*([\w]+)\s*", text, re.ASCII)
    if match is None:
        if "=" in text:
            raise UsageError(f"codec {text}: name K and V together, as in k=int5,v=int4, or both by one name: int4")
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
    if not text.startswith("@"):
        return text
    entries, means = _entries(Path(text[1:]))
    return json.dumps([entries, [_text(mean) for mean in means]] if any(means) else entries)


def float_type(text: str, own: str) -> str:
    """The float type that a choice names, or the weights' `own` where it names none."""
    return text if text in FLOATS else own


def _pair(text: str, floats: AnyCodec) -> LayerCodecs:
    text = spelled(text)
    if text == AUTO:
        return LayerCodecs(floats, floats)
    names = [part.split("=")[-1] for part in text.split(",")]
    return LayerCodecs(any_codec(names[0]), any_codec(names[-1]))


def _from_file(path: Path, layers: int, floats: AnyCodec) -> list[LayerCodecs]:
    """What a file says of each layer."""
    found, means = _entries(path)
    if len(found) != layers:
        raise UsageError(f"{path}: it has codecs of {len(found)} layers, and the model has {layers}: choose them anew")
    pairs = [[floats if name == AUTO else any_codec(name) for name in pair] for pair in found]
    made = [LayerCodecs(k, v) for k, v in pairs]
    return [
        replace(codecs, mean=mean) if isinstance(codecs.k, Packed) else codecs
        for codecs, mean in zip(made, means, strict=True)
    ]


def write_codecs(
    path: Path,
    pairs: Sequence[tuple[str, str]],
    means: Mapping[int, NDArray[np.float32]],
    made_from: Mapping[str, object],
) -> None:
    """Write the file that ``@FILE`` names: K's and V's codecs of all layers. made_from: what it says of itself besides.

    means: the mean keys that are known; of layers whose K stays floats none is written.
    """
    layers = [json.dumps({"k": k, "v": v}) for k, v in pairs]
    kept = [
        means[layer].astype("<f2").tobytes() if layer in means and k != AUTO and k not in FLOATS else b""
        for layer, (k, _) in enumerate(pairs)
    ]
    head = json.dumps(made_from, indent=1)[:-2] if made_from else "{"
    parts = {"layers": layers, "key_means": [json.dumps(_text(mean)) for mean in kept] if any(kept) else []}
    lists = ",\n".join(f' "{name}": [\n  ' + ",\n  ".join(rows) + "\n ]" for name, rows in parts.items() if rows)
    path.write_text(f"{head}{',' if made_from else ''}\n{lists}\n}}\n")


def decoded(mean: bytes) -> NDArray[np.float32]:
    """The numbers of `LayerCodecs.mean`, one after another."""
    return np.frombuffer(mean, "<f2").astype(np.float32)


def _text(mean: bytes) -> str | None:
    return base64.b64encode(mean).decode() if mean else None


def _entries(path: Path) -> tuple[list[tuple[str, str]], list[bytes]]:
    """The names of each layer's codecs in a file, K's and V's, and its key means."""
    try:
        whole = read_json_object(path)
    except ModelFileError as error:
        raise UsageError(f"no codecs can be read from a file: {error}") from error
    found, means = whole.get("layers"), whole.get("key_means")
    if not isinstance(found, list) or not found:
        raise UsageError(f'{path} has no list "layers": give a file that `kvist eval --choose` wrote')
    for entry in found:
        if not isinstance(entry, dict) or {key: type(name) for key, name in entry.items()} != {"k": str, "v": str}:
            raise UsageError(f'{path}: {str(entry)[:60]} is no pair of codecs: write {{"k": "int5", "v": "int4"}}')
    if means is None:
        means = [None] * len(found)
    if not isinstance(means, list) or len(means) != len(found):
        raise UsageError(f'{path}: "key_means" must name one for each layer, or null: choose codecs anew')
    return [(entry["k"], entry["v"]) for entry in found], [_mean(path, mean) for mean in means]


def _mean(path: Path, text: object) -> bytes:
    """A mean key as bytes of float16; empty for null."""
    if text is None:
        return b""
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        raw = b""
    if not raw or len(raw) % 2 or not np.isfinite(decoded(raw)).all():
        raise UsageError(f"{path}: {str(text)[:30]!r} is no mean key, numbers of float16 as base64: choose codecs anew")
    return raw
