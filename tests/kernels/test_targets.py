"""The same bits on plainer processors: sixteen lanes are what is meant, whatever the width of the machine.

The same units are compiled for x86-64 with AVX2 (eight lanes at a time; codes are multiplied in pairs) and for the
plainest there is (SSE2: four lanes; fused multiply-adds, rounding and float16 are calls of library functions) and run
here, beside those for this machine.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

import blocks
from attention import Shape, build
from kvist.cache.codec import codec
from kvist.cache.codec.int8 import CODEC as INT8
from kvist.cache.policy import Choice
from kvist.cache.policy.base import ALWAYS
from kvist.eval.sensitivity import rotation
from kvist.kernels.choosing import Changes, Draw, Rating
from kvist.kernels.cpu.abi import ACTIVATIONS
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.cpu.build import Target
from kvist.kernels.cpu.chooser import CpuChooser
from kvist.kernels.program import Backend, Buffer, Floats, Gate, Matmul, Norm, Weight
from kvist.models.load import load_model
from ops import fill, numbers, row_batch, run_ops, same_bits, weight
from packed_layer import World
from steps import logits_of
from tiny import MODELS, write_gguf

NEEDS = {"x86-64-v3": ["avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"], "x86-64": []}
CALLED = {"fmaf": "libm.so.6", "rintf": "libm.so.6", "__extendhfsf2": "libgcc_s.so.1", "__truncsfhf2": "libgcc_s.so.1"}
FEATURES = {"x86-64-v3": "+avx2", "x86-64": ""}  # what kernels are told that there is, beside the processor's name
PACKED = (("int8", "int4"), ("lm4", "int8"), ("int5", "lm3"))
SIZES = (2.0**-10, 1, 2.0**10)
UNITS = ("run", "choosing", "attend_f16", "weights_f32", "weights_f16", "weights_q4_1", "best_f16")


@pytest.fixture(scope="module", params=list(NEEDS))
def plain(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    """A backend of two threads whose kernels are for a plainer processor."""
    if platform.machine() != "x86_64":
        pytest.skip(f"{platform.machine()} runs no code for x86-64")
    features = llvm.get_host_cpu_features()
    missing = [name for name in NEEDS[request.param] if not features.get(name)]
    if missing:
        pytest.skip(f"this processor lacks {', '.join(missing)}")
    if request.param == "x86-64":
        _make_known()
    made = CpuBackend(2, target=Target(request.param, FEATURES[request.param]))
    for unit in UNITS:
        made.team.prepare([unit])
        made.team.unit(unit)
    yield made
    made.close()


def _make_known() -> None:
    """Tell LLVM where the functions are; one it does not find is called at address 0."""
    for name, file in CALLED.items():
        try:
            function = getattr(ctypes.CDLL(file), name)
        except (OSError, AttributeError):  # GCC's library has float16 from its version 12 on
            pytest.skip(f"this machine's {file} has no {name}")
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)


def wide(seed: int, *shape: int) -> Floats:
    """Numbers of every size there is, subnormal ones too, of both signs; zeros of both signs."""
    rng = np.random.RandomState(seed)
    found = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-44, 12, shape)).astype(np.float32)
    found[rng.random_sample(shape) < 0.02] = 0.0
    found[rng.random_sample(shape) < 0.02] = -0.0
    return found


def test_the_code_is_another(backend: CpuBackend, plain: CpuBackend) -> None:
    """Otherwise nothing is shown here."""
    from kvist.kernels.cpu.compile import Kernels
    from kvist.kernels.cpu.kept import read

    for unit in UNITS:
        backend.team.unit(unit)
        mine, theirs = (read(made.team._kernels._path(unit)) for made in (backend, plain))
        assert mine and theirs and mine != theirs
    assert isinstance(plain.team._kernels, Kernels)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q4_1"])
@pytest.mark.parametrize("size", [1.0, 1e-39])
def test_matmul(backend: CpuBackend, plain: CpuBackend, dtype: str, size: float) -> None:
    """Every tile; small numbers are subnormal, and so are their products: nobody may flush those to zero."""
    K, N = 576, 45
    if dtype in blocks.SCALES:
        matrix = blocks.weight(dtype, N, K)
        matrix.data[::3] = blocks.any_blocks(dtype, N, K // 32)[::3]
    else:
        matrix = weight(numbers(1, N, K, scale=K**-0.5), dtype)
    x, out, extra = Buffer("x", K), Buffer("out", 48), Buffer("extra", 48)
    ops = [
        fill(x, numbers(2, 200, K) * np.float32(size)),
        fill(extra, numbers(3, 200, 48) * np.float32(size)),
        Matmul(x, matrix, out, np.pad(numbers(4, N) * np.float32(size), (0, 3)), extra),
    ]
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 12, 47, 48, 49, 200):
        mine, theirs = (run_ops(made, ops, row_batch(list(range(count))), N) for made in (backend, plain))
        assert same_bits(mine, theirs), count
        assert mine.all() and (size == 1.0 or np.abs(mine).min() < 1.2e-38)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q4_1"])
@pytest.mark.parametrize("to", ["f32", "f16", "bf16"])
def test_convert(backend: CpuBackend, plain: CpuBackend, dtype: str, to: str) -> None:
    """Half-way points, overflow, subnormal numbers."""
    if dtype == "q4_1":
        source = Weight(blocks.any_blocks("q4_1", 70, 8), "q4_1")
    elif dtype == "f16":
        source = Weight(np.arange(0x7C00, dtype=np.uint16).view(np.float16).reshape(-1, 256), "f16")
    else:
        exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        near = [exact, np.nextafter(exact, np.float32(9e9)), exact * np.float32(1 + 2**-11), exact * np.float32(1.3)]
        source = weight(
            np.concatenate([*near, *(-part for part in near), wide(5, 256, 256).reshape(-1)]).reshape(-1, 256)
        )
    outs = [np.zeros((source.rows, source.columns), codec(to).dtype) for _ in range(2)]
    for made, out in zip((backend, plain), outs, strict=True):
        made.convert([(source, Weight(out, to))])  # type: ignore[arg-type]
    assert outs[0].tobytes() == outs[1].tobytes() and outs[0].any()


@pytest.mark.parametrize("shape", [Shape(64, 2, 3), Shape(16, 1, 1), Shape(48, 1, 9)])
def test_attention(backend: CpuBackend, plain: CpuBackend, shape: Shape) -> None:
    """Prefill, chunks, single positions: outputs and pages."""
    length = 150 if shape.dims > 16 else 600  # beyond a split
    mine, theirs = (build(made, shape, length, kv="f16") for made in (backend, plain))
    assert same_bits(mine.whole(), theirs.whole())
    assert mine.pool.data.tobytes() == theirs.pool.data.tobytes() and mine.pool.data.any()
    sizes = [1, 7, 64, 30]
    assert same_bits(mine.chunked(sizes), theirs.chunked(sizes))


def test_choosing_pages(backend: CpuBackend, plain: CpuBackend) -> None:
    """Sketches, and the pages that are chosen by them."""
    for shape, size in ((Shape(64, 2, 3), 16), (Shape(80, 1, 5), 32)):
        options = {"kv": "f16", "page_size": size, "choice": Choice(2500, ALWAYS)}
        mine, theirs = (build(made, shape, 400, **options) for made in (backend, plain))  # type: ignore[arg-type]
        assert same_bits(mine.whole(), theirs.whole())
        assert mine.pool.sketches.tobytes() == theirs.pool.sketches.tobytes() and mine.pool.sketches.any()
        assert same_bits(mine.run((0, 399, 1)), theirs.run((0, 399, 1)))


@pytest.mark.parametrize(("k", "v", "size"), [*((k, v, 1) for k, v in PACKED), *(("fp8", "fp8", n) for n in SIZES)])
def test_packed_pages(backend: CpuBackend, plain: CpuBackend, k: str, v: str, size: float) -> None:
    """What is packed, and what attention makes of it: prompts, chunks, single positions.

    size: of queries; keys are of its inverse.
    """
    mine, theirs = World(k, v, 16, 64, length=200), World(k, v, 16, 64, length=200)
    for world in (mine, theirs):
        world.q, world.k = world.q * np.float32(size), world.k / np.float32(size)
    wanted = mine.run(backend, 200)
    assert same_bits(theirs.run(plain, 200), wanted) and np.isfinite(wanted).all()
    assert mine.sealed.data.tobytes() == theirs.sealed.data.tobytes()
    again = World(k, v, 16, 64, length=200)
    again.q, again.k = mine.q, mine.k
    assert same_bits(again.run(plain, 7), wanted)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("k", "v"), PACKED)
def test_sums_of_products_at_their_limits(
    backend: CpuBackend, plain: CpuBackend, k: str, v: str, sign: int
) -> None:  # fmt: skip
    """Queries of one size and keys of the highest codes, weights that are all the same: in 16 bits nothing overflows."""
    worlds = [World(k, v, 16, 64, length=200) for _ in range(2)]
    for world in worlds:
        turn = rotation(64, INT8)
        high = np.where(np.arange(200)[:, None] % 64 == np.arange(64), -1, 1) @ turn.T  # all but one of a slot's dims
        world.q = np.tile(sign * turn.sum(1), (200, world.q.shape[1] // 64)).astype(np.float32)
        world.k = world.v = np.tile(high, world.k.shape[1] // 64).astype(np.float32)
        world.scale = 0.0
    wanted = worlds[0].run(backend, 200)
    assert same_bits(worlds[1].run(plain, 200), wanted)
    exact = np.stack([worlds[0].v[: r + 1].mean(0, dtype=np.float64) for r in range(200)])
    if not v.startswith("lm"):  # few numbers are a step of its bell
        assert np.abs(wanted.reshape(200, 2, -1, 64) - exact.reshape(200, 2, 1, 64)).max() < 0.05
    for world in worlds:
        world.scale = 0.2
    assert same_bits(worlds[0].run(backend, 200), worlds[1].run(plain, 200))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(backend: CpuBackend, plain: CpuBackend, activation: str) -> None:
    x, up = Buffer("x", 256), Buffer("up", 256)
    values = np.concatenate([np.linspace(-100, 100, 200 * 256).astype(np.float32).reshape(-1, 256), wide(6, 56, 256)])
    ops = [fill(x, values), fill(up, numbers(7, 256, 256)), Gate(x, up, x, activation)]  # type: ignore[arg-type]
    mine, theirs = (run_ops(made, ops, row_batch(list(range(256))), 256) for made in (backend, plain))
    assert same_bits(mine, theirs) and np.isfinite(mine).all()


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(backend: CpuBackend, plain: CpuBackend, kind: str) -> None:
    x, out = Buffer("x", 96), Buffer("out", 96)
    values = np.concatenate([numbers(8, 100, 96), wide(9, 100, 96)]) * (np.arange(96) < 90).astype(np.float32)
    norm = Norm(kind, x, out, numbers(10, 96), numbers(11, 96), 1e-5, 90)  # type: ignore[arg-type]
    mine, theirs = (run_ops(m, [fill(x, values), norm], row_batch(list(range(200))), 96) for m in (backend, plain))
    assert same_bits(mine, theirs) and np.isfinite(mine).all()


def test_choosing(backend: CpuBackend, plain: CpuBackend) -> None:
    """Tokens, log-probabilities and ranks of rows of all kinds."""
    options = [
        {}, {"temperature": 0.0}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.8}, {"top_p": 0.99, "temperature": 2.0},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.7},
    ]  # fmt: skip
    ids, values = np.arange(0, 60, 2), numbers(4, 30)
    rows = []
    for i, (size, scale, one) in enumerate(itertools.product((17, 1000, 3003), (0.1, 2.0, 9.0), options)):
        changes = Changes(ids[ids < size], np.abs(values[ids < size]), 1, 2, 1.2, 0.5, 0.1) if i % 3 == 0 else None
        asked = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, **one}
        rows.append(Draw(numbers(i, size, scale=scale), -1, number=i * 0.61803398875 % 1, changes=changes, **asked))
    mine, theirs = (CpuChooser(made.team).draw(rows) for made in (backend, plain))
    assert mine == theirs and len(set(mine)) > 30
    ratings = [Rating(row.logits, -1, i % 17, i % 12) for i, row in enumerate(rows)]
    mine_rated, theirs_rated = (CpuChooser(made.team).rate(ratings) for made in (backend, plain))
    assert mine_rated == theirs_rated


def logits(backend: Backend, path: Path, weights: str, vocab: int) -> list[Floats]:
    tokens = np.random.RandomState(1).randint(2, vocab, 90).tolist()
    model = load_model(path, backend, weights)
    return [logits_of(model, backend, tokens, chunk, kv="f16") for chunk in (None, 1, 7)]


@pytest.mark.parametrize(
    ("name", "kind", "weights"),
    [
        ("llama-biases", "Q4_1", "packed"), ("llama-biases", "Q4_1", "f16"), ("llama", "Q4_1", "f32"),
        ("llama-llama3", "F32", "f16"), ("gpt2", "Q4_1", "packed"), ("gpt2", "F16", "f16"), ("llama-odd", "F32", "f32"),
    ],
)  # fmt: skip
def test_whole_models(
    backend: CpuBackend, plain: CpuBackend, tmp_path: Path, name: str, kind: str, weights: str
) -> None:
    """Loaded by each backend for itself; all logits of all positions, in one step and in chunks."""
    tiny = MODELS[name]
    path = write_gguf(tiny, tmp_path / "tiny.gguf", kind)
    mine, theirs = (logits(made, path, weights, tiny.vocab) for made in (backend, plain))
    for a, b in itertools.product(mine, theirs):
        assert same_bits(a, b)
    assert np.isfinite(mine[0]).all() and mine[0].std() > 0.1
