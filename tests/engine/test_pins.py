"""Pins: prefixes that stay, within a limit, and never in the way of a request that was taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvist.config import EngineConfig
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.errors import RequestError, UsageError

MakeEngine = Callable[..., Engine]
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def prompt(length: int, seed: int = 1) -> list[int]:
    return [(seed * 37 + i * i * 7 + i) % 300 for i in range(length)]


def drain(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.manager.check_integrity()


def cached(engine: Engine, ids: list[int], salt: bytes = b"") -> int:
    return list(engine.stream(ids, SHORT, salt=salt))[-1].metrics.cached_tokens


def press(engine: Engine) -> None:
    """Fill the pool with others."""
    for seed in range(20, 26):
        list(engine.stream(prompt(90, seed), SHORT))
        engine.manager.check_integrity()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pinned_prefix_stays_under_pressure_until_it_is_unpinned(make_engine: MakeEngine, when: str) -> None:
    engine = make_engine(pages=16)
    if when == "after":  # it is there already when it is pinned
        list(engine.stream(prompt(50), SHORT))
    engine.submit(prompt(50), SHORT, request_id="system", pin=True)
    drain(engine)
    assert engine.manager.stats().pinned == engine.manager.stats().live == 3
    press(engine)
    engine.manager.flush()
    assert cached(engine, prompt(50)) == 48
    assert engine.unpin("system") == 3
    assert engine.unpin("system") == 0
    assert (engine.manager.stats().pinned, engine.manager.stats().live) == (0, 0)
    press(engine)
    assert cached(engine, prompt(50)) == 0


def test_prefixes_that_are_pinned_twice_count_once_and_stay_until_both_are_gone(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=20)
    engine.submit(prompt(66), SHORT, request_id="one", pin=True)
    engine.submit([*prompt(66)[:64], *prompt(17, 9)], SHORT, request_id="two", pin=True)  # one page more: the limit
    drain(engine)
    assert engine.manager.stats().pinned == 5
    assert engine.unpin("one") == 0
    press(engine)
    assert cached(engine, prompt(66)) == 64
    assert engine.unpin() == 5


def test_the_limit_is_a_share_of_the_pool_and_the_refusal_has_the_arithmetic(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=20, max_pinned_share=0.2)
    engine.submit(prompt(48), SHORT, pin=True)
    with pytest.raises(RequestError, match=r"pinning 2 pages beside 3 would make 5, and 4 may be pinned"):
        engine.submit(prompt(40, 2), SHORT, pin=True)
    engine.submit(prompt(20, 2), SHORT, pin=True)
    engine.submit(prompt(15, 3), SHORT, pin=True)  # no full page: nothing to keep
    drain(engine)
    assert engine.manager.stats().pinned == 4
    for wrong in (-0.1, 1.1, True, "a"):
        with pytest.raises(UsageError, match="max_pinned_share"):
            EngineConfig(max_pinned_share=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="prefix caching is switched off"):
        make_engine(enable_prefix_caching=False).submit(prompt(40), SHORT, pin=True)
    engine.submit(prompt(20, 2), SHORT, request_id="req-2")
    with pytest.raises(UsageError, match="req-2"):
        engine.submit(prompt(20, 2), SHORT, request_id="req-2", pin=True)
    drain(engine)


def test_a_pin_goes_with_a_request_that_is_cancelled_before_its_first_token(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_batched_tokens=20)
    engine.submit(prompt(60), SHORT, request_id="early", pin=True)
    engine.step()
    engine.cancel("early")
    assert engine.manager.pins.names == [] and engine.manager.stats().live == 0
    engine.submit(prompt(60), SHORT, request_id="late", pin=True)
    while not engine.step():
        pass
    engine.cancel("late")
    assert engine.manager.stats().pinned == 3


def test_whoever_was_taken_can_run_to_its_end_beside_all_pins(make_engine: MakeEngine) -> None:
    engine = make_engine(pages=8)
    long = SamplingParams(temperature=0.0, max_tokens=96, ignore_eos=True)
    engine.submit(prompt(32), SHORT, request_id="pinned", pin=True)
    drain(engine)
    with pytest.raises(RequestError, match=r"112 tokens take 7 pages, and 2 of 8 pages are pinned"):
        engine.submit(prompt(16, 2), long)
    engine.submit(prompt(32), long, request_id="same")  # all 8 pages, two of them the pinned ones
    with pytest.raises(RequestError, match="pinning 1 pages beside 2 would leave 5 of 8"):
        make = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        engine.manager.pins.limit = 8
        engine.submit(prompt(16, 3), make, pin=True)
    drain(engine)
    assert engine.unpin() == 2


def test_pins_are_of_a_salt(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.submit(prompt(40), SHORT, salt=b"a", pin=True)
    drain(engine)
    engine.manager.flush()
    assert cached(engine, prompt(40), b"b") == 0
    assert cached(engine, prompt(40), b"a") == 32


@pytest.mark.parametrize("priority", [1001, -1001, 0.5, True, None])
def test_priorities_out_of_range_are_refused(make_engine: MakeEngine, priority: object) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="priority"):
        engine.submit(prompt(5), SHORT, priority=priority)  # type: ignore[arg-type]
    assert not engine.has_work
