"""Layers with a window: how many pages they keep, counted after every step, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import tiny
from drafts import prompt
from kvist.assemble import assemble
from kvist.config import EngineConfig
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import Model, load_model

WINDOW = 24  # of the tiny models with windows: three pages of 16 at most, wherever it begins
SPAN = 3
MODELS = ("gemma3", "gpt_oss", "mistral")  # two layers of three, one of two, all
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    return load_model(tiny.write_folder(replace(tiny.MODELS[request.param], positions=512), folder), backend)


@pytest.fixture
def make_engine(model: Model, one_thread: CpuBackend, opened: Callable[[Engine], Engine]) -> MakeEngine:
    def make(**options: Any) -> Engine:
        return opened(assemble(model, EngineConfig(**{"kv_cache_memory_bytes": 4 << 20, **options}), one_thread))

    return make


def answer(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def run(engine: Engine, ids: list[int], tokens: int) -> tuple[list[int], int]:
    """The answer, and how many tokens came from the cache."""
    outputs = list(engine.stream(ids, answer(tokens)))
    return [output.token_id for output in outputs if output.token_id is not None], outputs[-1].metrics.cached_tokens


def test_pages_behind_the_window_are_let_go_of_in_every_step(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_batched_tokens=32, enable_prefix_caching=False)
    sliding = engine.manager.ledgers[-1]
    assert sliding.group.window == WINDOW
    engine.submit(prompt(300), answer(100), request_id="it")
    most = held = 0
    while engine.has_work:
        engine.step()
        engine.manager.check_integrity()
        (table,) = engine.manager.tables or (None,)
        if table is None:
            break
        assert sliding.allocator.live <= SPAN
        if engine.manager.groups[0].window is None:
            assert engine.manager.ledgers[0].allocator.live == len(table.pages) == -(-table.computed // 16)
        most, held = max(most, sliding.allocator.live), engine.manager.stats().live_bytes
    assert most == SPAN, "the bound is met"
    kept = sum(group.layout.page_bytes * (SPAN if group.window else 25) for group in engine.manager.groups)
    assert held <= kept, "bytes: all positions of the layers that see all, three pages of the others"


def test_the_text_is_that_of_no_cache_and_of_every_way_through_it(make_engine: MakeEngine) -> None:
    ids = prompt(200)
    expected, _ = run(make_engine(enable_cache=False), ids, 12)
    engine = make_engine()
    assert run(engine, ids, 12) == (expected, 0)
    assert run(engine, ids, 12) == (expected, 199), "the window's pages are cached with the rest"
    assert run(make_engine(page_size=64, max_num_batched_tokens=7), ids, 12)[0] == expected
    longer = [*ids[:150], *prompt(40, 5)]
    fresh, _ = run(make_engine(), longer, 12)
    assert run(engine, longer, 12) == (fresh, 150)


def test_a_prefix_whose_window_is_gone_is_said_to_be_evicted(make_engine: MakeEngine) -> None:
    engine = make_engine()
    ids = prompt(200)
    expected, _ = run(engine, ids, 12)
    sliding = engine.manager.ledgers[-1].allocator
    while sliding.evict():
        pass
    outputs = list(engine.stream(ids, answer(12)))
    assert [output.token_id for output in outputs] == expected
    report = outputs[-1].metrics.reuse
    assert report is not None
    assert (report.reason, report.cached["memory"], report.computed) == ("evicted", 0, 200)
    assert run(engine, ids, 12) == (expected, 199)


def test_more_positions_than_the_windows_have_pages(make_engine: MakeEngine) -> None:
    """A pool sized for one sequence: the window's pages are a small part of it, and the longest sequence runs."""
    engine = make_engine(max_num_seqs=1, max_num_batched_tokens=32)
    first, *others = engine.manager.groups
    assert engine.limits.max_model_len == 512
    for group in others:
        assert group.num_pages == 2 * SPAN + 2 < first.num_pages
    ids = prompt(450)
    assert run(engine, ids, 60)[0] == run(make_engine(enable_cache=False), ids, 60)[0]


def test_branches_and_pins_with_windows(make_engine: MakeEngine) -> None:
    engine = make_engine()
    pinned = prompt(100)
    engine.submit(pinned, answer(4), request_id="pinned", pin=True)
    while engine.has_work:
        engine.step()
        engine.manager.check_integrity()
    for ledger, held in zip(engine.manager.ledgers, engine.manager.pins.held, strict=True):
        assert len(held) == (6 if ledger.group.window is None else 2), "of a window what a token behind 96 sees"
    engine.manager.flush()
    drawn = SamplingParams(temperature=1.0, seed=3, max_tokens=40, n=3, ignore_eos=True)
    found: dict[int, list[int]] = {}
    name = engine.submit(pinned, drawn)
    while engine.has_work:
        for output in engine.step():
            assert output.request_id == name
            found.setdefault(output.index, []).append(output.token_id or 0)
        engine.manager.check_integrity()
    fresh: dict[int, list[int]] = {}
    other = make_engine(enable_cache=False)
    other.submit(pinned, drawn)
    while other.has_work:
        for output in other.step():
            fresh.setdefault(output.index, []).append(output.token_id or 0)
    assert found == fresh
    assert engine.unpin() in (6, 2)
    assert engine.manager.stats().live == 0
