"""How long a decode step takes, by context: all methods in turns, so that whatever disturbs one disturbs all.

Of each context a table is kept, so that contexts take turns as well. Several sequences in a step share nothing: the
others are copies of the first in pages of their own. ::

    first sequence     0 ──── REAL ════ context 1 ════════ context 2     ──── computed; a fork stays at each context
    every other one    0 ══════════════ context 1 ════════ context 2     ════ copies of pages that were computed
    timed              in turns: rounds x contexts x numbers of sequences x methods

How long a step takes depends on what pages hold where a policy chooses by that, and where they are packed, for values
that weigh nothing are not read (see `codec.factors`). There all of the first sequence is computed.

A machine is not as fast in one minute as in the next, but within a turn the methods follow each other closely. So of a
method the *ratio* to the floor (float16) is taken, turn by turn; its time is the floor's times the median ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.cache.manager import CacheManager
from kvist.cache.table import GONE, PageTable
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.errors import CapacityError

ROUNDS, STEPS = 12, 4
"""Turns of a context, where nothing else is asked for, and steps in each."""

STEADY = ROUNDS * STEPS
"""Positions that such a measurement goes on by."""

REAL = 512
"""Positions that are computed where it does not matter what pages hold: whole pages of any size."""

RESAMPLES = 1000

Advanced = Callable[[int, int], None]
Turns = npt.NDArray[np.float64]
"""Seconds of a step, (contexts, rounds): of each turn the median of its steps."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a step = intercept + slope x positions, by least squares."""

    intercept: float
    slope: float


def step_seconds(
    engines: Sequence[Engine], contexts: Sequence[int], tokens: Sequence[int], budget: int,
    *, counts: Sequence[int] = (1,), rounds: int = ROUNDS, advanced: Advanced = lambda done, total: None,
) -> list[list[Turns]]:  # fmt: skip
    """Of each engine and number of sequences the turns at the ascending contexts.

    Pages must not be shared by prefix: the engines cache none. tokens: a text that goes on behind the last context by
    all steps; budget: of them in a step that computes a context.
    advanced: told of what is done, out of how much.
    """
    total = len(engines) * len(contexts) + rounds
    going: list[list[list[PageTable]]] = []
    for number, engine in enumerate(engines):
        going.append(_begin(engine, contexts, tokens, budget, max(counts)))
        advanced((number + 1) * len(contexts), total)
    taken = [[[list[float]() for _ in contexts] for _ in counts] for _ in engines]
    for turn in range(rounds):
        for at in range(len(contexts)):
            for which, count in enumerate(counts):
                for engine, tables, seconds in zip(engines, going, taken, strict=True):
                    for _ in range(STEPS):
                        begin = time.perf_counter()
                        _step(engine, tables[at][:count], tokens)
                        seconds[which][at].append(time.perf_counter() - begin)
        advanced(total - rounds + turn + 1, total)
    for engine, tables in zip(engines, going, strict=True):
        for table in (table for row in tables for table in row):
            engine.manager.release(table)
    return [[np.median(np.reshape(row, (len(contexts), rounds, STEPS)), axis=-1) for row in rows] for rows in taken]


def paired(turns: Turns, floor: Turns) -> npt.NDArray[np.float64]:
    """Seconds of a step at each context: the floor's median, times the median ratio of turns of the same round.

    Both (..., rounds), which the result has no more.
    """
    seconds: npt.NDArray[np.float64] = np.median(floor, -1) * np.median(turns / floor, -1)
    return seconds


def line(contexts: Sequence[int], seconds: Sequence[float] | npt.NDArray[np.float64], rounds: int = ROUNDS) -> Line:
    """The line through a method's measurements, at least two of them. The middle of a measurement is its context."""
    slope, intercept = np.polyfit(np.asarray(contexts) + rounds * STEPS / 2, seconds, 1)
    return Line(float(intercept), float(slope))


def figures(contexts: Sequence[int], turns: Turns, floor: Turns | None) -> dict[str, Any]:
    """A method's steps, and the line through two contexts or more, in the shape that programs read.

    floor: float16's turns, where it was measured. slope_to_f16_interval: 95%, by drawing rounds again.
    """
    seconds = np.median(turns, -1) if floor is None else paired(turns, floor)
    found: dict[str, Any] = {
        "step_ms_intercept": None, "step_us_per_1k_tokens": None, "slope_to_f16": None, "slope_to_f16_interval": None,
        "steps": [{"context": c, "seconds": float(s)} for c, s in zip(contexts, seconds, strict=True)],
    }  # fmt: skip
    if len(contexts) > 1:
        own = line(contexts, seconds, turns.shape[-1])
        found |= {"step_ms_intercept": own.intercept * 1e3, "step_us_per_1k_tokens": own.slope * 1e9}
        if floor is not None:
            found["slope_to_f16"] = own.slope / line(contexts, np.median(floor, -1), floor.shape[-1]).slope
            found["slope_to_f16_interval"] = _interval(contexts, turns, floor)
    return found


def _interval(contexts: Sequence[int], turns: Turns, floor: Turns) -> list[float]:
    drawn = np.random.default_rng(0).integers(0, turns.shape[-1], (RESAMPLES, turns.shape[-1]))
    own, base = paired(turns[:, drawn], floor[:, drawn]), np.median(floor[:, drawn], -1)  # (contexts, resamples)
    ratios = np.polyfit(contexts, own, 1)[0] / np.polyfit(contexts, base, 1)[0]
    return [float(bound) for bound in np.quantile(ratios, [0.025, 0.975])]


def _begin(
    engine: Engine, contexts: Sequence[int], tokens: Sequence[int], budget: int, count: int
) -> list[list[PageTable]]:
    """At each context so many tables to go on with."""
    manager, found = engine.manager, list[list[PageTable]]()
    first = manager.open()
    for number, context in enumerate(contexts):
        _extend(engine, first, tokens[:context], budget)
        kept = manager.fork(first)
        if engine.evictor is not None:
            kept = engine.evictor.evict(kept, tokens[: context + 1])
        if number and engine.evictor is None:
            others = [manager.fork(own) for own in found[-1][1:]]
        else:  # what is kept at one context is not what the next one begins with
            others = [manager.open(manager.match((), kept=kept.kept)) for _ in range(1, count)]
        found.append([kept, *(_copied(manager, kept, own, budget) for own in others)])
    manager.release(first)
    return found


def _extend(engine: Engine, table: PageTable, tokens: Sequence[int], budget: int) -> None:
    """Go on to the end of `tokens`, at most `budget` a step; past `REAL` with copies where that makes no difference."""
    manager = engine.manager
    matters = engine.evictor is not None or any(
        spec is not None and (spec.sketch or spec.packed) for group in manager.groups for spec in group.layout.layers
    )
    while (computed := table.computed) < len(tokens):
        new = tokens[computed : min(computed + budget, len(tokens) if matters or computed >= REAL else REAL)]
        _reserve(manager, table, len(new))
        if matters or computed < REAL:
            engine.runner.forward([Piece(table, new, table.positions, "none")])
            continue
        size, filled = manager.layout.page_size, manager.layout.pages_for(computed)
        for ledger, pages in zip(manager.ledgers, table.groups, strict=True):
            held = [page for page in pages[:filled] if page != GONE]
            for i in range(computed // size, len(pages)):
                ledger.pool.copy(held[i % len(held)], pages[i])
        manager.commit(table, new)


def _copied(manager: CacheManager, source: PageTable, table: PageTable, budget: int) -> PageTable:
    """The table, once it is as long as `source`, with the same content in pages of its own."""
    while table.computed < source.computed:
        new = source.tokens[table.computed : min(table.computed + budget, source.computed)]
        _reserve(manager, table, len(new))
        manager.commit(table, new)
    for ledger, pages, own in zip(manager.ledgers, source.groups, table.groups, strict=True):
        pool = ledger.pool
        for page, target in zip(pages, own, strict=True):
            if GONE not in (page, target):
                pool.copy(page, target)
                for layer, spec in enumerate(pool.layout.layers):
                    if spec is not None and spec.sketch:
                        for head in range(spec.kv_heads):
                            pool.sketch(target, layer, head)[:] = pool.sketch(page, layer, head)
    return table


def _reserve(manager: CacheManager, table: PageTable, new_tokens: int) -> None:
    if not manager.reserve(table, new_tokens):
        raise CapacityError("the pages of the contexts to time do not fit: time shorter ones, or fewer sequences")


def _step(engine: Engine, tables: Sequence[PageTable], tokens: Sequence[int]) -> None:
    """One token more for each table."""
    for table in tables:
        _reserve(engine.manager, table, 1)
    engine.runner.forward([Piece(table, [tokens[table.positions]], table.positions, "last") for table in tables])
