"""Speculative decoding changes how many steps an answer takes, and nothing else: not a token, not a bit of a logit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drafts import DRAWN, GREEDY, MIXED, NGRAM, WRONGS, MakeEngine, Scripted, plain, prompt, scripted, transcripts
from kvist.config import SpeculativeConfig
from kvist.engine.params import SamplingParams
from kvist.events import EventKind


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("wrong", range(len(WRONGS)))
def test_a_batch_of_mixed_requests_has_the_same_tokens_and_bits(
    make_engine: MakeEngine, wrong: int, page_size: int
) -> None:
    engine = scripted(make_engine, MIXED, WRONGS[wrong], page_size=page_size)
    assert transcripts(engine, MIXED) == plain(make_engine, MIXED)
    assert engine.speculation.drafted_tokens > 0
    # pages that were sealed meanwhile are found, and right
    again = transcripts(engine, MIXED)
    assert again == plain(make_engine, MIXED)
    sealed = [
        (len(ids) + len(found.tokens) - 1) // page_size * page_size
        for (ids, _), found in zip(MIXED, again, strict=True)
    ]
    assert [found.metrics.cached_tokens for found in again] == [
        min(len(ids) - 1, full) for (ids, _), full in zip(MIXED, sealed, strict=True)
    ]
    longer = [([*ids, *found.tokens, 3], GREEDY) for (ids, _), found in zip(MIXED, again, strict=True)]
    engine.speculation = None
    after = transcripts(engine, longer)
    assert after == plain(make_engine, longer)
    assert [found.metrics.cached_tokens for found in after] == sealed


@pytest.mark.parametrize("params", [GREEDY, DRAWN])
def test_prompt_lookup_has_the_same_tokens_and_bits(make_engine: MakeEngine, params: SamplingParams) -> None:
    requests = [(prompt(25, seed) * 2, replace(params, max_tokens=80)) for seed in (1, 2, 3)]
    engine = make_engine(speculative_config=NGRAM)
    assert transcripts(engine, requests) == plain(make_engine, requests)
    assert engine.speculation.drafted_tokens > 0


def test_a_right_draft_saves_steps(make_engine: MakeEngine) -> None:
    request = (prompt(20), replace(GREEDY, max_tokens=50))
    engine = scripted(make_engine, [request], drafts=6)
    assert transcripts(engine, [request]) == plain(make_engine, [request])
    assert engine.steps == 1 + 49 // 7  # the prompt's, then seven tokens a step
    assert engine.speculation.accepted_tokens == engine.speculation.drafted_tokens == 6 * 7


def test_the_first_row_is_kept_where_the_first_draft_is_wrong(make_engine: MakeEngine) -> None:
    request = (prompt(20), GREEDY)
    engine = scripted(make_engine, [request], lambda number: 0)
    assert transcripts(engine, [request]) == plain(make_engine, [request])
    assert engine.steps == 40
    assert engine.speculation.accepted_tokens == 0


def test_a_stop_token_inside_an_accepted_run_ends_the_answer_there(make_engine: MakeEngine) -> None:
    (whole,) = plain(make_engine, [(prompt(20), DRAWN)])
    for at in range(1, 12):
        stop = whole.tokens[at]
        if stop in whole.tokens[:at]:
            continue
        params = replace(DRAWN, stop_token_ids=[stop])
        engine = scripted(make_engine, [(prompt(20), DRAWN)])
        (found,) = transcripts(engine, [(prompt(20), params)])
        assert found.tokens == whole.tokens[: at + 1]
        assert found.reasons == [None] * at + ["stop"]
        assert found.rows == whole.rows[: at + 1]
        assert engine.manager.stats().live == 0


@pytest.mark.parametrize("count", range(1, 12))
def test_no_draft_goes_beyond_the_limit(make_engine: MakeEngine, count: int) -> None:
    request = (prompt(20), replace(GREEDY, max_tokens=count))
    engine = scripted(make_engine, [request], drafts=6)
    (found,) = transcripts(engine, [request])
    assert [found] == plain(make_engine, [request])
    assert found.reasons[-1] == "length"
    assert found.metrics.computed_tokens == 20 + count - 1  # not a row too many: all drafts were right


def test_the_last_slot_of_the_context_can_be_drafted(make_engine: MakeEngine) -> None:
    request = (prompt(10), SamplingParams(0.0, max_tokens=None, ignore_eos=True))
    reference = make_engine(pages=4)
    (expected,) = transcripts(reference, [request])
    engine = make_engine(pages=4, speculative_config=SpeculativeConfig("ngram", 6, adaptive=False))
    engine.speculation.proposer = Scripted({tuple(request[0]): expected.tokens})
    (found,) = transcripts(engine, [request])
    assert found == expected
    assert len(found.tokens) == 54


def test_streams_yield_every_token_in_order(make_engine: MakeEngine) -> None:
    requests = [(prompt(20, 1), GREEDY), (prompt(9, 2), DRAWN)]
    engine = scripted(make_engine, requests, WRONGS[2])
    streams = [engine.stream(ids, params) for ids, params in requests]
    found: list[list[int]] = [[], []]
    for _ in range(11):
        for tokens, stream in zip(found, streams, strict=True):
            tokens.append(next(stream).token_id)
    for tokens, stream in zip(found, streams, strict=True):
        tokens += [output.token_id for output in stream]
    assert found == [expected.tokens for expected in plain(make_engine, requests)]


# --- what is told
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", range(len(WRONGS)))
def test_metrics_add_up(make_engine: MakeEngine, wrong: int) -> None:
    engine = scripted(make_engine, MIXED, WRONGS[wrong])
    with engine.events.subscribe(1 << 16) as subscription:
        found = [transcript.metrics for transcript in transcripts(engine, MIXED)]
        events = [event for event in subscription.drain() if event.kind == EventKind.REQUEST_VERIFIED]
    for metrics in found:
        assert 0 <= metrics.accepted_tokens <= metrics.drafted_tokens
        missed = metrics.drafted_tokens - metrics.accepted_tokens
        uncached = metrics.prompt_tokens - metrics.cached_tokens
        assert metrics.computed_tokens == metrics.kv_projections == uncached + metrics.generated_tokens - 1 + missed
    totals = engine.speculation
    assert totals.drafted_tokens == sum(metrics.drafted_tokens for metrics in found) == sum(e.detail for e in events)
    assert totals.accepted_tokens == sum(metrics.accepted_tokens for metrics in found) == sum(e.count for e in events)
    assert totals.verified_steps == len(events)
    assert engine.runner.kv_projections == sum(metrics.kv_projections for metrics in found)
    assert found[3].drafted_tokens == 0
    assert found[3].acceptance_rate is None
    assert found[0].acceptance_rate == found[0].accepted_tokens / found[0].drafted_tokens
