"""The scenarios of the contract.

Each runs the same tokens in two ways and counts the bits of the logits that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvist.cache.table import PageTable
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.errors import InternalError
from kvist.kernels.program import Floats
from kvist.verify import speculative
from kvist.verify.branches import branches
from kvist.verify.record import Bench, Difference, Prompt, Record, compare, run

ROWS = 32  # logits rows that a forced run keeps


def uncached(bench: Bench, expected: Record) -> Difference:
    """Every key and value recomputed for every token, against the cache."""
    with bench.engine(enable_cache=False, max_num_batched_tokens=2048) as engine:
        actual: dict[Prompt, Floats] = {}
        for prompt in bench.few:
            actual.update(run(engine, [prompt], bench.generated))
    return compare(expected, actual)


def chunks(size: int) -> Callable[[Bench, Record], Difference]:
    """Prompts computed `size` tokens a step, against whole."""

    def scenario(bench: Bench, expected: Record) -> Difference:
        return compare(expected, bench.alone(bench.few, max_num_batched_tokens=size))

    return scenario


def batch(size: int) -> Callable[[Bench, Record], Difference]:
    """Prompts in batches of `size`, of mixed lengths and ages, against alone.

    Each starts three steps after the one before.
    """

    def scenario(bench: Bench, expected: Record) -> Difference:
        difference = Difference()
        with bench.engine(enable_prefix_caching=False, max_num_seqs=size) as engine:
            order = _mixed(bench.prompts)
            for start in range(0, len(order), size):
                difference += compare(expected, run(engine, order[start : start + size], bench.generated, stagger=3))
        return difference

    return scenario


def page_size(size: int) -> Callable[[Bench, Record], Difference]:
    """Pages of `size` slots, against pages of 16."""

    def scenario(bench: Bench, expected: Record) -> Difference:
        return compare(expected, bench.alone(bench.few, page_size=size))

    return scenario


def one_thread(bench: Bench, expected: Record) -> Difference:
    """A single thread, against all."""
    return compare(expected, bench.alone(bench.few, backend=bench.one_thread))


def prefix_hit(bench: Bench, expected: Record) -> Difference:
    """Each prompt a second time, found in the cache, against a miss."""
    with bench.engine() as engine:
        for prompt in bench.few:
            run(engine, [prompt], bench.generated)
        again = _run_hits(engine, bench.few, bench.generated)
    return compare(expected, again)


def hit_mid_page(bench: Bench, expected: Record) -> Difference:
    """Prompts that leave a cached one inside a page, against a miss."""
    turned = [_turn(prompt, max(1, 2 * len(prompt) // 3)) for prompt in bench.few if len(prompt) > 3]
    fresh = bench.alone(turned)
    with bench.engine() as engine:
        for prompt in bench.few:
            run(engine, [prompt], 1)
        return compare(fresh, _run_hits(engine, turned, bench.generated))


def hit_on_generated(bench: Bench, expected: Record) -> Difference:
    """Prompts that go on after an answer the engine generated itself, against a miss."""
    with bench.engine() as engine:
        longer = []
        for prompt in bench.few:
            rows = run(engine, [prompt], bench.generated)[prompt]
            answer = tuple(int(token) for token in rows.argmax(1))
            longer.append(_turn(prompt + answer, len(prompt) + len(answer) - 3) + prompt[:5])
        actual = _run_hits(engine, longer, bench.generated)
    return compare(bench.alone(longer), actual)


def fork_and_rollback(bench: Bench, expected: Record) -> Difference:
    """A sequence forked and rolled back, against fresh runs of the same tokens.

    Its branches go on with tokens of their own.
    """
    difference = Difference()
    with bench.engine() as engine, bench.engine(enable_prefix_caching=False) as fresh:
        manager = engine.manager
        for prompt in bench.few:
            trunk = manager.open()
            force(engine, trunk, prompt)
            for branch in (prompt[-1:] * 3, tuple((7 * i + 1) % 97 for i in range(bench.generated)), prompt[:5]):
                half = len(branch) // 2
                twin = manager.fork(trunk)
                difference.add(anew(fresh, prompt + branch, len(branch)), force(engine, twin, branch))
                manager.rollback(twin, len(prompt) + half)
                other = tuple((token + 1) % 97 for token in branch)
                difference.add(anew(fresh, prompt + branch[:half] + other, len(other)), force(engine, twin, other))
                manager.release(twin)
            half = len(prompt) // 2
            manager.rollback(trunk, half)
            rest = _turn(prompt[half:], 0)
            difference.add(anew(fresh, prompt[:half] + rest, len(rest)), force(engine, trunk, rest))
            manager.release(trunk)
    return difference


def preempted(caching: bool) -> Callable[[Bench, Record], Difference]:
    """Two sequences in a pool that holds one and a half of them, against undisturbed.

    The younger is preempted and recomputed, with or without hits: twice as if others needed its pages, whoever loses
    least, and whenever they are needed.
    """

    def scenario(bench: Bench, expected: Record) -> Difference:
        difference = Difference()
        for prompt in bench.few:
            other = _turn(prompt, 0)
            fresh = {**expected, **bench.alone([other])}
            pages = -(-(len(prompt) + bench.generated - 1) // bench.config.page_size)  # the last token is never run
            size = (pages + max(1, pages // 2)) * bench.sharing.each
            # so many tokens a step that the younger grows large while the older generates
            budget = max(24, len(prompt) // 8)
            with bench.engine(
                kv_cache_memory_bytes=size, enable_prefix_caching=caching, max_num_batched_tokens=budget
            ) as engine:
                difference += compare(fresh, run(engine, [prompt, other], bench.generated, between=_disturb))
                if engine.scheduler.preemptions == 0 and pages > 1:
                    raise InternalError("the scenario was to preempt a sequence and did not")
        return difference

    return scenario


@dataclass(frozen=True, slots=True)
class Scenario:
    """A name for the table, and what to run; page_size: of the largest pages it asks for; cached: with a cache."""

    name: str
    run: Callable[[Bench, Record], Difference]
    page_size: int = 0
    cached: bool = True


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("uncached = cached", uncached, cached=False),
    *(Scenario(f"chunks of {size} = whole", chunks(size)) for size in (1, 7, 64, 512)),
    *(Scenario(f"batch of {size} = alone", batch(size)) for size in (2, 7, 16)),
    *(Scenario(f"page size {size} = 16", page_size(size), size) for size in (32, 64, 128)),
    Scenario("1 thread = all threads", one_thread),
    Scenario("prefix hit = miss", prefix_hit),
    Scenario("hit in mid-page = miss", hit_mid_page),
    Scenario("hit on generated tokens = miss", hit_on_generated),
    Scenario("fork and roll back = fresh", fork_and_rollback),
    Scenario("branches of one prompt = alone", branches),
    Scenario("preempted and recomputed = undisturbed", preempted(caching=False)),
    Scenario("preempted and found again = undisturbed", preempted(caching=True)),
    Scenario("speculative (ngram) = plain", speculative.ngram),
    Scenario("speculative (draft) = plain", speculative.draft_model),
    Scenario("speculative (right and wrong) = plain", speculative.right_and_wrong),
)
AS_GIVEN = Scenario("speculative (as configured) = plain", speculative.as_given)


def _disturb(engine: Engine, steps: int) -> None:
    """Preempt the last of the order, early and late."""
    if steps in (3, 6) and engine.scheduler.running:
        engine.scheduler.preempt(engine.scheduler.running[-1])


def _mixed(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Long and short prompts in turn."""
    order = sorted(prompts, key=len)
    return [order[i // 2] if i % 2 else order[-1 - i // 2] for i in range(len(order))]


def _turn(prompt: Prompt, at: int) -> Prompt:
    """The prompt with another token at one place."""
    return (*prompt[:at], prompt[at] + 1 if prompt[at] < 90 else prompt[at] - 1, *prompt[at + 1 :])


def _run_hits(engine: Engine, prompts: Sequence[Prompt], generated: int) -> dict[Prompt, Floats]:
    """Run prompts of which a part is cached; it is an error if nothing of the longer ones was found."""
    actual: dict[Prompt, Floats] = {}
    before = engine.manager.counters.prefix_hits
    for prompt in prompts:
        actual.update(run(engine, [prompt], generated))
    if any(len(prompt) > 40 for prompt in prompts) and engine.manager.counters.prefix_hits == before:
        raise InternalError("the scenario was to hit the cache and did not")
    return actual


def force(engine: Engine, table: PageTable, tokens: Prompt) -> Floats:
    """Run given tokens after what a table holds; the logits of the last `ROWS` of them."""
    budget, found = engine.limits.max_num_batched_tokens, np.empty((0, engine.limits.vocab_size), np.float32)
    cut = max(0, len(tokens) - ROWS)
    parts = [tokens[i : min(i + budget, cut)] for i in range(0, cut, budget)] + [tokens[cut:]]
    for part in parts:
        if not engine.manager.reserve(table, len(part)):
            raise InternalError("the scenario's pool is too small")
        found = engine.runner.forward([Piece(table, list(part), table.computed, "all")])[-ROWS:].copy()
    return found


def anew(engine: Engine, tokens: Prompt, count: int) -> Floats:
    """The same logits from a fresh table: of the last `count` tokens, at most `ROWS`."""
    table = engine.manager.open()
    try:
        return force(engine, table, tokens)[-count:]
    finally:
        engine.manager.release(table)
