"""Pages, budget and pool under speculative decoding: no guess is published, nobody gives way to a draft."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drafts import DRAWN, GREEDY, WRONGS, MakeEngine, plain, prompt, scripted, transcripts


@pytest.mark.parametrize("wrong", range(len(WRONGS)))
def test_no_page_is_published_with_a_wrong_draft_in_it(make_engine: MakeEngine, wrong: int) -> None:
    requests = [(prompt(14, 1), replace(GREEDY, max_tokens=90)), (prompt(30, 2), replace(DRAWN, max_tokens=70))]
    reference = make_engine()
    transcripts(reference, requests)
    engine = scripted(make_engine, requests, WRONGS[wrong])
    transcripts(engine, requests)
    assert engine.manager.counters.pages_sealed == reference.manager.counters.pages_sealed
    for ids, params in requests:
        (answer,) = plain(make_engine, [(ids, params)])
        astray = [*ids, *answer.tokens[:20], (answer.tokens[20] + 1) % 300, *answer.tokens[21:40]]
        with engine.manager.match(astray) as match:
            assert match.cached == len(ids) + 20  # the true tokens, and not one of the guesses


def test_wrong_drafts_hold_no_page_after_the_step(make_engine: MakeEngine) -> None:
    request = (prompt(13), GREEDY)
    engine = scripted(make_engine, [request], lambda number: 0)
    engine.submit(*request)
    for _ in range(20):
        engine.step()
        (table,) = engine.manager.tables
        assert len(table.pages) == -(-table.computed // 16)  # six drafts reached into the next page
    while engine.has_work:
        engine.step()


def test_a_tiny_pool_under_pressure(make_engine: MakeEngine) -> None:
    requests = [(prompt(28, seed), replace(GREEDY, max_tokens=40)) for seed in (1, 2, 3)]
    for wrong in WRONGS:
        for caching in (False, True):
            engine = scripted(make_engine, requests, wrong, pages=9, enable_prefix_caching=caching)
            assert transcripts(engine, requests) == plain(make_engine, requests)
            assert engine.scheduler.preemptions > 0


def test_nobody_is_preempted_for_a_draft(make_engine: MakeEngine) -> None:
    """Two answers that just fit the pool together: drafts ask for more pages and are refused."""
    requests = [(prompt(16, seed), replace(GREEDY, max_tokens=48)) for seed in (1, 2)]
    engine = scripted(make_engine, requests, lambda number: 3, pages=8, enable_prefix_caching=False)
    assert transcripts(engine, requests) == plain(make_engine, requests)
    assert engine.scheduler.preemptions == 0
    assert engine.speculation.drafted_tokens > 0


def test_drafts_get_what_the_budget_leaves(make_engine: MakeEngine) -> None:
    requests = [(prompt(5, 1), GREEDY), (prompt(60, 2), GREEDY)]
    engine = scripted(make_engine, requests, max_num_batched_tokens=10)
    first = engine.submit(*requests[0])
    assert len(engine.step()) == 1
    assert len(engine.step()) == 7
    second = engine.submit(*requests[1])
    for _ in range(6):  # nine tokens of the prompt a step, one of the answer, and no room for drafts
        assert [output.request_id for output in engine.step()] == [first]
    outputs = engine.step()  # the prompt's last six, and three drafts
    assert [output.request_id for output in outputs].count(first) == 4
    assert [output.request_id for output in outputs].count(second) == 1
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("steps", range(9))
def test_cancelling_between_steps_frees_everything(make_engine: MakeEngine, steps: int) -> None:
    requests = [(prompt(30, 1), GREEDY), (prompt(9, 2), GREEDY)]
    engine = scripted(make_engine, requests, WRONGS[2], max_num_batched_tokens=12)
    gone, stays = (engine.submit(*request) for request in requests)
    outputs = [output for _ in range(steps) for output in engine.step()]
    assert engine.cancel(gone) == (gone not in [output.request_id for output in outputs if output.finish_reason])
    while engine.has_work:
        outputs += engine.step()
    answer = [output.token_id for output in outputs if output.request_id == stays]
    assert answer == plain(make_engine, requests[1:])[0].tokens
    assert engine.manager.stats().live == 0
    assert not engine.speculation.proposer.known


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_submits_steps_and_cancels(make_engine: MakeEngine, data: st.DataObject) -> None:
    """A small pool, small budgets, drafts that are wrong anywhere: whoever finishes has the tokens it has alone."""
    requests = [(prompt(length, seed), GREEDY) for length in (1, 15, 16, 30) for seed in (0, 1)]
    places = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=9))
    engine = scripted(
        make_engine,
        requests,
        lambda number: places[number % len(places)],
        adaptive=data.draw(st.booleans()),
        pages=data.draw(st.integers(5, 12)),
        max_num_seqs=data.draw(st.integers(1, 5)),
        max_num_batched_tokens=data.draw(st.sampled_from([1, 5, 16, 64])),
        enable_prefix_caching=data.draw(st.booleans()),
    )
    answers = engine.speculation.proposer.answers
    running: dict[str, list[int]] = {}
    found: dict[str, list[int]] = {}
    finished: set[str] = set()
    actions = data.draw(st.lists(st.sampled_from(["submit", "step", "step", "cancel"]), max_size=30))
    for action in [*actions, *["step"] * 400]:
        if action == "submit":
            ids, params = data.draw(st.sampled_from(requests))
            running[name := engine.submit(ids, params)] = ids
            found[name] = []
        elif action == "cancel" and running:
            engine.cancel(data.draw(st.sampled_from(sorted(running))))
        else:
            for output in engine.step():
                found[output.request_id].append(output.token_id)
                finished |= {output.request_id} if output.finish_reason else set()
        if not engine.has_work and action == "step":
            continue
        engine.manager.check_integrity()
    assert not engine.has_work
    for name in finished:
        assert found[name] == answers[tuple(running[name])]
    assert engine.manager.stats().live == 0
    assert not engine.speculation.proposer.known
