"""A text far longer than the context, read under a window: its numbers, and the memory it holds."""

from __future__ import annotations

import numpy as np
import pytest

from kvist import LLM
from kvist.errors import UsageError
from kvist.eval.method import Method
from kvist.eval.stream import PARTS, stream_ids, stream_lines, streamed, streams
from kvist.models.config import ModelConfig

IDS = np.random.default_rng(7).integers(2, 300, 1501).tolist()


def test_longer_than_the_model_was_trained_for_in_constant_memory(llm: LLM) -> None:
    config: ModelConfig = llm.model.config
    assert config.max_positions < 1500
    parts = streamed(llm, Method("f32", "window:64+4"), IDS)
    assert [part.end for part in parts] == [1500 * i // PARTS for i in range(1, PARTS + 1)]
    assert {part.pages for part in parts} <= {5, 6}, "the sinks' page and those of the window"
    assert all(part.live_bytes == part.pages * llm.engine.manager.layout.page_bytes for part in parts)


def test_perplexity_is_that_of_a_whole_pass(llm: LLM) -> None:
    """Where the window holds everything: both columns, and what logits give by hand."""
    ids = IDS[:60]
    logits = llm.logits(ids[:-1]).astype(np.float64)
    logs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1)[:, None]
    own = logs[np.arange(59), ids[1:]]
    parts = streamed(llm, Method("f32", "window:64+4"), ids)
    edges = [59 * i // PARTS for i in range(PARTS + 1)]
    for part, start, end in zip(parts, edges, edges[1:], strict=False):
        assert part.perplexity == part.fresh == pytest.approx(np.exp(-own[start:end].mean()), rel=1e-12)


def test_the_stream_is_mixed_and_as_long_as_asked(llm: LLM) -> None:
    ids = stream_ids(llm, 3000)
    assert len(ids) == 3001
    assert len(set(ids)) > 50
    with pytest.raises(UsageError, match="at most so many"):
        stream_ids(llm, 10**9)


def test_a_report_and_what_is_refused(llm: LLM) -> None:
    told: list[tuple[int, int]] = []
    methods = [Method("f32", "window:64+4"), Method("f32", "window:32+0")]
    found = streams(llm, "tiny", methods, 1000, lambda text, done, total: told.append((done, total)))
    assert told[-1] == (100, 100)
    lines = list(stream_lines(found))
    assert len(lines) == 1 + PARTS + 1
    assert lines[PARTS].split()[0] == "1,000"
    with pytest.raises(UsageError, match="policy full"):
        streams(llm, "tiny", [Method("f32")], 1000, lambda text, done, total: None)
