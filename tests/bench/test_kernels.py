"""Kernels alone: every shape, what is counted, and random weights that are sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest

from kvist.bench import kernel_cases, kernels
from kvist.bench.kernel_cases import _matrices, matmul_cases, matrix_bytes, random_bytes, shapes_of
from kvist.bench.kernel_table import TITLE, line
from kvist.bench.kernels import check_types
from kvist.errors import UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import BLOCK_TYPES, FloatType, WeightType
from kvist.llm import LLM
from tiny import MODELS, write_folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_folder(MODELS["llama"], tmp_path_factory.mktemp("models") / "llama")
    with LLM(path, threads=2, kv_cache_memory_bytes=16 << 20) as made:
        yield made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory, few runs: nothing here is about time."""
    for name, value in (("MEMORY", 1 << 20), ("OPERATIONS", 10**7), ("COPIES", 8), ("CONTEXTS", (128, 1024))):
        monkeypatch.setattr(kernel_cases, name, value)
    for name, value in (("CACHES", 1 << 20), ("SECONDS", 0.0), ("LEAST", 2)):
        monkeypatch.setattr(kernels, name, value)


def test_shapes_of_a_model(llm: LLM) -> None:
    assert shapes_of(llm.model) == {
        (64, 64): "q o", (32, 64): "k v", (96, 64): "gate up", (64, 96): "down", (300, 64): "head",
    }  # fmt: skip


@pytest.mark.usefixtures("short")
def test_all_cases(llm: LLM) -> None:
    _, cases = kernels.kernels(llm, ["f32"], [1, 4, 512])
    found = list(cases)
    matmuls = {(each.shape, each.rows): each for each in found if each.kernel == "matmul"}
    shapes = ("64x64 q o", "32x64 k v", "96x64 gate up", "64x96 down", "300x64 head")
    assert set(matmuls) == {(shape, rows) for shape in shapes for rows in (1, 4, 512)} - {("300x64 head", 512)}
    down = matmuls["64x96 down", 4]
    assert down.traffic.bytes == (64 * 96 + 4 * 96 + 4 * 64) * 4
    assert down.traffic.operations == 2 * 4 * 64 * 96
    assert (down.copies, down.cold, down.dtype) == (8, True, "f32")
    attends = {(each.context, each.rows): each for each in found if each.kernel == "attend"}
    assert set(attends) == {(128, 1), (128, 16), (1024, 1), (1024, 16), (1024, 512)}
    assert attends[1024, 16].traffic.pages_read == 1024 * 2 * 2 * 16 * 4
    assert attends[1024, 16].traffic.operations == 4 * 4 * 16 * sum(range(1009, 1025))
    rest = {(each.kernel, each.rows) for each in found} - {("matmul", rows) for rows in (1, 4, 512)}
    assert rest == {(name, rows) for name in ("attend", "norm", "rotary_store", "gate") for rows in (1, 16, 512)}
    assert all(each.seconds > 0 and each.roofline_share > 0 and each.bound in ("read", "fma") for each in found)
    assert all(len(line(each).split("  share of")[0]) < 120 for each in found) and TITLE.startswith("kernel")


@pytest.mark.usefixtures("short")
def test_other_models_have_other_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_folder(MODELS["gpt2-odd"], tmp_path_factory.mktemp("models") / "gpt2")
    with LLM(path, threads=1, kv_cache_memory_bytes=16 << 20) as llm:
        _, cases = kernels.kernels(llm, ["f32"], [1])
        found = {each.kernel: each for each in cases}
    assert found["norm"].shape == "layer 48"
    assert found["gate"].shape == "gelu_tanh 64"
    assert found["rotary_store"].shape == "64+64"


def test_blocks_take_whole_rows(llm: LLM) -> None:
    shapes = {case.shape for case in matmul_cases(llm.model, "q4_k", [1])}
    assert shapes == {"64x256 q o down", "32x256 k v", "96x256 gate up", "300x256 head"}


@pytest.mark.parametrize("dtype", [*get_args(FloatType), *BLOCK_TYPES])
def test_random_weights_are_finite_and_fit(dtype: WeightType, one_thread: CpuBackend) -> None:
    memory = random_bytes(dtype, 4 * matrix_bytes(dtype, 32, 256))
    matrices = _matrices(memory, dtype, 32, 256, 3)
    assert len(matrices) == 3
    assert all((weight.rows, weight.columns, weight.dtype) == (32, 256, dtype) for weight in matrices)
    assert len({weight.data.ctypes.data for weight in matrices}) == 3
    assert one_thread.find_nonfinite(matrices) == []
    assert np.count_nonzero(memory) > len(memory) // 2


def test_unknown_types_are_refused() -> None:
    assert check_types([]) == ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k")
    with pytest.raises(UsageError, match="known are bf16, f16, f32"):
        check_types(["nothing"])
