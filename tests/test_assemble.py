"""Sizing the pool: bytes are the layout's formula exactly, and what does not fit is refused with the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from kvist.assemble import Sizes, assemble, choose_sizes
from kvist.config import EngineConfig
from kvist.errors import CapacityError, UnknownNameError, UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.layers import page_sharing
from kvist.models.config import ModelConfig
from kvist.models.load import Model, load_model

SMOLLM2 = ModelConfig(
    family="llama", vocab_size=49152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, intermediate_size=1536,
    max_positions=8192, norm="rms", norm_eps=1e-5, activation="silu", gated=True, positions="rotary", rotary_dim=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> Model:
    return load_model(tiny.write_folder(tiny.MODELS["llama"], tmp_path_factory.mktemp("llama")), backend)


@pytest.mark.parametrize(("codec", "size"), [("f32", 4), ("f16", 2), ("bf16", 2)])
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
def test_a_pool_has_exactly_the_bytes_of_the_formula(
    model: Model, backend: CpuBackend, codec: str, size: int, page_size: int
) -> None:
    config = EngineConfig(kv_cache_dtype=codec, page_size=page_size, kv_cache_memory_bytes=1 << 20)
    engine = assemble(model, config, backend)
    per_token = 2 * 3 * 2 * 16 * size  # K and V x layers x KV heads x head size x bytes
    pages = (1 << 20) // (per_token * page_size)
    assert engine.manager.ledgers[0].pool.nbytes == pages * page_size * per_token
    pool = engine.manager.ledgers[0].pool
    assert 0 <= pool.data.nbytes - pool.nbytes < pool.layout.extent_bytes, "whole extents of addresses"
    assert engine.manager.stats().pool_bytes == engine.manager.ledgers[0].pool.nbytes
    engine.manager.close()


def test_smollm2_takes_23040_bytes_a_token_in_f16() -> None:
    assert page_sharing(SMOLLM2, EngineConfig(), "f16").each // 16 == 2 * 30 * 3 * 64 * 2 == 23040


def sizes(config: EngineConfig) -> Sizes:
    return choose_sizes(SMOLLM2, config, [page_sharing(SMOLLM2, config, "f16")])


def test_a_length_that_was_asked_for_must_fit() -> None:
    config = EngineConfig(max_model_len=8192, kv_cache_memory_bytes=100 << 20)
    with pytest.raises(
        CapacityError, match=r"8192: it needs 512 pages = 188,743,680 bytes, .* 284 pages .* max_model_len=4544"
    ):
        sizes(config)
    assert sizes(replace(config, max_model_len=4544)).num_pages == 284
    assert sizes(replace(config, kv_cache_memory_bytes=188_743_680)).max_model_len == 8192


def test_a_length_that_was_not_asked_for_is_cut_to_the_memory() -> None:
    assert sizes(EngineConfig(kv_cache_memory_bytes=100 << 20)).max_model_len == 4544
    with pytest.raises(CapacityError, match="at least 368,640"):
        sizes(EngineConfig(kv_cache_memory_bytes=1000))
    with pytest.raises(UsageError, match="at most 8192"):
        sizes(EngineConfig(max_model_len=8193))


def test_the_pool_is_never_larger_than_its_sequences_can_use() -> None:
    assert sizes(EngineConfig(max_num_seqs=1)).num_pages <= 512


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"page_size": 17}, "16, 32, 64, 128"), ({"kv_cache_dtype": "f61"}, "f16"), ({"weights": "int9"}, "did you mean int8"), ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"threads": -1}, "threads"), ({"max_num_batched_tokens": 1 << 20}, "65536"), ({"kv_cache_memory_bytes": 1.5}, "kv_cache_memory_bytes"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(options: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        EngineConfig.from_options(options)


def test_an_unknown_option_is_named_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="page_size"):
        EngineConfig.from_options({"pagesize": 16})


def test_padded_heads_are_counted_as_they_are_stored(tmp_path: Path, backend: CpuBackend) -> None:
    odd = load_model(tiny.write_folder(tiny.MODELS["llama-odd"], tmp_path), backend)
    assert odd.config.head_dim == 10
    assert page_sharing(odd.config, EngineConfig(), "f32").each // 16 == 2 * 3 * 2 * 16 * 4
