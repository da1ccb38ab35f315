"""The engine: what it promises to who submits, steps, streams and cancels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams, TokenOutput
from kvist.errors import InternalError, RequestError, UsageError
from kvist.events import EventKind

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def prompt(length: int, seed: int = 1) -> list[int]:
    return [(seed * 37 + i * i * 7 + i) % 300 for i in range(length)]


def drain(engine: Engine) -> dict[str, list[TokenOutput]]:
    """Step until nothing is left; outputs by request."""
    outputs: dict[str, list[TokenOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def answer(engine: Engine, ids: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return tokens(list(engine.stream(ids, params)))


def test_a_request_runs_to_its_length(make_engine: MakeEngine) -> None:
    engine = make_engine()
    name = engine.submit(prompt(20), GREEDY)
    outputs = drain(engine)[name]
    assert len(outputs) == 12
    assert [output.finish_reason for output in outputs] == [None] * 11 + ["length"]
    metrics = outputs[-1].metrics
    assert (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens) == (20, 0, 12)
    assert metrics.computed_tokens == 31  # the last token is never run
    assert metrics.arrival_time <= metrics.started_time <= metrics.first_token_time <= metrics.finished_time
    assert engine.manager.stats().live == 0
    assert not engine.has_work
    assert engine.step() == []


def test_one_budget_a_step_and_decodes_come_first(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_batched_tokens=10)
    first = engine.submit(prompt(5, 1), GREEDY)
    assert [output.request_id for output in engine.step()] == [first]
    long = engine.submit(prompt(60, 2), GREEDY)
    seen = []
    while True:
        outputs = {output.request_id: output for output in engine.step()}
        assert first in outputs or len(seen) >= 11  # a long prompt never stops who is generating
        seen.append(engine.scheduler.running[-1].computed if engine.scheduler.running else 0)
        if long in outputs:
            break
    assert seen[:6] == [9, 18, 27, 36, 45, 54]  # one of ten goes to the decode each time
    drain(engine)


def test_requests_join_and_leave_while_others_run(make_engine: MakeEngine) -> None:
    alone = {seed: answer(make_engine(), prompt(10 * seed, seed)) for seed in (1, 2, 3, 4)}
    engine = make_engine(max_num_seqs=2)
    names = {engine.submit(prompt(10 * seed, seed), GREEDY): seed for seed in (1, 2)}
    found: dict[int, list[int]] = {seed: [] for seed in alone}
    for _ in range(4):
        for output in engine.step():
            found[names[output.request_id]].append(output.token_id or 0)
    names |= {engine.submit(prompt(10 * seed, seed), GREEDY): seed for seed in (3, 4)}
    assert len(engine.scheduler.running) == 2  # never more than asked for
    assert len(engine.scheduler.waiting) == 2
    for name, outputs in drain(engine).items():
        found[names[name]] += tokens(outputs)
    assert found == alone


@pytest.mark.parametrize("steps", range(0, 14, 2))
def test_cancelling_at_any_token_frees_everything(make_engine: MakeEngine, steps: int) -> None:
    engine = make_engine(max_num_batched_tokens=7)
    gone, stays = engine.submit(prompt(30, 1), GREEDY), engine.submit(prompt(9, 2), GREEDY)
    for _ in range(steps):
        engine.step()
    assert engine.cancel(gone)
    assert not engine.cancel(gone)
    outputs = drain(engine)
    assert gone not in outputs
    assert engine.manager.stats().live == 0
    if steps == 0:
        assert tokens(outputs[stays]) == answer(make_engine(), prompt(9, 2))


def test_leaving_a_stream_cancels_its_request(make_engine: MakeEngine) -> None:
    engine = make_engine()
    stream = engine.stream(prompt(10), GREEDY)
    next(stream)
    assert engine.has_work
    stream.close()
    assert not engine.has_work
    assert engine.manager.stats().live == 0


def test_following_comes_back_after_every_step_and_leaving_it_cancels(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_batched_tokens=16)
    steps = engine.follow(prompt(40), GREEDY)
    assert [len(next(steps)) for _ in range(5)] == [0, 0, 1, 1, 1]  # 16 + 16 + 8 tokens of the prompt
    steps.close()
    steps = engine.follow(prompt(40, 2), GREEDY, priority=-1, pin=True)
    assert next(steps) == []
    assert next(iter(engine.answers.requests.values())).open[0].priority == -1
    assert len(engine.manager.pins) == 2
    steps.close()  # before its first token: its pin goes with it
    assert not engine.has_work
    assert (engine.manager.stats().live, len(engine.manager.pins)) == (0, 0)


def test_streams_side_by_side_lose_nothing(make_engine: MakeEngine) -> None:
    alone = [answer(make_engine(), prompt(10, seed)) for seed in (1, 2)]
    engine = make_engine()
    streams = [engine.stream(prompt(10, seed), GREEDY) for seed in (1, 2)]
    found: list[list[int]] = [[], []]
    for _ in range(3):
        for tokens_of, stream in zip(found, streams, strict=True):
            tokens_of.append(next(stream).token_id or 0)
    for tokens_of, stream in zip(found, streams, strict=True):  # the first to its end, then what the second has kept
        tokens_of += [output.token_id or 0 for output in stream]
    assert found == alone
    assert not engine.has_work


def test_the_youngest_is_preempted_and_gives_the_same_tokens(make_engine: MakeEngine) -> None:
    prompts = {f"r{seed}": prompt(28, seed) for seed in (1, 2, 3)}
    undisturbed = {
        name: answer(make_engine(), ids, SamplingParams(0.0, max_tokens=40, ignore_eos=True))
        for name, ids in prompts.items()
    }
    for caching in (False, True):
        engine = make_engine(pages=9, enable_prefix_caching=caching)
        with engine.events.subscribe() as subscription:
            for name, ids in prompts.items():
                engine.submit(ids, SamplingParams(0.0, max_tokens=40, ignore_eos=True), request_id=name)
            found = {name: tokens(outputs) for name, outputs in drain(engine).items()}
            preempted = [event.request for event in subscription.drain() if event.kind == EventKind.REQUEST_PREEMPTED]
        assert found == undisturbed
        assert preempted and preempted[0] == "r3"
        assert "r1" not in preempted  # the oldest always goes on
        assert engine.scheduler.preemptions == len(preempted)


def test_a_request_that_can_never_fit_is_refused_with_the_arithmetic(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=4)
    with pytest.raises(
        RequestError,
        match=r"40 prompt tokens \+ 30 max_tokens = 70 .* max_model_len is 64 .* 4 pages of 16 = 64 .* 24 tokens",
    ):
        engine.submit(prompt(40), SamplingParams(max_tokens=30))
    with pytest.raises(RequestError, match="64 tokens long and max_model_len is 64"):
        engine.submit(prompt(64), SamplingParams(max_tokens=None))
    with pytest.raises(RequestError, match="empty"):
        engine.submit([], GREEDY)
    with pytest.raises(RequestError, match="token id 300 is not in this model's vocabulary of 300"):
        engine.submit([1, 300], GREEDY)
    with pytest.raises(RequestError, match="token id -1"):
        engine.submit([-1], GREEDY)
    assert not engine.has_work  # nothing is left of a refused request
    assert (
        len(answer(engine, prompt(40), SamplingParams(0.0, max_tokens=24, ignore_eos=True))) == 24
    )  # what fits, to the last slot


def test_max_tokens_none_goes_to_the_end_of_the_context(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=4)
    outputs = list(engine.stream(prompt(10), SamplingParams(0.0, max_tokens=None, ignore_eos=True)))
    assert len(outputs) == 54
    assert outputs[-1].finish_reason == "length"


def test_stop_tokens_and_the_models_own_end(make_engine: MakeEngine) -> None:
    engine = make_engine()
    plain = answer(engine, prompt(10))
    outputs = list(
        engine.stream(prompt(10), SamplingParams(0.0, max_tokens=12, ignore_eos=True, stop_token_ids=[plain[4]]))
    )
    assert tokens(outputs) == plain[: plain.index(plain[4]) + 1]
    assert outputs[-1].finish_reason == "stop"


def test_the_uncached_baseline_counts_what_the_cache_saves(make_engine: MakeEngine) -> None:
    """Without a cache, token t projects K and V of tokens 1..t: n(n+1)/2 in all, 5,050 for 100; with it, n."""
    params = SamplingParams(0.0, max_tokens=100, ignore_eos=True)
    cached, uncached = make_engine(), make_engine(enable_cache=False)
    assert answer(cached, [5], params) == answer(uncached, [5], params)
    assert cached.runner.kv_projections == 100
    assert uncached.runner.kv_projections == 5050
    for engine, expected in ((cached, 5), (uncached, 15)):
        before = engine.runner.kv_projections
        engine.manager.flush()
        answer(engine, [7], SamplingParams(0.0, max_tokens=5, ignore_eos=True))
        assert engine.runner.kv_projections - before == expected


def test_a_prefix_hit_is_reported_and_not_computed_again(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = answer(engine, prompt(40))
    before = engine.runner.kv_projections
    outputs = list(engine.stream(prompt(40), GREEDY))
    assert tokens(outputs) == first
    assert outputs[-1].metrics.cached_tokens == 39  # all but the one whose logits are needed
    assert engine.runner.kv_projections - before == 12
    other = list(engine.stream([*prompt(40)[:20], 3, 1, 4], GREEDY))
    assert other[-1].metrics.cached_tokens == 20  # token by token, into the middle of a page


def test_salts_keep_tenants_apart(make_engine: MakeEngine) -> None:
    engine = make_engine()
    list(engine.stream(prompt(40), GREEDY, salt=b"a"))
    assert list(engine.stream(prompt(40), GREEDY, salt=b"b"))[-1].metrics.cached_tokens == 0
    assert list(engine.stream(prompt(40), GREEDY, salt=b"a"))[-1].metrics.cached_tokens == 39


def test_events_tell_a_requests_life(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with engine.events.subscribe() as subscription:
        name = engine.submit(prompt(20), SamplingParams(0.0, max_tokens=3, ignore_eos=True))
        outputs = drain(engine)[name]
        events = subscription.drain()
    told = [event.kind for event in events if event.kind.startswith("request")]
    assert told == [
        EventKind.REQUEST_QUEUED,
        EventKind.REQUEST_STARTED,
        *[EventKind.REQUEST_TOKEN] * 3,
        EventKind.REQUEST_FINISHED,
    ]
    assert [event.detail for event in events if event.kind == EventKind.REQUEST_TOKEN] == tokens(outputs)
    assert sum(event.kind == EventKind.PAGE_ALLOCATED for event in events) == 2
    assert sum(event.kind == EventKind.PAGE_SEALED for event in events) == 1
    assert events[-1].detail == "length"


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_after_preemption(make_engine: MakeEngine) -> None:
    params = [
        SamplingParams(temperature=0.9, top_k=50, top_p=0.95, seed=seed, max_tokens=30, ignore_eos=True)
        for seed in (7, 8, 9)
    ]
    alone = [answer(make_engine(), prompt(25, i), one) for i, one in enumerate(params)]
    engine = make_engine(pages=8, max_num_batched_tokens=13)
    names = [engine.submit(prompt(25, i), one) for i, one in enumerate(params)]
    outputs = drain(engine)
    assert [tokens(outputs[name]) for name in names] == alone
    assert engine.scheduler.preemptions > 0
    assert alone[0] != answer(make_engine(), prompt(25, 0), params[1])


def test_requests_without_a_seed_differ_but_repeat_from_run_to_run(make_engine: MakeEngine) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=20, ignore_eos=True)
    one, two = make_engine(), make_engine()
    first, second = answer(one, prompt(9), params), answer(one, prompt(9), params)
    assert first != second
    assert [first, second] == [answer(two, prompt(9), params), answer(two, prompt(9), params)]


def test_ids_are_unique_while_they_run(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit(prompt(5), GREEDY, request_id="mine")
    with pytest.raises(UsageError, match="mine"):
        engine.submit(prompt(5), GREEDY, request_id="mine")
    drain(engine)
    engine.submit(prompt(5), GREEDY, request_id="mine")
    drain(engine)


def test_integrity_is_checked_when_idle_if_asked(make_engine: MakeEngine) -> None:
    engine = make_engine(check_integrity=True)
    answer(engine, prompt(20))
    engine.manager.ledgers[0].allocator.refs[0] += 1
    with pytest.raises(InternalError):
        answer(engine, prompt(20))
    engine.manager.ledgers[0].allocator.refs[0] -= 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_submits_steps_and_cancels_gives_the_tokens_of_each_alone(
    make_engine: MakeEngine, data: st.DataObject
) -> None:
    """A small pool under random pressure: whoever finishes has the tokens it would have had alone, and nothing
    leaks.
    """
    engine = make_engine(
        pages=data.draw(st.integers(4, 10)),
        max_num_seqs=data.draw(st.integers(1, 5)),
        max_num_batched_tokens=data.draw(st.sampled_from([1, 5, 16, 64])),
        enable_prefix_caching=data.draw(st.booleans()),
    )
    submitted: dict[str, tuple[int, int]] = {}
    found: dict[str, list[int]] = {}
    finished: set[str] = set()
    for action in data.draw(st.lists(st.sampled_from(["submit", "step", "step", "step", "cancel"]), max_size=40)):
        if action == "submit":
            length, seed = data.draw(st.sampled_from([1, 15, 16, 17, 30])), data.draw(st.integers(0, 2))
            name = engine.submit(prompt(length, seed), GREEDY)
            submitted[name], found[name] = (length, seed), []
        elif action == "cancel" and submitted:
            engine.cancel(data.draw(st.sampled_from(sorted(submitted))))
        else:
            for output in engine.step():
                found[output.request_id].append(output.token_id or 0)
                finished |= {output.request_id} if output.finish_reason else set()
        engine.manager.check_integrity()
    for name, outputs in drain(engine).items():
        found[name] += tokens(outputs)
        finished.add(name)
    for name in finished:
        assert found[name] == expected_answer(make_engine, submitted[name])
    assert engine.manager.stats().live == 0


_ALONE: dict[tuple[int, int], list[int]] = {}


def expected_answer(make_engine: MakeEngine, key: tuple[int, int]) -> list[int]:
    if key not in _ALONE:
        _ALONE[key] = answer(make_engine(enable_prefix_caching=False), prompt(*key))
    return _ALONE[key]
