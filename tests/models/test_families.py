"""Every family: its GGUF file is its folder, the reference agrees, its names are llama.cpp's; variants are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

from kvist.errors import ModelFileError, UnsupportedModelError
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Attend
from kvist.kernels.reference import ReferenceBackend
from kvist.models.config import ModelConfig
from kvist.models.decoder import build_program
from kvist.models.families import FAMILIES
from kvist.models.load import load_model
from kvist.models.read_config import config_from_hf, family_of
from kvist.models.rotary import frequencies, local_rotary_tables, rotary_tables
from ops import same_bits
from steps import logits_of, runner
from tiny import MODELS, Tiny, config, tensors, write_folder, write_gguf
from tiny_gguf import NO_GGUF


def prompt(tiny: Tiny, length: int = 70) -> list[int]:
    found: list[int] = np.random.RandomState(7).randint(2, tiny.vocab, length).tolist()
    return found


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NO_GGUF])
def test_a_gguf_file_is_its_folder_in_every_bit(name: str, backend: CpuBackend, tmp_path: Path) -> None:
    tiny = MODELS[name]
    folder = load_model(write_folder(tiny, tmp_path / "folder"), backend, "f32")
    file = load_model(write_gguf(tiny, tmp_path / "tiny.gguf"), backend, "f32")
    assert same_bits(logits_of(file, backend, prompt(tiny)), logits_of(folder, backend, prompt(tiny)))


@pytest.mark.parametrize(
    ("name", "meant"), [("gemma2", {"query_pre_attn_scalar": 32}), ("qwen3_moe", {"norm_topk_prob": True})]
)
def test_what_the_format_leaves_out_is_as_it_means_it(
    name: str, meant: dict[str, Any], backend: CpuBackend, tmp_path: Path
) -> None:
    """Scores by the square root of the head size; shares among the chosen experts."""
    tiny = replace(MODELS[name], extra={**MODELS[name].extra, **meant})
    folder = load_model(write_folder(tiny, tmp_path / "folder"), backend, "f32")
    file = load_model(write_gguf(tiny, tmp_path / "tiny.gguf"), backend, "f32")
    assert same_bits(logits_of(file, backend, prompt(tiny)), logits_of(folder, backend, prompt(tiny)))
    found = replace(file.config, query_scalar=folder.config.query_scalar, norm_eps=folder.config.norm_eps)
    assert replace(found, rope_theta=folder.config.rope_theta) == folder.config


@pytest.mark.parametrize("weights", ["packed", "f16", "f32"])
def test_packed_experts_have_the_bits_of_float32_ones(weights: str, backend: CpuBackend, tmp_path: Path) -> None:
    tiny = replace(MODELS["mixtral"], inner=64)
    path = write_gguf(tiny, tmp_path / "tiny.gguf", "Q8_0")
    model = load_model(path, backend, weights)
    assert weights != "packed" or model.matrices["layers.0.expert.3.down"].dtype == "q8_0"
    found = logits_of(model, backend, prompt(tiny))
    expected = logits_of(load_model(path, backend, "f32"), backend, prompt(tiny))
    assert same_bits(found, expected) or (weights == "f16" and np.abs(found - expected).max() < 0.1)


def test_experts_whose_parts_have_different_types(backend: CpuBackend, tmp_path: Path) -> None:
    tiny = replace(MODELS["mixtral"], inner=64)
    path = write_gguf(tiny, tmp_path / "tiny.gguf", "Q8_0", others={"ffn_up_exps": "Q4_0"})
    with pytest.raises(UnsupportedModelError, match=r"gate of type q8_0 and an up of type q4_0.* give --weights f16"):
        load_model(path, backend)
    load_model(path, backend, "f16")


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_quantised_when_they_are_loaded(name: str, backend: CpuBackend, tmp_path: Path) -> None:
    tiny = replace(MODELS[name], inner=64)
    folder = write_folder(tiny, tmp_path)
    model = load_model(folder, backend, "int8")
    assert {model.matrices[f"layers.0.{role}"].dtype for role in ("expert.1.gate", "expert.1.down")} == {"q8_0"}
    assert model.matrices["layers.0.router"].dtype == "f32"
    found, expected = (logits_of(m, backend, prompt(tiny, 20)) for m in (model, load_model(folder, backend, "f32")))
    assert np.abs(found - expected).mean() < 0.3


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_agrees(name: str, backend: CpuBackend, tmp_path: Path) -> None:
    tiny = MODELS[name]
    model = load_model(write_folder(tiny, tmp_path), backend, "f32")
    found, expected = (logits_of(model, made, prompt(tiny, 50)) for made in (backend, ReferenceBackend()))
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.gguf_architecture], ids=lambda f: f.name)
def test_names_in_a_gguf_file_are_those_of_llama_cpp(family: Any) -> None:
    architecture = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[family.gguf_architecture]
    assert isinstance(architecture, MODEL_ARCH)
    known = {TENSOR_NAMES[tensor].replace("{bid}", "{layer}") for tensor in MODEL_TENSORS[architecture]}
    missing = {source.name.rpartition(".")[0] for source in family.gguf.values()} - known
    assert missing <= {"output"}, "a head is in a file of any architecture, where it is not tied"


def windows(name: str, **changes: Any) -> tuple[int | None, ...]:
    raw = {**config(MODELS[name]), **changes}
    return config_from_hf({key: value for key, value in raw.items() if value != "absent"}, 300)[1].windows


def test_windows_are_read_as_each_family_says_them() -> None:
    assert windows("mistral") == (24, 24, 24)
    assert windows("mistral", sliding_window=None) == windows("mistral", sliding_window="absent") == ()
    assert windows("qwen2") == windows("qwen2", sliding_window=20) == ()
    assert windows("qwen2-windows") == (None, 20, 20)
    assert windows("qwen2-windows", max_window_layers=3) == windows("qwen2-windows", use_sliding_window=False) == ()
    assert windows("gemma2") == (24, None, 24, None)
    assert windows("gemma3") == (24, 24, None, 24)
    assert windows("gemma3", sliding_window_pattern="absent") == (24, 24, 24, 24)
    listed = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert windows("gemma3", layer_types=listed) == (None, 24, None, None)
    assert windows("gemma3", layer_types=["full_attention"] * 4) == ()
    assert windows("gpt_oss") == (24, None, 24, None)
    assert windows("llama", sliding_window=24) == ()  # transformers, too, has none in this architecture


def test_layers_with_a_window_are_told_so_in_the_program(backend: CpuBackend, tmp_path: Path) -> None:
    model = load_model(write_folder(MODELS["gemma3"], tmp_path), backend, "f32")
    tables = rotary_tables(model.config, 64), local_rotary_tables(model.config, 64)
    program = build_program(model.config, model.matrices, model.vectors, *tables)
    assert [op.window for op in program.ops if isinstance(op, Attend)] == [24, 24, None, 24]
    assert local_rotary_tables(load_model(write_folder(MODELS["mistral"], tmp_path), backend).config, 64) is None


@pytest.mark.parametrize(
    ("name", "private"),
    [("llama", 6), ("gpt_neox", 3), ("falcon", 0), ("stablelm-parallel", 0), ("olmo2", 0), ("gemma2", 8)],
)
def test_no_thread_norms_for_itself_what_may_have_changed(
    name: str, private: int, backend: CpuBackend, tmp_path: Path
) -> None:
    """Side by side with attention, the MLP reads a norm of the residual stream after attention was added to it."""
    model = load_model(write_folder(MODELS[name], tmp_path), backend, "f32")
    with runner(model, backend) as (run, _):
        table = run.executable._step  # type: ignore[attr-defined]
        norms = table[np.isin(table[:, abi.CODE], (abi.RMS_NORM, abi.LAYER_NORM))]
        assert norms[:-1, abi.ARG + 10].sum() == private  # the last is the final one


def test_lengths_that_rotary_scalings_go_by() -> None:
    """The longest sequence that is run, not the one reached: angles do not change while a sequence grows."""
    dynamic = config_from_hf(config(MODELS["llama-dynamic"]), 300)[1]
    assert dynamic.max_positions == 256 and np.array_equal(frequencies(dynamic), frequencies(dynamic, 256))
    plain = frequencies(replace(dynamic, rope_scaling=None))
    assert np.array_equal(frequencies(dynamic, 64), plain) and not np.allclose(
        frequencies(dynamic, 65), plain, rtol=1e-3
    )
    longrope = config_from_hf(config(MODELS["phi3-longrope"]), 300)[1]
    assert longrope.rope_scaling is not None and longrope.rope_scaling.attention_factor > 1
    plain = frequencies(replace(longrope, rope_scaling=None))
    assert np.allclose(plain / frequencies(longrope, 24), longrope.rope_scaling.short)
    assert np.allclose(plain / frequencies(longrope, 25), longrope.rope_scaling.long)


YARN = {"rope_type": "yarn", "factor": 4.0}
SU = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("name", "changes", "cause"),
    [
        ("falcon", {"alibi": True}, "alibi = True: kvist runs this family with False only"),
        ("falcon", {"parallel_attn": False}, "parallel_attn = False"),
        ("falcon", {"multi_query": False}, "multi_query = False"),
        ("falcon-grouped", {"num_ln_in_parallel_attn": 1}, "does not run this variant of falcon"),
        ("gpt_bigcode", {"multi_query": False}, "multi_query = False"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm = True"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha = 1.5"),
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "has a quantization_config"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma2", {"hidden_activation": "relu"}, "activation 'relu'"),
        ("mistral", {"layer_types": ["chunked_attention"] * 3}, "layer_types .* are not supported"),
        ("llama", {"rope_scaling": {"rope_type": "proportional"}}, "rope scaling 'proportional' is not supported"),
        ("mistral", {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}, "each kind of layer"),
        (
            "gemma3",
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {**YARN}}, "rope_scaling": None},
            "layers with a window",
        ),
    ],
)
def test_variants_with_other_arithmetic_are_refused(name: str, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(UnsupportedModelError, match=cause) as caught:
        config_from_hf({**config(MODELS[name]), **changes}, 300)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "cause"),
    [
        ("mistral", {"sliding_window": -1}, "sliding_window = -1"),
        ("mixtral", {"num_local_experts": -4}, "-4 experts"),
        ("mixtral", {"num_local_experts": 1 << 40}, "experts, 2 of them for a row"),
        ("mixtral", {"num_experts_per_tok": 5}, "4 experts, 5 of them for a row"),
        ("mixtral", {"num_experts_per_tok": 0}, "4 experts, 0 of them"),
        ("qwen3_moe", {"norm_topk_prob": "no"}, "renormalise_experts = 'no'"),
        ("mistral", {"sliding_window": "wide"}, "sliding_window = 'wide'"),
        ("mistral", {"layer_types": ["sliding_attention"] * 2}, "describes 2 layers and has 3"),
        ("mistral", {"layer_types": ["sliding_attention"] * 3, "sliding_window": None}, "gives them no window"),
        ("qwen2-windows", {"max_window_layers": "one"}, "max_window_layers = 'one'"),
        ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_scalar = 0"),
        ("gemma2", {"attn_logit_softcapping": "50"}, "attention_softcap = '50'"),
        ("gemma2", {"final_logit_softcapping": -30.0}, "logits_softcap = -30"),
        ("gemma3", {"rope_local_base_freq": "ten"}, "rope_local_base_freq = 'ten'"),
        ("gpt_neox", {"rotary_pct": 0}, "partial_rotary_factor of 0"),
        ("gpt_neox", {"rotary_pct": 1.5}, "partial_rotary_factor of 1.5"),
        ("gpt_neox", {"use_parallel_residual": "yes"}, "parallel = 'yes'"),
        ("llama", {"rope_scaling": {**YARN, "factor": None}}, "rope factor = None"),
        ("llama", {"rope_scaling": {**YARN, "beta_fast": 0.5}}, "beta_slow"),
        ("llama", {"rope_scaling": {**YARN, "truncate": "no"}}, "truncate of 'no'"),
        ("llama", {"rope_scaling": {**YARN, "attention_factor": -1}}, "attention_factor"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic"}}, "rope factor = None"),
        ("llama", {"rope_scaling": {**SU, "long_factor": None}}, "long_factor = None"),
        ("llama", {"rope_scaling": {**SU, "long_factor": [1.0] * 7}}, "7 rope long_factors for 8 rotary pairs"),
        ("llama", {"rope_scaling": {**SU, "short_factor": [0.0] * 8}}, "short_factor that is no divisor"),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ModelFileError, match=cause) as caught:
        config_from_hf({**config(MODELS[name]), **changes}, 300)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_softcaps_that_a_config_leaves_out_or_denies() -> None:
    raw = config(MODELS["gemma2"])

    def caps(**changes: Any) -> tuple[float | None, float | None]:
        found = config_from_hf({k: v for k, v in {**raw, **changes}.items() if v != "absent"}, 300)[1]
        return found.attention_softcap, found.logits_softcap

    assert caps() == (5.0, 10.0)
    assert caps(attn_logit_softcapping="absent", final_logit_softcapping="absent") == (50.0, 30.0)
    assert caps(attn_logit_softcapping=None, final_logit_softcapping=None) == (None, None)


def test_a_weight_that_nothing_would_read_is_refused(backend: CpuBackend, tmp_path: Path) -> None:
    """Falcon-40B in a GGUF file has a norm that 7B has not; without it the answers would be wrong in silence."""
    tiny = MODELS["qwen3"]
    weights = tensors(tiny)
    folder = write_folder(tiny, tmp_path / "a", {**weights, "model.layers.0.self_attn.sinks": np.zeros(4, np.float32)})
    with pytest.raises(
        UnsupportedModelError, match=r"no use for in a model of family qwen3, such as .*sinks \(1 in all"
    ):
        load_model(folder, backend)
    ignored = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    load_model(write_folder(tiny, tmp_path / "b", ignored), backend)


def test_the_first_row_that_fits_counts() -> None:
    raw = {"architectures": ["FalconForCausalLM"]}
    assert family_of(raw).name == family_of({**raw, "new_decoder_architecture": False}).name == "falcon"
    assert family_of({**raw, "new_decoder_architecture": True}).name == "falcon-grouped"
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    architectures = [(family.gguf_architecture, family.is_mixture) for family in FAMILIES if family.gguf_architecture]
    assert len(set(architectures)) == len(architectures)


def test_a_scale_that_the_format_has_no_word_for() -> None:
    """Gemma 2 and 3 27B alone scale scores by something else than their head size; llama.cpp counts layers, too."""
    from kvist.models.read_config import config_from_gguf

    def scale(architecture: str, layers: int) -> float:
        keys = {
            "embedding_length": 64, "block_count": layers, "attention.head_count": 4, "feed_forward_length": 96,
            "context_length": 256, "attention.layer_norm_rms_epsilon": 1e-6, "attention.key_length": 128,
        }  # fmt: skip
        raw: dict[str, object] = {"general.architecture": architecture}
        found: ModelConfig = config_from_gguf(raw | {f"{architecture}.{k}": v for k, v in keys.items()}, 300, True)[1]
        return found.attention_scale**-2

    assert [round(scale(*case)) for case in (("gemma2", 26), ("gemma2", 46), ("gemma3", 62))] == [128, 144, 168]
