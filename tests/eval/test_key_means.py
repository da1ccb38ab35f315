"""Mean keys: what a layer's keys have in common, once no position turns them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from kvist import LLM
from kvist.cache.pool import floats_of
from kvist.engine.batch import Piece
from kvist.eval.key_means import SKIPPED, key_means, turned, turned_back
from kvist.eval.method import Method
from kvist.eval.text import Document
from kvist.kernels.program import Rotary
from kvist.models.rotary import rotary_tables


def rotary(half: int, positions: int, longer: float = 1.0) -> Rotary:
    angles = np.arange(positions)[:, None] * 10.0 ** -np.arange(half)
    return Rotary(*(longer * f(angles).astype(np.float32) for f in (np.cos, np.sin)))


@pytest.mark.parametrize("longer", [1.0, 1.3])
def test_keys_that_are_one_key_at_many_positions(longer: float) -> None:
    """Turned back they are that key, and their mean where they were is what `turned` says."""
    table, key = rotary(5, 200, longer), np.random.default_rng(0).normal(size=16)
    there = np.concatenate([turned(key[None], Rotary(table.cos[p : p + 1], table.sin[p : p + 1]), 1) for p in range(200)])
    assert np.allclose(np.linalg.norm(there[:, :10], axis=1), longer * np.linalg.norm(key[:10]), rtol=1e-5)
    assert np.array_equal(there[:, 10:], np.tile(key[10:], (200, 1))), "dims that no position turns"
    assert np.allclose(turned_back(there[50:].astype(np.float32), table, 50), key, atol=1e-5)
    assert np.allclose(turned(key, table, 200), there.mean(0), atol=1e-6)
    assert np.array_equal(turned(key, None, 200), key)
    assert np.array_equal(turned_back(there.astype(np.float32), None, 0), there.astype(np.float32))


def test_means_are_those_of_the_models_keys(llm: LLM, texts: list[Document]) -> None:
    found = key_means(llm, [0, 2], texts)
    assert found.keys() == {0, 2}
    size, config = llm.config.page_size, llm.model.config
    longest = config.max_positions
    table = rotary_tables(config, longest)
    kept: list[np.ndarray] = []
    with Method("f32").engine(llm, max_num_seqs=1, enable_prefix_caching=False) as engine:
        _, pool = floats_of([ledger.pool for ledger in engine.manager.ledgers], 2)
        for text in texts:
            pages = text.positions // size
            if not pages:
                continue
            sequence = engine.manager.open()
            assert engine.manager.reserve(sequence, text.positions)
            engine.runner.forward([Piece(sequence, text.ids[: text.positions], 0, "none")])
            keys = np.concatenate([pool.read(page, 2, 1)[0] for page in sequence.groups[0][:pages]])
            kept.append(turned_back(keys, table, 0)[SKIPPED:])
            engine.manager.release(sequence)
    mean = turned(np.concatenate(kept).mean(0), table, min(4096, longest))
    assert np.allclose(found[2].reshape(config.num_kv_heads, -1)[1], mean, atol=2e-3 * np.abs(mean).max())


def test_models_that_take_none(tmp_path: Path) -> None:
    for name in ("gemma2", "gpt_oss"):
        folder = tiny.write_folder(replace(tiny.MODELS[name], positions=512), tmp_path / name)
        with LLM(folder, kv_cache_memory_bytes=8 << 20) as llm:
            assert key_means(llm, [0], [Document("x", "y", tuple(range(2, 60)))]) == {}


def test_texts_that_fill_no_page(llm: LLM) -> None:
    assert key_means(llm, [0], [Document("x", "y", tuple(range(2, 12)))]) == {}
