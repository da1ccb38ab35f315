"""Which layers of a model have a sliding window, from its file's description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.models.families import Family
from kvist.models.read_values import whole

MAX_LAYERS = 1 << 12
Found = tuple[int | None, ...]  # of each layer its window, None: sees everything; (): no layer has one


def windows_from_hf(raw: Mapping[str, Any], family: Family, values: Mapping[str, Any]) -> Found:
    """Of a config.json: ``layer_types`` where it lists them, else by the family's rule."""
    rule, size, kinds = family.windows, raw.get("sliding_window"), raw.get("layer_types")
    if kinds is not None and kinds != []:
        if not isinstance(kinds, list) or not all(kind in ("full_attention", "sliding_attention") for kind in kinds):
            raise UnsupportedModelError(
                f"layer_types {kinds!r:.80} are not supported: kvist runs full_attention and sliding_attention"
            )
        if "sliding_attention" not in kinds:
            return ()
        if rule is None or size is None:
            raise ModelFileError("config.json lists layers with sliding_attention and gives them no window")
        return tuple(_window(size) if kind == "sliding_attention" else None for kind in kinds)
    if rule is None or size is None or (rule.switch and not raw.get(rule.switch)):
        return ()
    layers, every = _layers(values), rule.every
    if rule.every_key and raw.get(rule.every_key) is not None:
        every = whole(raw, rule.every_key)
    first = raw.get(rule.first_key, 0) if rule.first_key else 0
    if not isinstance(first, int) or isinstance(first, bool):
        raise ModelFileError(f"config.json gives {rule.first_key} = {first!r:.40}: expected a whole number")
    return _by_rule(_window(size), layers, every, first)


def windows_from_gguf(get: Callable[[str], Any], family: Family, values: Mapping[str, Any]) -> Found:
    """Of a GGUF file's metadata, by the family's rule."""
    size, rule = get("attention.sliding_window"), family.windows
    if not size:
        return ()
    if rule is None or rule.switch:
        raise UnsupportedModelError(
            f"a sliding window in a GGUF file of {family.gguf_architecture} is not supported: kvist runs full attention"
        )
    every = get("attention.sliding_window_pattern")
    return _by_rule(
        _window(size), _layers(values), rule.every if every is None else whole({"every": every}, "every"), 0
    )


def _by_rule(size: int, layers: int, every: int, first: int) -> Found:
    """Layers from `first` on have a window, but each `every`-th (0: none) sees everything."""
    seen = [None if i < first or (every and (i + 1) % every == 0) else size for i in range(layers)]
    return tuple(seen) if any(seen) else ()


def _layers(values: Mapping[str, Any]) -> int:
    return min(whole(values, "num_layers"), MAX_LAYERS)


def _window(size: object) -> int:
    return whole({"sliding_window": size}, "sliding_window")
