"""From a file's own description (config.json, GGUF metadata) to a `ModelConfig`, by the table of families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.models.config import ModelConfig
from kvist.models.families import ACTIVATION_NAMES, FAMILIES, Family
from kvist.models.read_layers import windows_from_gguf, windows_from_hf
from kvist.models.read_rope import rope_from_gguf, rope_from_hf
from kvist.models.read_values import whole

MAX_CONFIG_BYTES = 1 << 22
MAY_BE_NULL = ("attention_softcap", "logits_softcap")  # null says there is none, not that the default holds


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
    known = ", ".join(dict.fromkeys(architecture for family in FAMILIES for architecture in family.architectures))
    return UnsupportedModelError(f"architecture {found!r:.80} is not supported: kvist runs {known}")


def family_of(config: Mapping[str, Any]) -> Family:
    """The family a config.json belongs to; its architecture counts, its model type where none is given."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelFileError("config.json: architectures is not a list: get the file again")
    named = [
        family
        for family in FAMILIES
        if (architectures and architectures[0] in family.architectures)
        or (not architectures and config.get("model_type") in family.model_types)
    ]
    if not named:
        raise _unsupported(architectures[0] if architectures else config.get("model_type"))
    for family in named:
        if all(config.get(key) in values for key, values in family.when.items()):
            return family
    found = ", ".join(f"{key} = {config.get(key)!r:.40}" for family in named for key in family.when)
    raise UnsupportedModelError(f"config.json sets {found:.200}: kvist does not run this variant of {named[0].name}")


def config_from_hf(raw: Mapping[str, Any], vocab_size: int) -> tuple[Family, ModelConfig]:
    """A config.json as fields. vocab_size comes from the embedding's shape, which is the truth."""
    family = family_of(raw)
    for key, only in family.unless.items():
        if raw.get(key) is not None and raw[key] != only:
            raise UnsupportedModelError(
                f"config.json sets {key} = {raw[key]!r:.40}: kvist runs this family with {only!r} only"
            )
    if raw.get("quantization_config") is not None:
        raise UnsupportedModelError(
            "config.json has a quantization_config: kvist quantises float weights itself (--weights int8), and reads "
            "quantised ones from GGUF files"
        )
    values: dict[str, Any] = dict(family.fixed)
    for name, keys in family.fields.items():
        for key in keys:
            if raw.get(key) is not None or (key in raw and name in MAY_BE_NULL):
                values[name] = raw[key]
                break
    named = raw.get(family.fields.get("activation", ("",))[0])
    if named is not None:
        if not isinstance(named, str) or named not in ACTIVATION_NAMES:
            raise UnsupportedModelError(
                f"activation {named!r:.40} is not supported: kvist runs {', '.join(ACTIVATION_NAMES)}"
            )
        values["activation"] = ACTIVATION_NAMES[named]
    heads, hidden = whole(values, "num_heads"), whole(values, "hidden_size")
    values.setdefault("num_kv_heads", heads)
    values.setdefault("head_dim", hidden // heads)
    values.setdefault("intermediate_size", 4 * hidden)
    values["windows"] = windows_from_hf(raw, family, values)
    if values["positions"] == "rotary":
        values |= rope_from_hf(raw, family, values)
    return family, _build(family, values, vocab_size, _ids(raw.get("eos_token_id")))


def config_from_gguf(metadata: Mapping[str, object], vocab_size: int, tied: bool) -> tuple[Family, ModelConfig]:
    """A GGUF file's metadata as fields; the keys are the same for every architecture but for their prefix."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _unsupported(architecture)
    mixture = isinstance(count := metadata.get(f"{architecture}.expert_count"), int) and count > 0
    known = [family for family in FAMILIES if family.gguf_architecture == architecture]
    family = next((family for family in known if family.is_mixture == mixture), None)
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
    values |= {field: get(key) for field, key in family.gguf_fields.items() if get(key) is not None}
    heads, hidden = whole(values, "num_heads"), whole(values, "hidden_size")
    values |= family.gguf_by_layers.get(whole(values, "num_layers"), {})
    values["num_kv_heads"] = get("attention.head_count_kv", values.get("num_kv_heads", heads))
    values["head_dim"] = get("attention.key_length", hidden // heads)
    if get("attention.value_length", values["head_dim"]) != values["head_dim"]:
        raise UnsupportedModelError(
            "keys and values of different size are not supported: kvist runs models where they are equal"
        )
    values["windows"] = windows_from_gguf(get, family, values)
    if values["positions"] == "rotary":
        values |= rope_from_gguf(get, family, values)
    if family.is_mixture:
        values["experts"], values["experts_chosen"] = get("expert_count"), get("expert_used_count")
        values["intermediate_size"] = get("expert_feed_forward_length", values["intermediate_size"])
        values.setdefault("renormalise_experts", True)
    end = metadata.get("tokenizer.ggml.eos_token_id")
    return family, _build(family, values, vocab_size, _ids(end))


def _build(family: Family, values: Mapping[str, Any], vocab_size: int, eos_ids: tuple[int, ...]) -> ModelConfig:
    try:
        return ModelConfig(family=family.name, vocab_size=vocab_size, eos_ids=eos_ids, **values)
    except TypeError as error:
        missing = str(error).partition(": ")[2]
        raise ModelFileError(f"the model's config lacks {missing or error}: get the file again") from error


def _ids(value: object) -> tuple[int, ...]:
    """One id, a list of them, or none."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(int(item) for item in listed if isinstance(item, int) and not isinstance(item, bool))
