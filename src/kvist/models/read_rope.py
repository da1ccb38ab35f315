"""Rotary embedding from a file's description: what is turned, by which base, stretched how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.models.families import Family
from kvist.models.read_values import length, number, whole
from kvist.models.rope_scaling import RopeScaling

Values = Mapping[str, Any]

GGUF_YARN = ("attn_factor", "yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor")
"""What llama.cpp can vary in yarn, and kvist does not."""


def rope_from_hf(raw: Values, family: Family, values: Values) -> dict[str, Any]:
    """Config fields from a config.json. transformers 5 keeps all in ``rope_parameters``, 4 much of it beside it."""
    rope = _object(raw, "rope_parameters")
    local: Values = {}
    if "full_attention" in rope or "sliding_attention" in rope:  # one for each kind of layer
        rope, local = _object(rope, "full_attention"), _object(rope, "sliding_attention")
        if local not in ({}, rope) and "local_rope_theta" not in family.fixed:
            raise UnsupportedModelError(f"rope_parameters of each kind of layer are not supported in {family.name}")
    theta = rope.get("rope_theta", raw.get("rope_theta", raw.get("rotary_emb_base")))
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", raw.get("rotary_pct")))
    found: dict[str, Any] = {
        "rotary_dim": _turned(values, family.rotary_share if share is None else number(share, "partial_rotary_factor")),
        "rope_theta": number(values.get("rope_theta", 10000.0) if theta is None else theta, "rope_theta"),
        "rope_scaling": _scaling(raw.get("rope_scaling") or rope, raw, values),
    }
    if "local_rope_theta" in family.fixed:
        if local.get("rope_type", "default") != "default":
            raise UnsupportedModelError(
                "rope scaling in layers with a window is not supported: kvist runs it in others"
            )
        base = local.get("rope_theta", raw.get("rope_local_base_freq"))
        found["local_rope_theta"] = number(values["local_rope_theta"] if base is None else base, "rope_local_base_freq")
    scaling = found["rope_scaling"]
    if scaling is not None and scaling.kind == "dynamic":  # it is made for lengths beyond the trained one
        found["max_positions"] = int(scaling.original_positions * scaling.factor)
    return found


def rope_from_gguf(get: Callable[..., Any], family: Family, values: Values) -> dict[str, Any]:
    """Config fields from a GGUF file's metadata."""
    scaling = {
        "rope_type": get("rope.scaling.type", "none"),
        "factor": get("rope.scaling.factor"),
        "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        "beta_fast": get("rope.scaling.yarn_beta_fast"),
        "beta_slow": get("rope.scaling.yarn_beta_slow"),
    }
    kind = scaling["rope_type"]
    if kind == "longrope":  # its divisors are tensors: see `load`
        kind = "none"
    odd = [key for key in GGUF_YARN if get(f"rope.scaling.{key}") is not None] if kind == "yarn" else []
    if kind not in ("none", "linear", "yarn") or odd:
        raise UnsupportedModelError(
            f"rope scaling {kind!r:.40} {' '.join(odd)} is not supported in a GGUF file: kvist runs linear, plain yarn"
        )
    found = {
        "rotary_dim": get("rope.dimension_count", values["head_dim"]),
        "rope_theta": number(get("rope.freq_base", values.get("rope_theta", 10000.0)), "rope.freq_base"),
        "rope_scaling": None if kind == "none" else _scaling(scaling, scaling, values),
    }
    if "local_rope_theta" in family.fixed:
        found["local_rope_theta"] = number(get("rope.freq_base_swa", values["local_rope_theta"]), "rope.freq_base_swa")
    return found


def longrope_from_gguf(metadata: Values, short: Sequence[float], long: Sequence[float]) -> RopeScaling:
    """A GGUF file brings the divisors of longrope as tensors, the rest as metadata."""
    prefix = f"{metadata.get('general.architecture')}.rope.scaling."
    given = metadata.get(prefix + "attn_factor", 1.0)
    original = length(metadata.get(prefix + "original_context_length"), "rope.scaling.original_context_length")
    return RopeScaling(
        "longrope", 1.0, original_positions=original, attention_factor=number(given, "rope.scaling.attn_factor"),
        short=tuple(map(float, short)), long=tuple(map(float, long)),
    )  # fmt: skip


def _object(raw: Values, name: str) -> Values:
    found = raw.get(name) or {}
    if not isinstance(found, dict):
        raise ModelFileError(f"config.json: {name} is not an object: get the file again")
    return found


def _turned(values: Values, share: float) -> int:
    if not 0 < share <= 1:
        raise ModelFileError(f"the model's config gives a partial_rotary_factor of {share}: expected 0 to 1")
    return int(whole(values, "head_dim") * share)


def _scaling(raw: object, beside: Values, values: Values) -> RopeScaling | None:
    """beside: the object around it, which some files put the original length in."""
    if not isinstance(raw, dict):
        raise ModelFileError("config.json: rope_scaling is not an object: get the file again")
    kind = raw.get("rope_type", raw.get("type", "default"))
    match kind:
        case "default" | None:
            return None
        case "linear":
            return RopeScaling("linear", number(raw.get("factor"), "rope factor"))
        case "dynamic":
            trained = whole(values, "max_positions")
            return RopeScaling("dynamic", number(raw.get("factor"), "rope factor"), original_positions=trained)
        case "llama3":
            return RopeScaling(
                "llama3", number(raw.get("factor"), "rope factor"),
                number(raw.get("low_freq_factor"), "low_freq_factor"),
                number(raw.get("high_freq_factor"), "high_freq_factor"), _original(raw, beside, values),
            )  # fmt: skip
        case "yarn" if "long_factor" not in raw:  # Phi-3's first files called theirs so
            return _yarn(raw, _original(raw, beside, values))
        case "longrope" | "su" | "yarn":
            return _longrope(raw, _original(raw, beside, values), values)
    raise UnsupportedModelError(
        f"rope scaling {kind!r:.40} is not supported: kvist runs default, linear, dynamic, llama3, yarn and longrope"
    )


def _original(raw: Values, beside: Values, values: Values) -> int:
    """The trained length: beside the scaling (Phi-3), in it, or all there is."""
    for where in (beside, raw):
        if where.get("original_max_position_embeddings") is not None:
            return length(where["original_max_position_embeddings"], "original_max_position_embeddings")
    return whole(values, "max_positions")


def _yarn(raw: Values, original: int) -> RopeScaling:
    """Without a factor for q and k of its own, 0.1 ln(factor) + 1; DeepSeek's two mscales are a ratio of such."""
    factor = number(raw.get("factor"), "rope factor")

    def size(mscale: object) -> float:
        return 0.1 * number(mscale, "rope mscale") * math.log(factor) + 1 if factor > 1 else 1.0

    given, over, under = raw.get("attention_factor"), raw.get("mscale"), raw.get("mscale_all_dim")
    if given is None:
        given = size(over) / (size(under) or 1e-9) if over and under else size(1.0)
    truncate = raw.get("truncate", True)
    return RopeScaling(
        "yarn", factor, original_positions=original, attention_factor=number(given, "rope attention_factor"),
        beta_fast=number(raw.get("beta_fast") or 32.0, "rope beta_fast"),
        beta_slow=number(raw.get("beta_slow") or 1.0, "rope beta_slow"), truncate=truncate,
    )  # fmt: skip


def _longrope(raw: Values, original: int, values: Values) -> RopeScaling:
    """The factor for q and k: sqrt(1 + ln(stretch) / ln(trained length)), the stretch being the ratio of lengths."""
    stretch = raw.get("factor")
    stretch = whole(values, "max_positions") / max(original, 1) if stretch is None else number(stretch, "rope factor")
    given = raw.get("attention_factor")
    if given is None:
        given = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    return RopeScaling(
        "longrope", max(stretch, 1.0), original_positions=original,
        attention_factor=number(given, "rope attention_factor"), short=_divisors(raw, "short_factor"),
        long=_divisors(raw, "long_factor"),
    )  # fmt: skip


def _divisors(raw: Values, name: str) -> tuple[float, ...]:
    found = raw.get(name)
    if not isinstance(found, list):
        raise ModelFileError(f"the model's config gives rope {name} = {found!r:.40}: expected a list of numbers")
    return tuple(number(value, f"rope {name}") for value in found)
