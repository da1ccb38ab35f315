"""Loading: every weight where the decoder wants it, exactly; and damaged models named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from kvist.cache.codec import codec
from kvist.errors import KvistError, ModelFileError, UnknownNameError, UnsupportedModelError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import Model, load_model
from ops import same_bits
from steps import logits_of
from tiny import MODELS, Tensors, gguf_tensors, tensors, write_folder, write_gguf

Change = Callable[[Tensors], None]


def ids(vocab: int, length: int = 40) -> list[int]:
    found: list[int] = np.random.RandomState(1).randint(2, vocab, length).tolist()
    return found


# --- where weights lie
# --------------------------------------------------------------------------------------------------


def test_padded_lanes_are_zero(backend: CpuBackend, tmp_path: Path) -> None:
    """Heads of 10 lie in 16, a hidden size of 40 in 48: what is added is zero, what was there stays, in order."""
    tiny, raw = MODELS["llama-odd"], tensors(MODELS["llama-odd"])
    model = load_model(write_folder(tiny, tmp_path), backend, "f32")
    at = "model.layers.1."
    shapes = {"embed": (301, 48), "head": (301, 48), "layers.1.q": (64, 48), "layers.1.k": (32, 48), "layers.1.o": (48, 64),
              "layers.1.gate": (64, 48), "layers.1.down": (48, 64)}  # fmt: skip
    for role, shape in shapes.items():
        assert model.matrices[role].data.shape == shape
    q = model.matrices["layers.1.q"].data.reshape(4, 16, 48)
    assert np.array_equal(q[:, :10, :40], raw[at + "self_attn.q_proj.weight"].reshape(4, 10, 40))
    assert not q[:, 10:].any() and not q[:, :, 40:].any()
    o = model.matrices["layers.1.o"].data.reshape(48, 4, 16)
    assert np.array_equal(o[:40, :, :10], raw[at + "self_attn.o_proj.weight"].reshape(40, 4, 10))
    assert not o[40:].any() and not o[:, :, 10:].any()
    down = model.matrices["layers.1.down"].data
    assert (
        np.array_equal(down[:40, :56], raw[at + "mlp.down_proj.weight"])
        and not down[40:].any()
        and not down[:, 56:].any()
    )
    assert np.array_equal(model.matrices["embed"].data[:, :40], raw["model.embed_tokens.weight"])
    bias = model.vectors["layers.1.k.bias"].reshape(2, 16)
    assert np.array_equal(bias[:, :10], raw[at + "self_attn.k_proj.bias"].reshape(2, 10)) and not bias[:, 10:].any()
    norm = model.vectors["final_norm"]
    assert np.array_equal(norm[:40], raw["model.norm.weight"]) and norm.shape == (48,) and not norm[40:].any()


def test_fused_and_transposed_weights(backend: CpuBackend, tmp_path: Path) -> None:
    tiny, raw = MODELS["gpt2"], tensors(MODELS["gpt2"])
    model = load_model(write_folder(tiny, tmp_path), backend, "f32")
    fused, bias = raw["transformer.h.2.attn.c_attn.weight"].T, raw["transformer.h.2.attn.c_attn.bias"]
    for i, part in enumerate("qkv"):
        assert np.array_equal(model.matrices[f"layers.2.{part}"].data, fused[64 * i : 64 * (i + 1)])
        assert np.array_equal(model.vectors[f"layers.2.{part}.bias"], bias[64 * i : 64 * (i + 1)])
    assert model.matrices["head"].data is model.matrices["embed"].data, "tied"
    assert all(weight.data.flags.c_contiguous for weight in model.matrices.values())


def same_weights(a: Model, b: Model) -> bool:
    return (
        a.matrices.keys() == b.matrices.keys() and a.vectors.keys() == b.vectors.keys()
        and all(a.matrices[role].data.tobytes() == b.matrices[role].data.tobytes() for role in a.matrices)
        and all(same_bits(a.vectors[role], b.vectors[role]) for role in a.vectors)
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "llama-biases", "llama-linear", "llama-odd", "gpt2", "gpt2-odd"]
)
def test_folder_and_gguf_file_give_the_same_bits(backend: CpuBackend, tmp_path: Path, name: str) -> None:
    tiny = MODELS[name]
    folder = load_model(write_folder(tiny, tmp_path / "folder"), backend)
    file = load_model(write_gguf(tiny, tmp_path / "tiny.gguf"), backend)
    assert same_weights(folder, file)
    assert folder.config.rope_scaling == file.config.rope_scaling and folder.config.eos_ids == file.config.eos_ids == (
        1,
    )
    tokens = ids(tiny.vocab)
    assert same_bits(logits_of(folder, backend, tokens), logits_of(file, backend, tokens, chunk=7))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("name", ["llama-biases", "gpt2"])
def test_a_packed_file_is_its_unpacked_numbers(backend: CpuBackend, tmp_path: Path, name: str, kind: str) -> None:
    """Held as f32, a quantised file gives bit for bit what a file of the numbers it stands for gives."""
    tiny, held = MODELS[name], gguf.GGMLQuantizationType[kind]
    packed = load_model(write_gguf(tiny, tmp_path / "packed.gguf", kind), backend, "f32")
    writer = gguf.GGUFReader(tmp_path / "packed.gguf")
    by_name = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in writer.tensors}
    assert any(t.tensor_type == held for t in writer.tensors)
    plain = load_model(write_gguf(tiny, tmp_path / "plain.gguf"), backend, "f32")
    assert not same_weights(packed, plain)
    for role, source in (
        ("layers.1.v" if tiny.family == "llama" else "layers.1.up", "attn_v" if tiny.family == "llama" else "ffn_up"),
    ):
        assert np.array_equal(
            packed.matrices[role].data, by_name[f"blk.1.{source}.weight"].reshape(packed.matrices[role].data.shape)
        )
    assert np.array_equal(packed.matrices["embed"].data, by_name["token_embd.weight"])


# --- the type they are held in
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_weight_types_are_exact_roundings(backend: CpuBackend, tmp_path: Path, kind: str, to: str) -> None:
    """Whatever the file has, it is rounded once, as the codec rounds."""
    tiny = MODELS["llama"]
    path = write_gguf(tiny, tmp_path / "tiny.gguf", kind)
    held, exact = load_model(path, backend, to), load_model(path, backend, "f32")
    assert held.weights == to
    for role, weight in held.matrices.items():
        assert weight.dtype == to and weight.data.dtype == codec(to).dtype
        assert weight.data.tobytes() == codec(to).encode(exact.matrices[role].data).tobytes()
    assert all(vector.dtype == np.float32 for vector in held.vectors.values())


@pytest.mark.parametrize(("kind", "expected"), [("F32", "f32"), ("F16", "f16"), ("BF16", "bf16")])
def test_the_file_s_own_type(backend: CpuBackend, tmp_path: Path, kind: str, expected: str) -> None:
    model = load_model(write_gguf(MODELS["llama"], tmp_path / "tiny.gguf", kind), backend)
    assert model.weights == model.float_type == expected
    assert {weight.dtype for weight in model.matrices.values()} == {expected}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_quantised_file_s_own_type(backend: CpuBackend, tmp_path: Path, kind: str) -> None:
    model = load_model(write_gguf(MODELS["llama"], tmp_path / "tiny.gguf", kind), backend)
    assert (model.weights, model.float_type) == ("packed", "f16")
    assert {weight.dtype for weight in model.matrices.values()} == {kind.lower()}


def test_mixed_float_types_are_held_as_f32(backend: CpuBackend, tmp_path: Path) -> None:
    weights = tensors(MODELS["llama"])
    mixed = {name: array.astype(np.float16) if "mlp" in name else array for name, array in weights.items()}
    model = load_model(write_folder(MODELS["llama"], tmp_path, mixed), backend)
    assert model.weights == "f32"
    assert np.array_equal(
        model.matrices["layers.0.up"].data, mixed["model.layers.0.mlp.up_proj.weight"].astype(np.float32)
    )


def test_weights_bytes_counts_each_array_once(backend: CpuBackend, tmp_path: Path) -> None:
    for name, to, size in (
        ("llama", "f32", 4),
        ("llama-tied", "f32", 4),
        ("llama-tied", "bf16", 2),
        ("llama-odd", "f16", 2),
    ):
        model = load_model(write_folder(MODELS[name], tmp_path / f"{name}-{to}"), backend, to)
        tied = MODELS[name].tied
        matrices = {role: weight for role, weight in model.matrices.items() if not (tied and role == "head")}
        numbers, vectors = sum(w.data.size for w in matrices.values()), sum(v.size for v in model.vectors.values())
        assert model.weights_bytes == size * numbers + 4 * vectors
    tiny = MODELS["llama"]
    expected = sum(array.size for array in tensors(tiny).values())
    assert load_model(write_folder(tiny, tmp_path / "again"), backend, "f32").weights_bytes == 4 * expected


def test_progress_counts_to_the_end(backend: CpuBackend, tmp_path: Path) -> None:
    for path in (write_folder(MODELS["gpt2"], tmp_path), write_gguf(MODELS["llama"], tmp_path / "x.gguf", "Q8_0")):
        seen: list[tuple[int, int]] = []
        load_model(path, backend, progress=lambda done, total, seen=seen: seen.append((done, total)))  # type: ignore[misc]
        total = seen[0][1]
        assert seen == [(done, total) for done in range(1, total + 1)] and total > 10


def test_names_without_their_outermost_prefix(backend: CpuBackend, tmp_path: Path) -> None:
    """The original GPT-2 files say wte.weight where newer ones say transformer.wte.weight."""
    tiny = MODELS["gpt2"]
    short = {name.removeprefix("transformer."): array for name, array in tensors(tiny).items()}
    a, b = (
        load_model(write_folder(tiny, tmp_path / "a"), backend),
        load_model(write_folder(tiny, tmp_path / "b", short), backend),
    )
    assert same_weights(a, b)


def test_shards(backend: CpuBackend, tmp_path: Path) -> None:
    tiny, weights = MODELS["llama"], tensors(MODELS["llama"])
    whole = load_model(write_folder(tiny, tmp_path / "whole"), backend)
    folder = write_folder(tiny, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    import json

    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert same_weights(load_model(folder, backend), whole)


# --- what is refused
# ----------------------------------------------------------------------------------------------------


def refused(backend: CpuBackend, path: Path, kind: type[KvistError], cause: str) -> None:
    with pytest.raises(kind, match=cause) as caught:
        load_model(path, backend)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.embed_tokens.weight",
    ],
)
def test_a_missing_tensor_is_named(backend: CpuBackend, tmp_path: Path, name: str) -> None:
    weights = tensors(MODELS["llama"])
    del weights[name]
    refused(backend, write_folder(MODELS["llama"], tmp_path, weights), ModelFileError, f"has no tensor {name}")


def test_an_untied_model_without_its_head_is_refused(backend: CpuBackend, tmp_path: Path) -> None:
    """Tied, silently, it would answer nonsense."""
    weights = tensors(MODELS["llama"])
    del weights["lm_head.weight"]
    refused(backend, write_folder(MODELS["llama"], tmp_path, weights), ModelFileError, "has no tensor lm_head.weight")


@pytest.mark.parametrize(
    ("name", "shape", "changes"),
    [
        ("model.layers.1.mlp.up_proj.weight", (95, 64), {}),
        ("model.norm.weight", (65,), {}),
        ("model.norm.weight", (64, 1), {}),
        ("model.layers.0.self_attn.k_proj.weight", (64, 64), {}),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), {"head_dim": 32}),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), {"num_attention_heads": 8}),
        ("model.layers.0.mlp.gate_proj.weight", (96, 64), {"intermediate_size": 112}),
        ("model.embed_tokens.weight", (300, 64), {"hidden_size": 80}),
        ("model.embed_tokens.weight", (19200,), {}),
    ],
)
def test_a_misshapen_tensor_is_named(
    backend: CpuBackend, tmp_path: Path, name: str, shape: tuple[int, ...], changes: dict[str, int]
) -> None:
    weights = tensors(MODELS["llama"])
    weights[name] = np.resize(weights[name], shape)
    path = write_folder(MODELS["llama"], tmp_path, weights, **changes)
    refused(backend, path, ModelFileError, r"tensor .*weight is \(.*\), the config says \(.*\): get the file again")


def test_fewer_layers_than_the_file_has_are_run_as_the_config_says(backend: CpuBackend, tmp_path: Path) -> None:
    path = write_folder(MODELS["llama"], tmp_path / "less", num_hidden_layers=2)
    assert load_model(path, backend).config.num_layers == 2
    path = write_folder(MODELS["llama"], tmp_path / "more", num_hidden_layers=4)
    refused(backend, path, ModelFileError, r"has no tensor model\.layers\.3")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.o_proj.weight", "model.norm.weight"],
)
def test_a_weight_that_is_no_number_is_named(backend: CpuBackend, tmp_path: Path, name: str, value: float) -> None:
    weights = tensors(MODELS["llama"])
    weights[name] = weights[name].copy()
    weights[name].reshape(-1)[-1] = value
    path = write_folder(MODELS["llama"], tmp_path, weights)
    refused(backend, path, ModelFileError, rf"tensor {name} holds NaN or infinity")


def test_a_quantised_scale_that_is_no_number_is_named(backend: CpuBackend, tmp_path: Path) -> None:
    path = write_gguf(MODELS["llama"], tmp_path / "tiny.gguf", "Q8_0")
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = [t for t in reader.tensors if t.name == "blk.1.ffn_down.weight"]
    tensor.data.reshape(-1)[:2] = np.array([np.nan], np.float16).view(np.uint8)
    tensor.data.flush()
    del reader, tensor
    refused(backend, path, ModelFileError, r"tensor blk\.1\.ffn_down\.weight holds NaN or infinity")


def test_an_unsupported_architecture(backend: CpuBackend, tmp_path: Path) -> None:
    path = write_folder(MODELS["llama"], tmp_path, architectures=["MambaForCausalLM"])
    refused(
        backend, path, UnsupportedModelError, "Mamba.*is not supported: kvist runs LlamaForCausalLM, GPT2LMHeadModel"
    )


def test_other_mistakes(backend: CpuBackend, tmp_path: Path) -> None:
    path = write_folder(MODELS["llama"], tmp_path / "model")
    with pytest.raises(UnknownNameError, match="weight type 'fp16': did you mean"):
        load_model(path, backend, "fp16")
    (path / "config.json").unlink()
    refused(backend, path, ModelFileError, "config.json beside its weights")
    refused(backend, tmp_path / "nowhere", ModelFileError, "does not exist")


@pytest.mark.parametrize("divisors", [np.ones(7), np.zeros(8), np.full(8, np.nan), np.full(8, np.inf)])
def test_damaged_rope_divisors(
    backend: CpuBackend, tmp_path: Path, divisors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny_gguf

    made = gguf_tensors(MODELS["llama"])
    monkeypatch.setattr(
        tiny_gguf, "gguf_tensors", lambda *_: {**made, "rope_freqs.weight": divisors.astype(np.float32)}
    )
    refused(
        backend, write_gguf(MODELS["llama"], tmp_path / "tiny.gguf"), ModelFileError, r"rope_freqs\.weight is damaged"
    )
