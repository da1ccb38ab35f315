"""From a file's own description (config.json, GGUF metadata) to a `ModelConfig`, by the table of families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.models.config import ModelConfig, RopeScaling
from kvist.models.families import ACTIVATION_NAMES, FAMILIES, Family

MAX_CONFIG_BYTES = 1 << 22


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from an untrusted file."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelFileError(
                f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB: that is no model config; get the file again"
            )
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} does not exist: a model folder needs config.json beside its weights") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"cannot read {path} ({error}): get the file again") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object: get the file again")
    return value


def _unsupported(found: object) -> UnsupportedModelError:
    known = ", ".join(architecture for family in FAMILIES for architecture in family.architectures)
    return UnsupportedModelError(f"architecture {found!r:.80} is not supported: kvist runs {known}")


def family_of(config: Mapping[str, Any]) -> Family:
    """The family a config.json belongs to; its architecture counts, its model type where none is given."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelFileError("config.json: architectures is not a list: get the file again")
    for family in FAMILIES:
        if architectures and architectures[0] in family.architectures:
            return family
        if not architectures and config.get("model_type") in family.model_types:
            return family
    raise _unsupported(architectures[0] if architectures else config.get("model_type"))


def config_from_hf(raw: Mapping[str, Any], vocab_size: int) -> tuple[Family, ModelConfig]:
    """A config.json as fields. vocab_size comes from the embedding's shape, which is the truth."""
    family = family_of(raw)
    for key, only in family.unless.items():
        if raw.get(key, only) != only:
            raise UnsupportedModelError(
                f"config.json sets {key} = {raw[key]!r:.40}: kvist runs this family with {only!r} only"
            )
    values: dict[str, Any] = dict(family.fixed)
    for name, keys in family.fields.items():
        for key in keys:
            if raw.get(key) is not None:
                values[name] = raw[key]
                break
    if values["activation"] not in ("silu", "gelu", "gelu_tanh") or "activation" in family.fields:
        named = raw.get(family.fields.get("activation", ("",))[0])
        if named is not None:
            if not isinstance(named, str) or named not in ACTIVATION_NAMES:
                raise UnsupportedModelError(
                    f"activation {named!r:.40} is not supported: kvist runs {', '.join(ACTIVATION_NAMES)}"
                )
            values["activation"] = ACTIVATION_NAMES[named]
    heads, hidden = _whole(values, "num_heads"), _whole(values, "hidden_size")
    values.setdefault("num_kv_heads", heads)
    values.setdefault("head_dim", hidden // heads)
    values.setdefault("intermediate_size", 4 * hidden)
    if values["positions"] == "rotary":
        rope = raw.get("rope_parameters") or {}  # transformers 5 keeps both here, 4 beside it
        if not isinstance(rope, dict):
            raise ModelFileError("config.json: rope_parameters is not an object: get the file again")
        values["rotary_dim"] = values["head_dim"]
        values["rope_theta"] = _number(rope.get("rope_theta", raw.get("rope_theta", 10000.0)), "rope_theta")
        values["rope_scaling"] = _scaling(raw.get("rope_scaling") or rope)
    return family, _build(family, values, vocab_size, _ids(raw.get("eos_token_id")))


def config_from_gguf(metadata: Mapping[str, object], vocab_size: int, tied: bool) -> tuple[Family, ModelConfig]:
    """A GGUF file's metadata as fields; the keys are the same for every architecture but for their prefix."""
    architecture = metadata.get("general.architecture")
    family = next(
        (family for family in FAMILIES if isinstance(architecture, str) and family.gguf_architecture == architecture),
        None,
    )
    if family is None:
        raise _unsupported(architecture)

    def get(key: str, default: object = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise UnsupportedModelError(
                f"{architecture}.{key} is a list, one value a layer perhaps: kvist runs models whose layers are alike"
            )
        return value

    values: dict[str, Any] = dict(family.fixed)
    values |= {
        "hidden_size": get("embedding_length"),
        "num_layers": get("block_count"),
        "num_heads": get("attention.head_count"),
        "intermediate_size": get("feed_forward_length"),
        "max_positions": get("context_length"),
        "tie_embeddings": tied,
        "norm_eps": get(
            "attention.layer_norm_rms_epsilon" if values["norm"] == "rms" else "attention.layer_norm_epsilon"
        ),
    }
    heads, hidden = _whole(values, "num_heads"), _whole(values, "hidden_size")
    values["num_kv_heads"] = get("attention.head_count_kv", heads)
    values["head_dim"] = get("attention.key_length", hidden // heads)
    if get("attention.value_length", values["head_dim"]) != values["head_dim"]:
        raise UnsupportedModelError(
            "keys and values of different size are not supported: kvist runs models where they are equal"
        )
    if get("attention.sliding_window"):
        raise UnsupportedModelError("a sliding window in a GGUF file is not supported: kvist runs full attention")
    if values["positions"] == "rotary":
        values["rotary_dim"] = get("rope.dimension_count", values["head_dim"])
        values["rope_theta"] = _number(get("rope.freq_base", 10000.0), "rope.freq_base")
        kind = get("rope.scaling.type", "none")
        values["rope_scaling"] = (
            None if kind == "none" else _scaling({"rope_type": kind, "factor": get("rope.scaling.factor")})
        )
    end = metadata.get("tokenizer.ggml.eos_token_id")
    return family, _build(family, values, vocab_size, _ids(end))


def _build(family: Family, values: Mapping[str, Any], vocab_size: int, eos_ids: tuple[int, ...]) -> ModelConfig:
    try:
        return ModelConfig(family=family.name, vocab_size=vocab_size, eos_ids=eos_ids, **values)
    except TypeError as error:
        missing = str(error).partition(": ")[2]
        raise ModelFileError(f"the model's config lacks {missing or error}: get the file again") from error


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelFileError(
            f"the model's config gives {name} = {value!r:.40}: expected a whole number from 1; get the file again"
        )
    return value


def _number(value: object, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ModelFileError(f"the model's config gives {name} = {value!r:.40}: expected a number; get the file again")
    try:
        return float(value)
    except OverflowError:
        raise ModelFileError(f"the model's config gives a {name} that no float holds: get the file again") from None


def _ids(value: object) -> tuple[int, ...]:
    """One id, a list of them, or none."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(int(item) for item in listed if isinstance(item, int) and not isinstance(item, bool))


def _scaling(raw: object) -> RopeScaling | None:
    if not isinstance(raw, dict):
        raise ModelFileError("config.json: rope_scaling is not an object: get the file again")
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind in ("default", None):
        return None
    if kind == "linear":
        return RopeScaling("linear", _number(raw.get("factor"), "rope factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3", _number(raw.get("factor"), "rope factor"), _number(raw.get("low_freq_factor"), "low_freq_factor"),
            _number(raw.get("high_freq_factor"), "high_freq_factor"),
            _original(raw.get("original_max_position_embeddings")),
        )  # fmt: skip
    raise UnsupportedModelError(f"rope scaling {kind!r:.40} is not supported: kvist runs default, linear and llama3")


def _original(value: object) -> int:
    """A length that some configs write as a float."""
    number = _number(value, "original_max_position_embeddings")
    if not number.is_integer():
        raise ModelFileError(
            f"the model's config gives original_max_position_embeddings = {value!r:.40}: expected a whole number"
        )
    return int(number)
