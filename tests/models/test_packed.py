"""Block-quantised weights run as a file has them: bit for bit what the numbers they stand for give; and weights that are
quantised when they are loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blocks
from kvist.assemble import identity
from kvist.cache.codec import codec
from kvist.config import EngineConfig
from kvist.errors import ModelFileError, UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import BLOCK_TYPES
from kvist.models.config import WEIGHT_TYPES
from kvist.models.load import Model, load_model
from kvist.models.quantize import quantize_q8_0
from kvist.models.weight_reader import resolve_type
from kvist.models.weights import open_model
from ops import same_bits
from steps import logits_of
from tiny import MODELS, Tiny, tensors, write_folder, write_gguf

WIDE = {"hidden": 256, "heads": 8, "head_dim": 32, "inner": 512}  # whole blocks of 256
TINY: dict[str, Tiny] = {
    **MODELS,
    "padded heads": replace(MODELS["llama-biases"], head_dim=24),  # 24 lie in 32, 96 columns of o in 128
    "wide": replace(MODELS["llama"], **WIDE),
    "wide-tied": replace(MODELS["llama-tied"], **WIDE),
    "wide-gpt2": replace(MODELS["gpt2"], hidden=256, head_dim=64, inner=512),
}
MIXED = {
    "attn_v": "Q6_K",
    "ffn_down": "Q6_K",
    "ffn_up": "Q4_0",
    "attn_k": "Q8_0",
    "attn_output": "F16",
    "output": "Q8_0",
}
CASES: list[tuple[str, str, dict[str, str]]] = [
    *((name, kind, {}) for name in ("llama", "llama-biases", "gpt2") for kind in ("Q8_0", "Q4_0", "Q4_1")),
    ("llama-llama3", "Q4_1", {}), ("llama-tied", "Q4_0", {}), ("padded heads", "Q8_0", {}), ("padded heads", "Q4_1", {}),
    *((name, kind, {}) for name in ("wide", "wide-tied", "wide-gpt2") for kind in ("Q4_K", "Q6_K")),
    ("wide", "Q4_K", MIXED), ("wide-tied", "Q4_1", {"token_embd": "Q6_K"}), ("gpt2", "Q8_0", {"position_embd": "F32"}),
    ("gpt2", "Q4_1", {"position_embd": "F16", "token_embd": "Q8_0"}), ("gpt2-odd", "F32", {"ffn_down": "F16"}),
    ("llama", "F16", {"ffn_gate": "Q4_1"}), ("llama", "Q4_1", {"token_embd": "BF16", "output": "F32"}),
]  # fmt: skip


def ids(vocab: int, length: int = 70) -> list[int]:
    found: list[int] = np.random.RandomState(1).randint(2, vocab, length).tolist()
    return found


def is_quantised(kind: str, others: dict[str, str]) -> bool:
    return any(name.lower() in BLOCK_TYPES for name in (kind, *others.values()))


@pytest.mark.parametrize(("name", "kind", "others"), CASES)
def test_logits_are_those_of_the_unpacked_weights(
    backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path, name: str, kind: str, others: dict[str, str]
) -> None:
    """All logits of all positions, in one step, in chunks (that take other tiles), on one thread."""
    tiny = TINY[name]
    path = write_gguf(tiny, tmp_path / "tiny.gguf", kind, others=others)
    packed, plain = load_model(path, backend), load_model(path, backend, "f32")
    assert packed.weights == ("packed" if is_quantised(kind, others) else "f32") and plain.weights == "f32"
    tokens = ids(tiny.vocab)
    truth = logits_of(plain, backend, tokens)
    assert np.isfinite(truth).all() and truth.std() > 0.1
    for chunk in (None, 1, 3, 7):
        assert same_bits(logits_of(packed, backend, tokens, chunk), truth)
    assert same_bits(logits_of(packed, one_thread, tokens, 5), truth)


@pytest.mark.parametrize(("name", "kind", "others"), [case for case in CASES if is_quantised(*case[1:])])
def test_what_can_stay_packed_does(
    backend: CpuBackend, tmp_path: Path, name: str, kind: str, others: dict[str, str]
) -> None:
    """Matrices keep the bytes of their file, rows in another order; only o with padded heads is unpacked."""
    path = write_gguf(TINY[name], tmp_path / "tiny.gguf", kind, others=others)
    model = load_model(path, backend)
    file = open_model(path)
    own = {
        tensor.split(".")[-2]: file.info(tensor).dtype for tensor in file.names() if len(file.info(tensor).shape) == 2
    }
    names = {"embed": "token_embd", "head": "output", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
             "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}  # fmt: skip
    if "gpt2" in name:
        names |= dict.fromkeys("qkv", "attn_qkv")
    if "output" not in own:
        names["head"] = "token_embd"
    for role, weight in model.matrices.items():
        short = role.split(".")[-1]
        unpacked = short == "positions" or (short == "o" and name == "padded heads")
        assert weight.dtype == ("f32" if unpacked else own[names[short]]), role
    untouched = file.raw("blk.1.ffn_down.weight")
    down = model.matrices["layers.1.down"].data
    assert down.tobytes() == untouched.tobytes()
    assert not down.flags.owndata, "a view of the file"
    assert model.weights_bytes < load_model(path, backend, "f32").weights_bytes
    file.close()


def test_interleaved_rows_are_put_in_order(backend: CpuBackend, tmp_path: Path) -> None:
    """A GGUF file has q's pairs side by side: packed rows are moved as rows of numbers are."""
    path = write_gguf(TINY["padded heads"], tmp_path / "tiny.gguf", "Q4_1")
    packed, plain = load_model(path, backend), load_model(path, backend, "f32")
    for role in ("layers.0.q", "layers.2.k", "layers.1.v"):
        mine = blocks.unpacked(packed.matrices[role])
        assert same_bits(mine, plain.matrices[role].data) and mine.shape[0] % 32 == 0  # type: ignore[arg-type]
        assert not mine.reshape(-1, 32, 64)[:, 24:].any(), "rows of zeros between the heads"
    file = open_model(path)
    raw = file.raw("blk.0.attn_q.weight").reshape(4, 24, -1)
    q = packed.matrices["layers.0.q"].data.reshape(4, 32, -1)
    assert np.array_equal(q[:, :12], raw[:, 0::2]) and np.array_equal(q[:, 12:24], raw[:, 1::2])
    file.close()


@pytest.mark.parametrize("to", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["llama-odd", "gpt2-odd", "gpt2"])
@pytest.mark.parametrize("form", ["folder", "F32", "F16"])
def test_widths_that_are_no_whole_vectors_are_converted_whole(
    backend: CpuBackend, tmp_path: Path, form: str, name: str, to: str
) -> None:
    """Every number is the codec's rounding of the file's, the last columns of an odd row too."""
    tiny = MODELS[name]
    path = write_folder(tiny, tmp_path) if form == "folder" else write_gguf(tiny, tmp_path / "tiny.gguf", form)
    model, exact = load_model(path, backend, to), load_model(path, backend, "f32")
    for role, weight in model.matrices.items():
        expected = "f32" if role == "positions" else to
        assert weight.dtype == expected
        assert weight.data.tobytes() == codec(expected).encode(exact.matrices[role].data).tobytes(), role


# --- int8 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "llama-odd", "padded heads"])
@pytest.mark.parametrize("form", ["folder", "BF16"])
def test_int8_quantises_what_is_whole_blocks(
    backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path, name: str, form: str
) -> None:
    tiny = TINY[name]
    path = write_folder(tiny, tmp_path) if form == "folder" else write_gguf(tiny, tmp_path / "tiny.gguf", form)
    model, exact = load_model(path, backend, "int8"), load_model(path, backend, "f32")
    assert model.weights == "int8" and model.float_type == "f16"
    for role, weight in model.matrices.items():
        own = exact.matrices[role].data
        if role == "positions" or own.shape[1] % 32:
            assert weight.dtype in ("f32", "bf16") and np.array_equal(codec(weight.dtype).decode(weight.data), own)
        else:
            assert weight.dtype == "q8_0" and np.array_equal(weight.data, quantize_q8_0(own))
    assert any(weight.dtype == "q8_0" for weight in model.matrices.values())
    if tiny.tied:
        assert model.matrices["head"].data is model.matrices["embed"].data
    tokens = ids(tiny.vocab)
    found, truth = logits_of(model, backend, tokens), logits_of(exact, backend, tokens)
    assert 0 < np.abs(found - truth).max() < 0.5 * truth.std()
    assert same_bits(logits_of(model, one_thread, tokens, 7), found)


def test_int8_is_a_file_of_q8_0(backend: CpuBackend, tmp_path: Path) -> None:
    """Quantised here or by a file's writer: no further from the truth, and the same blocks give the same bits."""
    folder = write_folder(MODELS["llama"], tmp_path / "folder")
    made = load_model(folder, backend, "int8")
    kept = load_model(write_gguf(MODELS["llama"], tmp_path / "tiny.gguf", "Q8_0"), backend)
    tokens = ids(300)
    a, b = logits_of(made, backend, tokens), logits_of(kept, backend, tokens)
    truth = logits_of(load_model(folder, backend), backend, tokens)
    assert np.abs(a - truth).max() < 1.5 * np.abs(b - truth).max(), "no worse than the gguf package's"
    made.matrices = {role: replace(kept.matrices[role]) for role in made.matrices}
    assert same_bits(logits_of(made, backend, tokens), b)


# --- which type it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "types", "expected"),
    [
        ("auto", {"f16"}, "f16"), ("auto", {"bf16"}, "bf16"), ("auto", {"f16", "f32"}, "f32"), ("auto", {"q4_1"}, "packed"),
        ("auto", {"q4_k", "q6_k", "f16"}, "packed"), ("packed", {"q4_0", "f32"}, "packed"), ("int8", {"f16", "f32"}, "int8"),
        ("f32", {"q8_0"}, "f32"), ("bf16", {"q4_k", "f32"}, "bf16"), ("f16", {"f32"}, "f16"),
    ],
)  # fmt: skip
def test_resolved(wanted: str, types: set[str], expected: str) -> None:
    assert resolve_type(wanted, types) == expected


def test_what_does_not_fit_the_file_is_refused_with_what_does(backend: CpuBackend, tmp_path: Path) -> None:
    floats = write_folder(MODELS["llama"], tmp_path / "folder")
    quantised = write_gguf(MODELS["llama"], tmp_path / "tiny.gguf", "Q4_1", others={"attn_v": "Q8_0"})
    with pytest.raises(UsageError, match=r"^weights=packed .* has f32: give int8 to quantise it, or auto$"):
        load_model(floats, backend, "packed")
    with pytest.raises(UsageError, match=r"^weights=int8 .* quantised already \(q4_1, q8_0\): give packed$"):
        load_model(quantised, backend, "int8")


def test_every_name_is_an_option() -> None:
    assert set(WEIGHT_TYPES) == {"auto", "packed", "f32", "f16", "bf16", "int8"}
    for name in WEIGHT_TYPES:
        assert EngineConfig.from_options({"weights": name}).weights == name
    with pytest.raises(UsageError, match="weight type 'int9': did you mean int8"):
        EngineConfig.from_options({"weights": "int9"})


def test_pages_of_differently_held_weights_are_told_apart(backend: CpuBackend, tmp_path: Path) -> None:
    floats, file = write_folder(MODELS["llama"], tmp_path), write_gguf(MODELS["llama"], tmp_path / "x.gguf", "Q8_0")
    models: list[Model] = [
        *(load_model(floats, backend, to) for to in ("f32", "f16", "bf16", "int8")), load_model(file, backend)
    ]  # fmt: skip
    assert len({identity(model, 256, "full", {}) for model in models}) == len(models)
    assert [model.float_type for model in models] == ["f32", "f16", "bf16", "f16", "f16"]


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K", "Q6_K"])
def test_a_scale_that_is_no_number_is_named(backend: CpuBackend, tmp_path: Path, kind: str) -> None:
    import gguf

    path = write_gguf(TINY["wide"], tmp_path / "tiny.gguf", kind)
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = [t for t in reader.tensors if t.name == "blk.1.ffn_down.weight"]
    size, at = BLOCK_TYPES[kind.lower()][1], blocks.SCALES[kind.lower()][-1]
    tensor.data.reshape(-1)[5 * size + at : 5 * size + at + 2] = np.array([np.inf], np.float16).view(np.uint8)
    tensor.data.flush()
    del reader, tensor
    with pytest.raises(ModelFileError, match=r"tensor blk\.1\.ffn_down\.weight holds NaN or infinity"):
        load_model(path, backend)


def test_int8_of_numbers_beyond_a_scale_is_refused(backend: CpuBackend, tmp_path: Path) -> None:
    """A float16 scale ends at 65,504 x 127; what is larger would become infinity."""
    weights = tensors(MODELS["llama"])
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].copy()
    weights[name][3, 5] = 1e8
    path = write_folder(MODELS["llama"], tmp_path, weights)
    assert load_model(path, backend, "f32").weights == "f32"
    with pytest.raises(ModelFileError, match=name):
        load_model(path, backend, "int8")


@pytest.mark.model
def test_the_real_model(backend: CpuBackend, one_thread: CpuBackend, smollm2_path: Path) -> None:
    """Packed, SmolLM2's logits are those of its weights unpacked to float32, at every position."""
    packed, plain = load_model(smollm2_path, backend), load_model(smollm2_path, backend, "f32")
    assert packed.weights == "packed" and packed.weights_bytes < 100e6 < 500e6 < plain.weights_bytes
    tokens = ids(packed.config.vocab_size, 24)
    truth = logits_of(plain, backend, tokens, kv="f16")
    assert same_bits(logits_of(packed, backend, tokens, kv="f16"), truth)
    assert same_bits(logits_of(packed, backend, tokens, 5, kv="f16"), truth)
    assert same_bits(logits_of(packed, one_thread, tokens[:6], 1, kv="f16"), truth[:6])
