"""The scheduler: who goes first, who gives way, who waits for whom; and that none of it changes a token."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvist.cache.room import loss
from kvist.engine import scheduler
from kvist.engine.engine import Engine
from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.events import EventKind

MakeEngine = Callable[..., Engine]


def greedy(count: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)


def prompt(length: int, seed: int = 1) -> list[int]:
    return [(seed * 37 + i * i * 7 + i) % 300 for i in range(length)]


def drain(engine: Engine) -> dict[str, list[int]]:
    """Step until nothing is left; tokens by request, in the order in which requests ended."""
    found: dict[str, list[int]] = {}
    ended: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            found.setdefault(output.request_id, []).append(output.token_id or 0)
            if output.finish_reason:
                ended[output.request_id] = found[output.request_id]
    return ended


def alone(make_engine: MakeEngine, ids: list[int], count: int) -> list[int]:
    engine = make_engine(enable_prefix_caching=False)
    return [output.token_id or 0 for output in engine.stream(ids, greedy(count))]


# --- budget: the worst gap
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [8, 64, 512])
def test_long_prompts_never_cost_a_running_request_a_step(make_engine: MakeEngine, budget: int) -> None:
    """The gap between two tokens of each running request is one step, and no step is over the budget.

    So the worst gap is the time of one budgeted step, half of the two that are allowed.
    """
    engine = make_engine(pages=256, max_num_batched_tokens=budget)
    talking = {engine.submit(prompt(3, seed), greedy(120)) for seed in range(4)}
    while any(sequence.uncomputed > 1 for sequence in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()  # until all four talk
    rows: list[int] = []
    step = 0
    while talking:
        if step % 5 == 0 and step < 60:
            engine.submit(prompt(450, 10 + step), greedy(3))
        before = engine.runner.kv_projections
        outputs = {output.request_id: output for output in engine.step()}
        rows.append(engine.runner.kv_projections - before)
        assert talking <= outputs.keys(), f"step {step} gave {sorted(outputs)}"
        talking = {name for name in talking if outputs[name].finish_reason is None}
        step += 1
    assert max(rows) == min(budget, 4 + 450)  # the prompts did fill what was left of it
    drain(engine)


def test_more_branches_than_the_budget_take_turns(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_batched_tokens=4)
    params = SamplingParams(temperature=1.0, seed=1, n=10, max_tokens=12, ignore_eos=True)
    name = engine.submit(prompt(9), params)
    last: dict[int, int] = {}
    worst = step = 0
    while engine.has_work:
        step += 1
        for output in engine.step():
            assert output.request_id == name
            worst = max(worst, step - last.get(output.index, step))
            last[output.index] = step
    assert len(last) == 10
    assert worst == 3  # ten of them, four a step


# --- priorities
# --------------------------------------------------------------------------------------------------------------------


def test_lower_priorities_run_first_and_equals_in_order_of_arrival(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1)
    for name, priority in [("a", 0), ("b", 1), ("c", 0), ("d", -1), ("e", 1), ("f", -1)]:
        engine.submit(prompt(5), greedy(2), request_id=name, priority=priority)
    assert list(drain(engine)) == ["d", "f", "a", "c", "b", "e"]


def test_beams_have_priorities_too(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1)
    engine.submit(prompt(5), greedy(2), request_id="text")
    engine.submit_beams(prompt(5), BeamSearchParams(2, 3, ignore_eos=True), request_id="beams", priority=-1)
    assert list(drain(engine)) == ["beams", "text"]


def test_nobody_starves_behind_better_priorities(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of better requests that never ends holds a worse one up for PATIENCE steps a level, and no longer."""
    monkeypatch.setattr(scheduler, "PATIENCE", 20)
    engine = make_engine(max_num_seqs=1)
    engine.submit(prompt(5, 1), greedy(2), request_id="patient", priority=2)
    ended: list[str] = []
    for step in range(200):
        engine.submit(prompt(5, 2), greedy(2), request_id=f"pushy-{step}", priority=0)
        ended += [output.request_id for output in engine.step() if output.finish_reason]
        if "patient" in ended:
            break
    # all that came within its head start of 2 levels x 20 steps went first, two steps each, and nobody else
    assert ended == [*(f"pushy-{i}" for i in range(40)), "patient"]
    for step in range(200):
        engine.cancel(f"pushy-{step}")


# --- preemption
# --------------------------------------------------------------------------------------------------------------------


def preempted(engine: Engine, run: Callable[[], dict[str, list[int]]]) -> tuple[list[str | None], dict[str, list[int]]]:
    with engine.events.subscribe(1 << 16) as subscription:
        found = run()
        return [e.request for e in subscription.drain() if e.kind == EventKind.REQUEST_PREEMPTED], found


def test_the_victim_is_who_loses_least_not_who_came_last(make_engine: MakeEngine) -> None:
    """`short` came before `long`, and has less to lose."""
    engine = make_engine(pages=12, enable_prefix_caching=False)
    engine.submit(prompt(30, 1), greedy(60), request_id="first")
    engine.submit(prompt(18, 2), greedy(20), request_id="short")
    engine.submit(prompt(100, 3), greedy(20), request_id="long")
    victims, found = preempted(engine, lambda: drain(engine))
    assert victims[0] == "short"
    assert found == {
        "first": alone(make_engine, prompt(30, 1), 60),
        "short": alone(make_engine, prompt(18, 2), 20),
        "long": alone(make_engine, prompt(100, 3), 20),
    }


def test_sealed_pages_are_no_loss_while_there_is_room(make_engine: MakeEngine) -> None:
    """With prefix caching the long one loses only its unsealed tail, which is shorter; coming back is mostly a hit."""
    engine = make_engine(pages=12)
    engine.submit(prompt(30, 1), greedy(20), request_id="first")
    engine.submit(prompt(28, 2), greedy(20), request_id="short")
    engine.submit(prompt(114, 3), greedy(20), request_id="long")
    before = engine.runner.kv_projections
    victims, found = preempted(engine, lambda: drain(engine))
    assert victims and victims[0] == "long"
    assert found["long"] == alone(make_engine, prompt(114, 3), 20)
    least = 30 + 28 + 114 + 3 * 19
    assert engine.runner.kv_projections - before < least + 60  # nowhere near the prompt again


def test_a_page_that_others_hold_makes_no_victim(make_engine: MakeEngine) -> None:
    """`twin` holds nothing alone, so releasing it would give no room."""
    engine = make_engine(pages=8)
    engine.submit(prompt(40, 1), greedy(50), request_id="first")
    engine.step()
    engine.submit(prompt(33, 1), greedy(40), request_id="twin")  # two of its pages are the first one's
    engine.submit(prompt(33, 2), greedy(12), request_id="other")
    engine.step()
    twin, other = (s for s in engine.scheduler.running if s.request_id != "first")
    assert loss(engine.manager, twin.table, [3])[0]
    assert loss(engine.manager, other.table, [3]) == (False, 33)
    found = drain(engine)
    assert found["twin"] == alone(make_engine, prompt(33, 1), 40)[1:]  # the first came above
    assert found["other"] == alone(make_engine, prompt(33, 2), 12)[1:]


def test_worse_priorities_give_way_first(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=9, enable_prefix_caching=False)
    engine.submit(prompt(28, 3), greedy(40), request_id="worst", priority=2)
    for name, seed in (("a", 1), ("b", 2)):
        engine.submit(prompt(28, seed), greedy(40), request_id=name)
    victims, found = preempted(engine, lambda: drain(engine))
    assert victims[0] == "worst"
    assert "a" not in victims  # the first of the order always goes on
    assert found["worst"] == alone(make_engine, prompt(28, 3), 40)


def test_a_prompt_takes_what_pages_are_left_and_preempts_nobody(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=8, max_num_batched_tokens=40)
    engine.submit(prompt(20, 1), greedy(40), request_id="talks")
    engine.step()
    engine.submit(prompt(100, 2), greedy(8), request_id="long")
    computed = []
    for _ in range(5):
        assert "talks" in {output.request_id for output in engine.step()}
        computed.append(engine.scheduler.running[-1].computed)
    assert engine.scheduler.preemptions == 0
    assert computed == [39, 78, 96, 96, 96]  # six of eight pages; then it waits with what it has
    assert drain(engine)["long"] == alone(make_engine, prompt(100, 2), 8)


# --- common prefixes
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [16, 50, 512])
@pytest.mark.parametrize("common", [16, 48, 83])
def test_a_prefix_that_many_bring_at_once_is_computed_once(make_engine: MakeEngine, budget: int, common: int) -> None:
    engine = make_engine(pages=256, max_num_batched_tokens=budget)
    prompts = [[*prompt(common), *prompt(20, 5 + i)] for i in range(6)]
    names = [engine.submit(ids, greedy(4)) for ids in prompts]
    found = drain(engine)
    assert [found[name] for name in names] == [alone(make_engine, ids, 4) for ids in prompts]
    assert engine.runner.kv_projections == common + 6 * (20 + 3)


def test_equal_prompts_are_computed_once_but_for_the_last_token(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=64, max_num_batched_tokens=32)
    for _ in range(5):
        engine.submit(prompt(64), greedy(1))
    drain(engine)
    assert engine.runner.kv_projections == 64 + 4


def test_salts_do_not_wait_for_each_other(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=64)
    for salt in (b"a", b"b"):
        engine.submit(prompt(64), greedy(1), salt=salt)
    engine.step()
    assert engine.runner.kv_projections == 128


@pytest.mark.parametrize("leave", ["cancel", "preempt"])
def test_who_waits_for_one_that_is_gone_goes_on_alone(make_engine: MakeEngine, leave: str) -> None:
    engine = make_engine(pages=64, max_num_batched_tokens=20)
    first = engine.submit(prompt(90), greedy(3))
    second = engine.submit(prompt(90), greedy(3))
    engine.step()
    assert [s.request_id for s in engine.scheduler.waiting] == [second]
    if leave == "cancel":
        engine.cancel(first)
    else:
        engine.scheduler.preempt(engine.scheduler.running[0])
    assert drain(engine)[second] == alone(make_engine, prompt(90), 3)
    assert engine.runner.kv_projections <= 90 + 3 + 20 + (3 if leave == "preempt" else 0)


def test_who_waits_for_a_prefix_holds_nobody_else_up(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=64, max_num_batched_tokens=64)
    engine.submit(prompt(48), greedy(3), request_id="first")
    engine.submit(prompt(48), greedy(3), request_id="same")
    engine.submit(prompt(10, 7), greedy(3), request_id="other")
    assert {output.request_id for output in engine.step()} == {"first", "other"}
    assert {output.request_id for output in engine.step()} == {"first", "other", "same"}
    drain(engine)


def test_nobody_is_held_for_more_steps_than_it_has_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=64)
    for _ in range(2):
        engine.submit(prompt(48), greedy(1))
    engine.scheduler.waiting[1].held = 48  # however that came
    engine.step()
    assert engine.runner.kv_projections == 2 * 48
