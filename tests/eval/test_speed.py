"""Decode steps that are timed: what they run over is what the method says, in pages that no two sequences share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import tiny
from kvist import LLM
from kvist.cache.table import GONE, PageTable
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.errors import CapacityError, UsageError
from kvist.eval import speed
from kvist.eval.method import Method
from kvist.eval.speed import REAL, ROUNDS, STEADY, STEPS, step_seconds
from kvist.eval.steps import MANY, contexts_up_to, texts, timed

CONTEXTS, COUNTS = (300, REAL + 200), (1, 3)
TOKENS = np.random.default_rng(0).integers(0, 300, 1024).tolist()


def sizes(tables: int) -> dict[str, object]:
    longest = CONTEXTS[-1] + STEADY * len(COUNTS)
    return {"max_num_seqs": tables, "max_model_len": longest, "enable_prefix_caching": False}


@pytest.mark.parametrize(
    "method",
    [
        Method("f32"), Method("int8"), Method("f16", "window:64+4"), Method("int8", "window:64+4"),
        Method("f32", "topk:0.25"), Method("f32", "evict:0.5,by=knorm"),
    ],
    ids=lambda method: method.name,
)  # fmt: skip
def test_sequences_are_alike_and_share_nothing(long: LLM, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def step(engine: Engine, tables: Sequence[PageTable], tokens: Sequence[int]) -> None:
        for table in tables:
            assert engine.manager.reserve(table, 1)
        if len(tables) > 1 and len({table.computed for table in tables}) == 1:  # not ahead yet
            for groups in zip(*(table.groups for table in tables), strict=True):
                held = [page for pages in groups for page in pages if page != GONE]
                assert len(held) == len(set(held)), "a page of two sequences"
                assert len({tuple(i for i, page in enumerate(pages) if page == GONE) for pages in groups}) == 1
        pieces = [Piece(table, [tokens[table.positions]], table.positions, "last") for table in tables]
        seen.append((len(tables), tables[0].positions))
        rows = engine.runner.forward(pieces)
        if len({piece.start for piece in pieces}) == 1:
            assert all(np.array_equal(row, rows[0]) for row in rows)

    monkeypatch.setattr(speed, "_step", step)
    with long, method.engine(long, **sizes(6), kv_cache_memory_bytes=None) as engine:
        found = step_seconds([engine], CONTEXTS, TOKENS, 64, counts=(3,))
        assert not engine.manager.tables
        engine.manager.check_integrity()
    assert np.shape(found) == (1, 1, 2, ROUNDS)
    assert seen[:STEPS] == [(3, CONTEXTS[0] + i) for i in range(STEPS)]
    assert seen[STEPS : 2 * STEPS] == [(3, CONTEXTS[1] + i) for i in range(STEPS)], "contexts take turns"
    assert len(seen) == 2 * ROUNDS * STEPS


def test_what_steps_depend_on_was_computed(long: LLM) -> None:
    computed = []
    for method in (Method("f32"), Method("f32", "topk:0.25"), Method("int8")):
        with method.engine(long, **sizes(2), kv_cache_memory_bytes=None) as engine:
            step_seconds([engine], CONTEXTS, TOKENS, 64)
            computed.append(engine.runner.kv_projections - 2 * STEADY)
    assert computed == [REAL, CONTEXTS[-1], CONTEXTS[-1]]
    long.close()


@pytest.mark.parametrize("codec", ["f16", "int8"])
def test_windows_smaller_than_a_page(tmp_path: Path, codec: str) -> None:
    model = tiny.Tiny("mistral", "mistral", positions=1024, extra={"sliding_window": 8})
    with LLM(tiny.write_folder(model, tmp_path / "m")) as llm:
        contexts = (REAL + 88, REAL + 200)
        found = timed(llm, [Method(codec)], contexts, (2,), texts(llm, contexts), lambda *_: None)
    assert np.shape(found) == (1, 1, 2, ROUNDS)


def test_all_methods_and_counts(long: LLM) -> None:
    told: list[tuple[str, int, int]] = []
    with long:
        methods, read = [Method("f16"), Method("int8")], texts(long, CONTEXTS)
        found = timed(long, methods, CONTEXTS, COUNTS, read, lambda *what: told.append(what))
    assert np.shape(found) == (2, 2, 2, ROUNDS) and np.min(found) > 0
    assert told[0][1:] == (0, 100) and told[-1][1:] == (100, 100)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_contexts_that_do_not_fit(long: LLM) -> None:
    with long:
        assert contexts_up_to(800, long, COUNTS) == (100, 200, 400, 800)
        with pytest.raises(UsageError, match=f"give {1024 - 2 * MANY * STEPS} at most"):
            contexts_up_to(1000, long, COUNTS)
        small = {**sizes(1), "kv_cache_memory_bytes": 1 << 20, "max_model_len": None}
        with Method("f32").engine(long, **small) as engine, pytest.raises(CapacityError, match="time shorter ones"):
            step_seconds([engine], CONTEXTS, TOKENS, 64, counts=(3,))
