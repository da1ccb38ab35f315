"""Beam search against an implementation that anyone can read, which computes every prefix anew: equal tokens, equal
scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

import steps
from drafts import NGRAM, MakeEngine, prompt
from kvist.engine.engine import Engine
from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.engine.sampler import Sampler
from kvist.errors import InternalError, RequestError, UsageError
from kvist.events import EventKind
from kvist.kernels.choosing import Rating
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.reference_choosing import ReferenceChooser
from kvist.models.load import Model

Found = list[tuple[tuple[int, ...], float, float]]
"""Answers, the best first: tokens, log-probability, score."""


@dataclass
class Plain:
    """Beam search by the book: no cache, no forks; a row of logits is computed from all its tokens."""

    model: Model
    backend: CpuBackend
    ends: frozenset[int]

    def __post_init__(self) -> None:
        self.rows: dict[tuple[int, ...], np.ndarray] = {}

    def logprobs(self, tokens: tuple[int, ...]) -> np.ndarray:
        if tokens not in self.rows:
            row = steps.logits_of(self.model, self.backend, tokens)[-1]
            rated = ReferenceChooser().rate([Rating(row, -1, -1, len(row))])[0]
            self.rows[tokens] = np.array(rated.logprobs)[np.argsort(rated.ids)]
        return self.rows[tokens]

    def search(self, ids: list[int], params: BeamSearchParams) -> Found:
        width, ends = params.beam_width, frozenset() if params.ignore_eos else self.ends
        beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        finished: Found = []
        for length in range(1, params.max_tokens + 1):
            longer = []
            for place, (answer, total) in enumerate(beams):
                row = self.logprobs((*ids, *answer))
                longer += [(-(total + row[token]), place, token) for token in range(len(row))]
            longer.sort()
            beams_before, beams = beams, []
            for rank, (negative, place, token) in enumerate(longer[: width * max(2, 1 + len(ends))]):
                answer, total = (*beams_before[place][0], token), -negative
                if token in ends or length == params.max_tokens:
                    if rank < width:
                        finished.append((answer, total, total / length**params.length_penalty))
                elif len(beams) < width:
                    beams.append((answer, total))
            finished = sorted(finished, key=lambda found: -found[2])[:width]
            if not beams:
                break
            if len(finished) == width:
                if params.early_stopping is True:
                    break
                far = params.max_tokens if params.early_stopping == "never" and params.length_penalty > 0 else length
                if beams[0][1] / far**params.length_penalty <= finished[-1][2]:
                    break
        return finished


def searched(engine: Engine, requests: list[tuple[list[int], BeamSearchParams]]) -> list[Found]:
    searches = [engine.submit_beams(ids, params) for ids, params in requests]
    ended: list[str] = []
    while engine.has_work:
        ended += [output.request_id for output in engine.step() if output.finish_reason]
    assert sorted(ended) == sorted(search.request_id for search in searches)
    assert engine.manager.stats().live == 0
    return [[(h.token_ids, h.cumulative_logprob, h.score) for h in search.finished] for search in searches]


@pytest.fixture(scope="module")
def ends() -> frozenset[int]:
    """Many end tokens: in a random model one alone is hardly ever among the likeliest."""
    return frozenset(range(0, 300, 3))


@pytest.fixture(scope="module")
def by_the_book(tiny_model: Model, one_thread: CpuBackend, ends: frozenset[int]) -> Plain:
    return Plain(tiny_model, one_thread, ends)


def ending(engine: Engine, ends: frozenset[int]) -> Engine:
    """The engine with these end tokens."""
    engine.limits = replace(engine.limits, eos_ids=ends)
    return engine


CASES = [
    BeamSearchParams(width, 10, length_penalty=penalty, early_stopping=early)
    for width in (1, 3, 4)
    for penalty in (0.0, 1.0, 2.0, -1.0)
    for early in (False, True, "never")
] + [BeamSearchParams(5, 7, ignore_eos=True), BeamSearchParams(64, 3), BeamSearchParams(2, 1)]


@pytest.mark.parametrize("params", CASES, ids=str)
def test_beams_are_those_of_a_plain_search(
    make_engine: MakeEngine, by_the_book: Plain, ends: frozenset[int], params: BeamSearchParams
) -> None:
    for length in (1, 31):
        expected = by_the_book.search(prompt(length), params)
        assert searched(ending(make_engine(pages=256), ends), [(prompt(length), params)]) == [expected]
        assert len(expected) == params.beam_width


def test_the_kinds_of_early_stopping_differ(by_the_book: Plain) -> None:
    """Else the cases above would not tell them apart."""
    found = [
        by_the_book.search(prompt(31), BeamSearchParams(3, 10, early_stopping=early))
        for early in (True, False, "never")
    ]
    assert found[0] != found[1] != found[2] != found[0]
    assert found[1] != by_the_book.search(prompt(31), BeamSearchParams(3, 10, length_penalty=2.0))


@pytest.mark.parametrize(
    "options",
    [
        {"enable_prefix_caching": False}, {"enable_cache": False}, {"max_num_seqs": 1}, {"max_num_seqs": 3},
        {"max_num_batched_tokens": 3}, {"pages": 6}, {"pages": 6, "enable_prefix_caching": False}, {"pages": 3},
        {"page_size": 64}, {"speculative_config": NGRAM}, {"pages": 5, "max_num_seqs": 2, "max_num_batched_tokens": 5},
    ],
    ids=str,
)  # fmt: skip
def test_beams_are_the_same_however_they_are_run(
    make_engine: MakeEngine, by_the_book: Plain, ends: frozenset[int], options: dict[str, object]
) -> None:
    """Four beams and five, in turns, recomputed, preempted, beside each other and beside a drawn request."""
    requests = [
        (prompt(17, 1), BeamSearchParams(4, 12, early_stopping="never")), (prompt(20, 2), BeamSearchParams(5, 9, length_penalty=2.0)),
    ]  # fmt: skip
    expected = [by_the_book.search(ids, params) for ids, params in requests]
    drawn = SamplingParams(temperature=1.0, seed=1, max_tokens=14, ignore_eos=True)
    alone = [output.token_id for output in make_engine().stream(prompt(9), drawn)]
    engine = ending(make_engine(**options), ends)
    for _ in range(2):
        searches = [engine.submit_beams(ids, params) for ids, params in requests]
        name, beside = engine.submit(prompt(9), drawn), []
        for _ in range(5000):
            if not engine.has_work:
                break
            beside += [output.token_id for output in engine.step() if output.request_id == name]
            engine.manager.check_integrity()
        assert [[(h.token_ids, h.cumulative_logprob, h.score) for h in s.finished] for s in searches] == expected
        assert beside == alone
        assert engine.manager.stats().live == 0


def test_the_pages_of_beams_that_are_dropped_are_free_at_once(make_engine: MakeEngine) -> None:
    """Four beams over a prompt of 40 tokens hold its two full pages once, and at most two pages of their own each."""
    engine = make_engine()
    search = engine.submit_beams(prompt(40), BeamSearchParams(4, 20, ignore_eos=True))
    most = 0
    while engine.has_work:
        engine.step()
        held = {page for beam in search.open for page in (beam.table.pages if beam.table else ())}
        assert engine.manager.stats().live == len(held)
        assert len(search.open) <= 4
        most = max(most, len(held))
    assert 4 < most <= 2 + 4 * 2
    assert search.metrics.kv_projections <= 40 + 4 * 19


def test_cancelling_a_search_frees_its_beams(make_engine: MakeEngine) -> None:
    for options in ({}, {"max_num_seqs": 2}, {"pages": 4}):
        for count in range(8):
            engine = make_engine(**options)
            search = engine.submit_beams(prompt(20), BeamSearchParams(4, 12, ignore_eos=True), request_id="beams")
            for _ in range(count):
                engine.step()
            assert engine.cancel("beams") and not engine.cancel("beams")
            assert not engine.has_work and not search.open
            assert engine.manager.stats().live == 0
            assert not engine.scheduler.running and not engine.scheduler.waiting


def test_a_search_is_refused_like_any_request(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=4)
    with pytest.raises(RequestError, match=r"40 prompt tokens \+ 30 max_tokens = 70"):
        engine.submit_beams(prompt(40), BeamSearchParams(2, 30))
    with pytest.raises(RequestError, match="token id 300"):
        engine.submit_beams([300], BeamSearchParams(2, 3))
    engine.submit_beams(prompt(5), BeamSearchParams(2, 3), request_id="mine")
    with pytest.raises(UsageError, match="mine"):
        engine.submit(prompt(5), SamplingParams(), request_id="mine")
    engine.cancel("mine")


def test_equal_sums_stand_in_the_order_of_parent_then_token(make_engine: MakeEngine) -> None:
    """Logits of a few values only: nearly all candidates are equal."""
    engine = make_engine()
    search = engine.submit_beams(prompt(4), BeamSearchParams(3, 3, ignore_eos=True))
    row = np.zeros(300, np.float32)
    row[[7, 250]] = 1.0
    search.note(search.open[0], row, Sampler(ReferenceChooser()))
    assert not search.advance(engine.manager, engine.scheduler)
    assert [beam.tokens[4:] for beam in search.open] == [[7], [250], [0]]
    flat = np.zeros(300, np.float32)
    flat[[3, 299]] = 2.0
    for beam in search.open[::-1]:
        search.note(beam, flat, Sampler(ReferenceChooser()))
    assert not search.advance(engine.manager, engine.scheduler)
    assert [beam.tokens[4:] for beam in search.open] == [[7, 3], [7, 299], [250, 3]]
    for beam in search.open:
        search.note(beam, np.ones(300, np.float32), Sampler(ReferenceChooser()))
    assert search.advance(engine.manager, engine.scheduler)
    assert [found.token_ids for found in search.finished] == [(7, 3, 0), (7, 3, 1), (7, 3, 2)]


def test_many_equal_sums_stand_in_order(make_engine: MakeEngine) -> None:
    """So many that a sort which is not stable would show."""
    engine = make_engine()
    search = engine.submit_beams(prompt(4), BeamSearchParams(40, 5, ignore_eos=True))
    row = np.zeros(300, np.float32)
    row[:20] = 1.0
    best, rest = [(i,) for i in range(20)], [(i,) for i in range(20, 40)]
    two = [(p, i) for p in (0, 1) for i in range(20)]
    for expected in (best + rest, two, [(0, *last) for last in two]):
        for beam in search.open:
            search.note(beam, row, Sampler(ReferenceChooser()))
        assert not search.advance(engine.manager, engine.scheduler)
        assert [tuple(beam.tokens[4:]) for beam in search.open] == expected
    engine.cancel(search.request_id)


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 2}, {"max_num_batched_tokens": 3, "page_size": 64}])
def test_a_beam_that_waits_for_others_keeps_its_pages(make_engine: MakeEngine, options: dict[str, int]) -> None:
    engine = make_engine(pages=256, **options)
    search = engine.submit_beams(prompt(20), BeamSearchParams(4, 10, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert search.metrics.kv_projections == 20 + 4 * 9
    assert engine.steps >= 10 + 9 * (4 // options.get("max_num_batched_tokens", 4) - 1)


def test_logits_that_are_no_numbers_are_an_error(make_engine: MakeEngine) -> None:
    engine = make_engine()
    search = engine.submit_beams(prompt(4), BeamSearchParams(3, 3))
    for bad in (np.nan, np.inf):
        with pytest.raises(InternalError, match="NaN or infinite"):
            search.note(search.open[0], np.array([0.0, bad, 1.0], np.float32), Sampler(ReferenceChooser()))
    engine.cancel(search.request_id)


def test_metrics_and_events_of_a_search(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with engine.events.subscribe(1 << 16) as subscription:
        search = engine.submit_beams(prompt(20), BeamSearchParams(3, 5, ignore_eos=True))
        while engine.has_work:
            engine.step()
        kinds = [event.kind for event in subscription.drain()]
    metrics = search.metrics
    assert (metrics.prompt_tokens, metrics.generated_tokens) == (20, 3 * 5)
    assert metrics.computed_tokens == metrics.kv_projections == engine.runner.kv_projections == 20 + 3 * 4
    assert metrics.arrival_time <= metrics.started_time <= metrics.first_token_time <= metrics.finished_time
    assert kinds.count(EventKind.REQUEST_QUEUED) == kinds.count(EventKind.REQUEST_FINISHED) == 1
    assert {h.finish_reason for h in search.finished} == {"length"}
