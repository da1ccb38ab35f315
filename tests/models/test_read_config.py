"""From a file's own description to a ModelConfig: what is read, what is refused, and that nonsense is refused
politely.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.errors import KvistError, ModelFileError, UnsupportedModelError
from kvist.models.config import ModelConfig, RopeScaling, padded
from kvist.models.families import FAMILIES
from kvist.models.read_config import config_from_gguf, config_from_hf, family_of, read_json
from kvist.models.rotary import frequencies, rotary_tables
from tiny import LLAMA3, MODELS, config

LLAMA, GPT2 = config(MODELS["llama"]), config(MODELS["gpt2"])
LLAMA_GGUF: dict[str, object] = {
    "general.architecture": "llama", "llama.embedding_length": 64, "llama.block_count": 3, "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2, "llama.feed_forward_length": 96, "llama.context_length": 256,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0, "llama.rope.dimension_count": 16,
    "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0, "llama.attention.key_length": 16,
    "llama.attention.value_length": 16, "tokenizer.ggml.eos_token_id": 1,
}  # fmt: skip


def test_llama_fields() -> None:
    family, found = config_from_hf({**LLAMA, "rope_scaling": LLAMA3, "eos_token_id": [1, 7]}, 300)
    assert family.name == "llama"
    assert found == ModelConfig(
        family="llama", vocab_size=300, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16,
        intermediate_size=96, max_positions=256, norm="rms", norm_eps=1e-5, activation="silu", gated=True, positions="rotary",
        rotary_dim=16, rope_theta=10000.0, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64), eos_ids=(1, 7),
    )  # fmt: skip
    assert (found.group, found.attention, found.stored_head_dim) == (2, "GQA", 16)


def test_gpt2_fields_and_defaults() -> None:
    family, found = config_from_hf({**GPT2, "n_inner": None}, 300)
    assert family.name == "gpt2"
    assert (found.intermediate_size, found.num_kv_heads, found.head_dim, found.rotary_dim) == (256, 4, 16, 0)
    assert (found.norm, found.activation, found.gated, found.positions) == ("layer", "gelu_tanh", False, "learned")
    assert found.tie_embeddings and found.eos_ids == (1,) and found.attention == "MHA"
    assert not config_from_hf({**GPT2, "tie_word_embeddings": False}, 300)[1].tie_embeddings


def test_rope_parameters_as_transformers_5_writes_them() -> None:
    raw = {key: value for key, value in LLAMA.items() if key not in ("rope_scaling", "rope_theta")}
    plain = config_from_hf({**raw, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 300)[1]
    assert plain.rope_theta == 5e5 and plain.rope_scaling is None
    scaled = config_from_hf({**raw, "rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, 300)[1]
    assert scaled.rope_theta == 5e5 and scaled.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    older = config_from_hf({**raw, "rope_scaling": {"type": "linear", "factor": 2}}, 300)[1]
    assert older.rope_scaling == RopeScaling("linear", 2.0) and older.rope_theta == 10000.0


def test_gguf_fields() -> None:
    family, found = config_from_gguf(LLAMA_GGUF, 300, tied=True)
    assert family.name == "llama"
    assert (found.num_kv_heads, found.head_dim, found.rotary_dim, found.max_positions) == (2, 16, 16, 256)
    assert found.rope_scaling == RopeScaling("linear", 2.0) and found.tie_embeddings and found.eos_ids == (1,)


@pytest.mark.parametrize(
    "raw",
    [{"architectures": ["MambaForCausalLM"]}, {"architectures": []}, {"model_type": "mamba"}, {}, {"architectures": [3]},
     {"architectures": [["LlamaForCausalLM"]]}, {"architectures": ["x" * 5000]}, {"model_type": ["llama"]}],
)  # fmt: skip
def test_an_unsupported_architecture_lists_those_that_are(raw: dict[str, Any]) -> None:
    for read in (lambda: family_of(raw), lambda: config_from_gguf({"general.architecture": "mamba"}, 1, False)):
        with pytest.raises(
            UnsupportedModelError, match=r"is not supported: kvist runs .*LlamaForCausalLM.*GPT2LMHeadModel"
        ) as caught:
            read()
        assert len(str(caught.value)) < 600
        for family in FAMILIES:
            assert all(architecture in str(caught.value) for architecture in family.architectures)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"hidden_act": "relu"}, r"activation 'relu' is not supported: kvist runs .*silu"),
        (
            {"rope_scaling": {"rope_type": "axial", "factor": 2.0}},
            r"rope scaling 'axial' is not supported: kvist runs .*llama3",
        ),
    ],
)
def test_unsupported_settings(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(UnsupportedModelError, match=cause):
        config_from_hf({**LLAMA, **changes}, 300)
    with pytest.raises(UnsupportedModelError, match=r"scale_attn_by_inverse_layer_idx = True: kvist runs .*False only"):
        config_from_hf({**GPT2, "scale_attn_by_inverse_layer_idx": True}, 300)
    for key, value in (("llama.attention.value_length", 8), ("llama.attention.sliding_window", 4096)):
        with pytest.raises(UnsupportedModelError, match="kvist runs"):
            config_from_gguf({**LLAMA_GGUF, key: value}, 300, False)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"hidden_size": -64}, "hidden_size = -64"),
        ({"num_hidden_layers": 0}, "num_layers = 0"),
        ({"num_hidden_layers": "3"}, "num_layers = '3'"),
        ({"num_attention_heads": 1 << 60}, "num_heads|head_dim"),
        ({"num_attention_heads": True}, "num_heads = True"),
        ({"num_key_value_heads": 3}, "4 heads and 3 KV heads"),
        ({"intermediate_size": 96.5}, "intermediate_size = 96.5"),
        ({"rms_norm_eps": 0}, "epsilon of 0"),
        ({"rms_norm_eps": "small"}, "epsilon"),
        ({"rms_norm_eps": None}, "norm_eps"),
        ({"rope_theta": -1}, "rope base"),
        ({"rope_theta": float("inf")}, "rope"),
        ({"rope_theta": "10000"}, "rope_theta = '10000'"),
        ({"rope_scaling": [1]}, "rope_scaling is not an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope factor = None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "freq_factor"),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": float("inf")}}, "original"),
        ({"rope_parameters": "x"}, "rope_parameters is not an object"),
        ({"max_position_embeddings": None}, "max_positions"),
        ({"head_dim": 15}, "rotary size of 15"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ModelFileError, match=cause) as caught:
        config_from_hf({**LLAMA, **changes}, 300)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


SCALING_KEYS = st.sampled_from(["rope_type", "type", "factor", "rope_theta"])
SCALING_VALUES = st.none() | st.floats() | st.just("llama3") | st.integers(-9, 10**400)
NONSENSE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=20), st.just("linear"),
    st.lists(st.integers(), max_size=3), st.dictionaries(SCALING_KEYS, SCALING_VALUES, max_size=4),
)  # fmt: skip


def accepts_or_refuses(read: Any) -> None:
    """A config that is accepted can be used; anything else is a KvistError of one short line."""
    try:
        found = read()[1]
    except KvistError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    if found.rotary_dim <= 1024:
        with np.errstate(all="raise"):
            assert np.isfinite(frequencies(found)).all()


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    data=st.data(),
    name=st.sampled_from(["llama", "gpt2", "gemma3", "qwen2-windows", "phi3-longrope", "gpt_neox", "falcon"]),
)
def test_any_nonsense_in_config_json(data: st.DataObject, name: str) -> None:
    raw = config(MODELS[name])
    more = ("sliding_window", "layer_types", "original_max_position_embeddings", "partial_rotary_factor")
    keys = [*raw, "architectures", "model_type", "rope_parameters", "rope_scaling", *family_of(raw).unless, *more]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        raw[key] = data.draw(NONSENSE)
    accepts_or_refuses(lambda: config_from_hf(raw, 300))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_nonsense_in_rope_scaling(data: st.DataObject) -> None:
    long = {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
    scaling = {
        **LLAMA3,
        **long,
        "rope_type": data.draw(st.sampled_from(["llama3", "linear", "yarn", "dynamic", "longrope"])),
    }
    if scaling["rope_type"] == "yarn":
        del scaling["long_factor"]
    keys = [*LLAMA3, *long, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        scaling[key] = data.draw(st.floats() | st.integers(-9, 10**400) | st.none() | st.text(max_size=3))
    accepts_or_refuses(lambda: config_from_hf({**LLAMA, "rope_scaling": scaling}, 300))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data(), vocab=st.integers(-1, 400))
def test_any_nonsense_in_gguf_metadata(data: st.DataObject, vocab: int) -> None:
    raw = dict(LLAMA_GGUF)
    value = NONSENSE | st.builds(np.array, st.lists(st.integers(-9, 9), max_size=3))
    for key in data.draw(st.lists(st.sampled_from([*raw, "llama.attention.sliding_window"]), min_size=1, max_size=3)):
        raw[key] = data.draw(value)
    accepts_or_refuses(lambda: config_from_gguf(raw, vocab, False))


@pytest.mark.parametrize(
    ("content", "cause"),
    [(None, "does not exist"), (b"", "cannot read"), (b"{", "cannot read"), (b"\xff\xfe", "cannot read"), (b"[1]", "JSON object"),
     (b"[" * 100_000, "cannot read"), (b'{"a": ' + b"9" * 9999 + b"}", "cannot read"), (b" " * (1 << 22) + b"{}", "larger than 4 MiB")],
    ids=range(8),
)  # fmt: skip
def test_config_json_that_is_none(tmp_path: Path, content: bytes | None, cause: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=cause):
        read_json(path)
    path.write_text(json.dumps(LLAMA))
    assert read_json(path) == json.loads(json.dumps(LLAMA))


def test_rotary_tables_are_the_formula() -> None:
    """cos and sin of position * theta^(-2i/d), and the two scalings by their definition."""
    _, plain = config_from_hf(LLAMA, 300)
    table = rotary_tables(plain, 100)
    assert table is not None and table.half == 8
    angle = np.arange(100)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    assert np.abs(table.cos - np.cos(angle)).max() < 1e-5 and np.abs(table.sin - np.sin(angle)).max() < 1e-5
    linear = rotary_tables(replace(plain, rope_scaling=RopeScaling("linear", 4.0)), 100)
    assert linear is not None and np.abs(linear.cos - np.cos(angle / 4)).max() < 1e-5
    llama3 = frequencies(replace(plain, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64)))
    wavelength = 2 * np.pi * 10000.0 ** (np.arange(8) / 8)
    smooth = np.clip((64 / wavelength - 1.0) / 3.0, 0, 1)
    expected = (1 - smooth) / wavelength / 8 + smooth / wavelength
    assert np.allclose(llama3, 2 * np.pi * expected, rtol=1e-6)
    assert (smooth == 1).any() and (smooth == 0).any() and ((smooth > 0) & (smooth < 1)).any(), (
        "all three ranges are met"
    )
    divided = rotary_tables(plain, 100, np.full(8, 4.0, np.float32))
    assert divided is not None and np.array_equal(divided.cos, linear.cos)
    assert rotary_tables(config_from_hf(GPT2, 300)[1], 100) is None


@pytest.mark.parametrize(("width", "expected"), [(1, 16), (16, 16), (17, 32), (40, 48), (576, 576)])
def test_padded(width: int, expected: int) -> None:
    assert padded(width) == expected


def test_families_are_data() -> None:
    """Every family names every role in both forms; names do not repeat."""
    for family in FAMILIES:
        names: Mapping[str, Any]
        for names in (family.hf, family.gguf) if family.gguf_architecture else (family.hf,):
            fixed = family.fixed
            needed = {"embed", "final_norm", "head", "q", "k", "v", "o"}
            parts = {"gate", "up", "down"} if fixed["gated"] else {"up", "down"}
            needed |= {"router", *(f"expert.{{expert}}.{part}" for part in parts)} if family.is_mixture else parts
            needed |= {"sinks"} if fixed.get("sinks") else set()
            needed |= {"attention_norm"} if fixed.get("pre_norms", True) else set()
            needed |= {"mlp_norm"} if fixed.get("pre_norms", True) and not fixed.get("shared_norm") else set()
            needed |= {"attention_post_norm", "mlp_post_norm"} if fixed.get("post_norms") else set()
            needed |= {"q_norm", "k_norm"} if "query_key_norm" in fixed else set()
            needed |= {"positions"} if fixed["positions"] == "learned" else set()
            assert needed <= names.keys()
            assert names.keys() - needed <= {f"{role}.bias" for role in needed}
            places = [(source.name, source.rows) for source in names.values()]
            assert len(set(places)) == len(places)
            assert all(not source.transposed for role, source in names.items() if role.endswith(".bias"))


def test_a_size_that_no_float_holds() -> None:
    raw = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 10**400}
    with pytest.raises(ModelFileError, match="hidden_size"):
        config_from_hf({**raw, "num_attention_heads": 4, "num_hidden_layers": 2, "rotary_pct": 0.5}, 300)
