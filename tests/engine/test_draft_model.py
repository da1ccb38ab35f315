"""A draft model: its cache follows the sequences, it shares the memory, and it changes no answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from drafts import DRAFT, DRAWN, GREEDY, MIXED, MakeEngine, plain, prompt, transcripts
from kvist.engine import sequence as sequences
from kvist.engine.params import RequestMetrics, SamplingParams
from kvist.engine.speculative.draft import DraftProposer
from kvist.errors import CapacityError, UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import Model, load_model
from kvist.verify.speculative import shaken


@pytest.mark.parametrize("params", [GREEDY, DRAWN])
def test_the_model_as_its_own_draft_is_always_right(
    make_engine: MakeEngine, tiny_model: Model, params: SamplingParams
) -> None:
    """Greedy and drawn: the draws share their random numbers."""
    request = (prompt(20), replace(params, max_tokens=1 + 4 * 12))
    engine = make_engine(speculative_config=DRAFT, draft=tiny_model)
    assert transcripts(engine, [request]) == plain(make_engine, [request])
    assert engine.steps == 1 + 12  # four tokens a step
    assert engine.speculation.accepted_tokens == engine.speculation.drafted_tokens == 36


def test_a_draft_model_in_a_batch_costs_one_pass_a_position(make_engine: MakeEngine, tiny_model: Model) -> None:
    requests = [(prompt(10 + seed, seed), replace(GREEDY, max_tokens=41)) for seed in range(5)]
    engine = make_engine(speculative_config=DRAFT, draft=tiny_model)
    proposer = engine.speculation.proposer
    assert isinstance(proposer, DraftProposer)
    passes = []
    forward = proposer.runner.forward
    proposer.runner.forward = lambda pieces: (passes.append(len(pieces)), forward(pieces))[1]
    assert transcripts(engine, requests) == plain(make_engine, requests)
    assert passes == [5] * 3 * 10


def test_a_draft_model_that_often_errs(make_engine: MakeEngine, tiny_model: Model) -> None:
    requests = [*MIXED[:3], (prompt(33, 9), replace(GREEDY, max_tokens=90))]
    for options in (
        {},
        {"pages": 9},
        {"max_num_batched_tokens": 9},
        {"page_size": 64},
        {"enable_prefix_caching": False},
    ):
        engine = make_engine(speculative_config=DRAFT, draft=shaken(tiny_model), **options)
        assert transcripts(engine, requests) == plain(make_engine, requests)
        totals = engine.speculation
        assert 0 < totals.accepted_tokens < totals.drafted_tokens
        drafting = totals.proposer.manager
        assert drafting.stats().live == 0  # its tables went with their sequences
        drafting.check_integrity()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_draft_models_cache_follows_whatever_becomes_of_its_guesses(
    make_engine: MakeEngine, tiny_model: Model, data: st.DataObject
) -> None:
    """However many guesses came true, its next ones are those of a draft model that never saw the sequence."""

    def proposer(**options: object) -> DraftProposer:
        found = make_engine(speculative_config=DRAFT, draft=tiny_model, **options).speculation.proposer
        assert isinstance(found, DraftProposer)
        return found

    following = proposer(page_size=data.draw(st.sampled_from([16, 32])), max_num_batched_tokens=64)
    fresh = proposer(enable_prefix_caching=False)
    params = data.draw(st.sampled_from([GREEDY, DRAWN]))
    ids = prompt(data.draw(st.sampled_from([1, 14, 15, 16, 30])))
    sequence = sequences.Sequence("s", ids, len(ids), params, 500, frozenset(), 7, b"", RequestMetrics(len(ids)))
    for _ in range(data.draw(st.integers(1, 6))):
        limit = data.draw(st.integers(1, 6))
        (guesses,) = following.propose({sequence: limit}).values()
        twin = replace(sequence, tokens=list(sequence.tokens))
        assert list(fresh.propose({twin: limit}).values()) == [guesses]
        assert len(guesses) == limit
        fresh.forget(twin)
        right = data.draw(st.integers(0, limit))
        sequence.tokens += guesses[:right] + data.draw(st.lists(st.integers(0, 299), min_size=not right, max_size=3))
    following.forget(sequence)
    assert following.manager.stats().live == 0


def test_a_draft_model_publishes_no_guess(make_engine: MakeEngine, tiny_model: Model) -> None:
    """Its pages are those of the sequences: as many are sealed as in an engine that runs the same tokens plainly."""
    request = (prompt(14), replace(GREEDY, max_tokens=100))
    reference = make_engine()
    (expected,) = transcripts(reference, [request])
    engine = make_engine(speculative_config=DRAFT, draft=shaken(tiny_model))
    assert transcripts(engine, [request]) == [expected]
    drafting = engine.speculation.proposer.manager
    assert drafting.counters.pages_sealed <= reference.manager.counters.pages_sealed
    text = [*request[0], *expected.tokens]
    with drafting.match(text) as match:
        assert len(match.pages) == len(drafting.ledgers[0].index) >= 6  # all that is published is a part of the text


def test_another_model_of_the_same_vocabulary(make_engine: MakeEngine, backend: CpuBackend, tmp_path: Path) -> None:
    other = load_model(tiny.write_folder(tiny.MODELS["llama-tied"], tmp_path), backend)
    engine = make_engine(speculative_config=DRAFT, draft=other)
    requests = [(prompt(40, 1), replace(GREEDY, max_tokens=300)), *MIXED]
    runner, past = engine.speculation.proposer.runner, []
    forward = runner.forward
    runner.forward = lambda pieces: (past.extend(p.start + len(p.tokens) for p in pieces), forward(pieces))[1]
    assert transcripts(engine, requests) == plain(make_engine, requests)
    totals = engine.speculation
    assert 0 < totals.accepted_tokens < totals.drafted_tokens / 5
    assert max(past) == 256  # the first answer goes on to 340: there a model of 256 positions has nothing to say


def test_a_draft_model_of_another_vocabulary_is_refused(
    make_engine: MakeEngine, backend: CpuBackend, tmp_path: Path
) -> None:
    odd = load_model(tiny.write_folder(tiny.MODELS["llama-odd"], tmp_path), backend)
    with pytest.raises(UsageError, match=r"vocabulary of 301 tokens and the model one of 300.*same tokenizer"):
        make_engine(speculative_config=DRAFT, draft=odd)


def test_both_pools_fit_the_memory_that_was_given(make_engine: MakeEngine, tiny_model: Model) -> None:
    alone = make_engine(kv_cache_memory_bytes=1 << 20)
    both = make_engine(kv_cache_memory_bytes=1 << 20, speculative_config=DRAFT, draft=tiny_model)
    pools = (both.manager.ledgers[0].pool, both.speculation.proposer.manager.ledgers[0].pool)
    assert pools[0].num_pages == pools[1].num_pages == alone.manager.ledgers[0].pool.num_pages // 2
    assert sum(pool.nbytes for pool in pools) <= 1 << 20
    with pytest.raises(CapacityError, match="draft model included"):
        make_engine(pages=4, max_model_len=100, speculative_config=DRAFT, draft=tiny_model)
