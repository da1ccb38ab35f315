"""Reading documents: the reference is uncached float32 in every bit, float32 pages cost nothing, others are noticed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import tiny
from kvist import LLM
from kvist.divergence import distances
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.eval.force import CHUNK, Reading, force
from kvist.eval.method import REFERENCE, Method
from kvist.eval.scores import FIELDS, Scores
from kvist.eval.text import Document

CODECS = ("f32", "f16", "bf16")


def read(llm: LLM, codecs: Sequence[str], texts: Sequence[Document], policy: str = "full") -> list[list[Scores]]:
    sizes = {"max_num_seqs": len(texts), "enable_prefix_caching": False, "kv_cache_memory_bytes": None}
    with ExitStack() as stack:
        made = [
            stack.enter_context(method.engine(llm, **sizes, max_num_batched_tokens=CHUNK * len(texts)))
            for method in (REFERENCE, *(Method(codec, policy) for codec in codecs))
        ]
        return force(made[0], made[1:], texts)


def uncached(engine: Engine, ids: Sequence[int]) -> np.ndarray:
    """The logits of every position, all K and V computed again for each of them."""
    rows = []
    for end in range(1, len(ids) + 1):
        table = engine.manager.open()
        assert engine.manager.reserve(table, end)
        rows.append(engine.runner.forward([Piece(table, ids[:end], 0, "last")])[0].copy())
        engine.manager.release(table)
    return np.stack(rows)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_the_reference_is_uncached_float32_bit_for_bit(name: str, tmp_path: Path) -> None:
    ids = tuple(np.random.default_rng(3).integers(2, 300, 101).tolist())
    with LLM(tiny.write_folder(tiny.MODELS[name], tmp_path / name), kv_cache_memory_bytes=8 << 20) as llm:
        with REFERENCE.engine(llm, enable_prefix_caching=False, max_num_batched_tokens=100) as engine:
            expected = uncached(engine, ids[:-1])
        with REFERENCE.engine(llm, enable_prefix_caching=False, max_num_batched_tokens=CHUNK) as engine:
            reading = Reading(engine, [Document("", "", ids)])
            chunks = [reading.run([0], start, start + CHUNK).copy() for start in range(0, 100, CHUNK)]
    assert np.array_equal(np.concatenate(chunks).view(np.uint32), expected.view(np.uint32))


def test_float32_costs_nothing_and_fewer_bits_cost_more(llm: LLM, texts: list[Document]) -> None:
    exact, half, brain = read(llm, CODECS, texts)
    for text, one in zip(texts, exact, strict=True):
        assert one.positions == text.positions
        assert not one.divergence.any() and one.same.all() and np.array_equal(one.own, one.reference)
    lost = [sum(float(one.divergence.sum()) for one in scores) for scores in (exact, half, brain)]
    assert lost[0] == 0 < lost[1] < lost[2]
    for scores in (half, brain):
        assert all(np.array_equal(a.reference, b.reference) for a, b in zip(scores, exact, strict=True))


def test_scores_are_those_of_the_engines_own_logits(llm: LLM, folder: Path, texts: list[Document]) -> None:
    own = read(llm, ["bf16"], texts)[0][1]
    ids, logits = texts[1].ids, []
    for codec in ("bf16", "f32"):
        with LLM(folder, kv_cache_dtype=codec, kv_cache_memory_bytes=8 << 20) as other:
            logits.append(other.logits(ids[:-1]))
    expected = distances(logits[0], logits[1], ids[1:])
    assert np.array_equal(own.own, expected.own.astype(np.float32))
    assert np.array_equal(own.divergence, expected.divergence.astype(np.float32))
    assert np.array_equal(own.same, expected.same) and np.array_equal(own.sure, expected.margin > 0.5)


def test_neighbours_change_nothing(llm: LLM, texts: list[Document]) -> None:
    together = read(llm, ["f16"], texts)[0]
    for text, one in zip(texts, together, strict=True):
        alone = read(llm, ["f16"], [text])[0][0]
        assert all(np.array_equal(getattr(alone, name), getattr(one, name)) for name in FIELDS)
        assert alone.live_bytes == one.live_bytes


def test_a_damaged_page_is_noticed_from_there_on(
    llm: LLM, texts: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A codec that loses a single page of one layer: all later positions show it, and none before."""
    run = Reading.run

    def damaging(self: Reading, reading: Sequence[int], start: int, end: int) -> np.ndarray:
        if end == start + 1 == 65:  # decoding, the first page has been sealed for long
            for part in self._engine.manager.ledgers[0].pool.parts(self._tables[0].pages[0]):
                part[...] = 0
        return run(self, reading, start, end)

    monkeypatch.setattr(Reading, "run", damaging)
    first, *others = read(llm, ["f32"], texts)[0]
    assert not first.divergence[:64].any() and (first.divergence[64:] > 0).all()
    assert not any(one.divergence.any() for one in others)


def test_bytes_are_those_of_the_pages_held(llm: LLM, texts: list[Document]) -> None:
    for codec, itemsize in (("f32", 4), ("f16", 2)):
        for text, one in zip(texts, read(llm, [codec], texts)[0], strict=True):
            pages = -(-text.positions // 16)
            assert one.live_bytes == pages * 16 * 3 * 2 * 2 * 16 * itemsize  # slots, layers, K and V, heads, numbers


def test_scores_survive_json(llm: LLM, texts: list[Document]) -> None:
    for one in read(llm, ["bf16"], texts)[0]:
        again = Scores.from_json(json.loads(json.dumps(one.as_json())))
        assert again.live_bytes == one.live_bytes
        for name in FIELDS:
            assert getattr(again, name).dtype == getattr(one, name).dtype
            assert np.array_equal(getattr(again, name), getattr(one, name))


def test_a_window_costs_nothing_until_it_is_full_and_then_something(llm: LLM, texts: list[Document]) -> None:
    for text, one in zip(texts, read(llm, ["f32"], texts, "window:48+4")[0], strict=True):
        assert not one.divergence[:48].any()
        assert (one.divergence[48 + 4 :] > 0).all()
        assert one.live_bytes <= min(-(-text.positions // 16), 1 + 4) * 16 * 768
