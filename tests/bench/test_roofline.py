"""What a step must read and compute at least, by hand and as the program has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvist import LLM
from kvist.bench.roofline import Roofline, cost_of
from kvist.kernels.cpu.backend import CpuBackend
from tiny import MODELS, Tiny, write_folder

DENSE = (
    "llama", "gpt2", "qwen3", "phi3", "olmo2", "gpt_bigcode", "gpt_neox", "stablelm-parallel", "falcon", "starcoder2"
)  # fmt: skip


def parameters(llm: LLM, layers: bool) -> int:
    """Of the matrices of the layers, or of the head; no model here has widths that are padded."""
    return sum(
        w.rows * w.columns for role, w in llm.model.matrices.items()
        if (role.startswith("layers.") if layers else role == "head")
    )  # fmt: skip


def biases(llm: LLM) -> int:
    return sum(
        vector.nbytes for role, vector in llm.model.vectors.items() if role.endswith(".bias") and "norm" not in role
    )


def made(tmp_path: Path, tiny: Tiny) -> LLM:
    return LLM(write_folder(tiny, tmp_path / tiny.name), kv_cache_memory_bytes=2 << 20)


@pytest.mark.parametrize("name", DENSE)
def test_every_matrix_once_and_every_position_once(tmp_path: Path, name: str) -> None:
    tiny = replace(MODELS[name], extra={k: v for k, v in MODELS[name].extra.items() if k != "sliding_window"})
    with made(tmp_path, tiny) as llm:
        cost, numbers = cost_of(llm.model, llm.engine), tiny.heads * tiny.head_dim
        layers, head = parameters(llm, True), parameters(llm, False)
        slot = tiny.layers * 2 * tiny.kv_heads * tiny.head_dim * 4
        positions = 31 + 8
        assert cost.of([(30, 1), (7, 1)], 2) == (
            4 * (layers + head) + biases(llm) + slot * positions,
            2 * 2 * (layers + head) + 4 * tiny.layers * numbers * positions,
        )
        assert cost.of([(0, 9)], 1)[1] == 2 * (9 * layers + head) + 4 * tiny.layers * numbers * sum(range(1, 10))


@pytest.mark.parametrize(("name", "windows"), [
    ("mistral", (24, 24, 24)), ("qwen2-windows", (None, 20, 20)), ("gemma3", (24, 24, None, 24)),
])  # fmt: skip
def test_a_layer_with_a_window_reads_what_it_sees(tmp_path: Path, name: str, windows: tuple[int | None, ...]) -> None:
    tiny = MODELS[name]
    with made(tmp_path, tiny) as llm:
        cost, slot = cost_of(llm.model, llm.engine), 2 * tiny.kv_heads * tiny.head_dim * 4
        (few, few_ops), (many, many_ops) = cost.of([(0, 1)], 1), cost.of([(99, 1)], 1)
        seen = sum(100 if window is None else window for window in windows) - len(windows)
        assert many - few == slot * seen
        assert many_ops - few_ops == 4 * tiny.heads * tiny.head_dim * seen


@pytest.mark.parametrize(("name", "count", "chosen"), [("mixtral", 4, 2), ("qwen3_moe", 12, 3)])
def test_experts_are_read_and_computed_as_far_as_rows_choose_them(
    tmp_path: Path, name: str, count: int, chosen: int
) -> None:
    tiny = MODELS[name]
    with made(tmp_path, tiny) as llm:
        cost, expert = cost_of(llm.model, llm.engine), 3 * tiny.hidden * tiny.inner
        others = parameters(llm, True) + parameters(llm, False) - tiny.layers * count * expert
        slot = tiny.layers * 2 * tiny.kv_heads * tiny.head_dim * 4
        seen = 4 * tiny.layers * tiny.heads * tiny.head_dim
        one = tiny.layers * chosen * expert
        assert cost.of([(0, 1)], 1) == (4 * (others + one) + slot, 2 * (others + one) + seen)
        assert cost.step_bytes == 4 * (others + one) + slot
        read, operations = cost.of([(0, 1)] * 2, 2)  # two rows, which choose apart from each other
        met = tiny.layers * expert * (chosen + chosen * (count - chosen) / count)
        assert read == pytest.approx(4 * (others + met) + 2 * slot, abs=tiny.layers)  # rounded layer by layer
        assert operations == 2 * (2 * (others + one) + seen)
        assert cost.of([(0, 1)] * 400, 400)[0] == 4 * (others + tiny.layers * count * expert) + 400 * slot


def test_the_bound_is_what_takes_longer(backend: CpuBackend) -> None:
    roofline = Roofline(backend.team, 1 << 20)
    roofline.read, roofline.fma = [7.0, 10.0], [1.0, 100.0]
    assert roofline.limit(1000, 9_999) == ("read", 1000)
    assert roofline.limit(1000, 10_001) == ("fma", 10_001)
