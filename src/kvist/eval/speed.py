"""How long a decode step takes, by context: all methods in turns, so that whatever disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvist.cache.table import PageTable
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.errors import CapacityError

ROUNDS, STEPS = 8, 6
"""Turns at a context, and steps in each."""

STEADY = ROUNDS * STEPS
"""Positions that a measurement goes on by."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a step = intercept + slope x positions, by least squares."""

    intercept: float
    slope: float


def step_seconds(
    engines: Sequence[Engine], contexts: Sequence[int], vocab_size: int, budget: int,
    advanced: Callable[[int], None] = lambda contexts: None,
) -> list[list[float]]:  # fmt: skip
    """For each engine the median seconds of a step with one sequence, at each of the ascending contexts."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, contexts[-1] + STEADY).tolist()
    tables = [engine.manager.open() for engine in engines]
    found: list[list[float]] = [[] for _ in engines]
    for context in contexts:
        for engine, table in zip(engines, tables, strict=True):
            while table.computed < context:
                _run(engine, table, tokens[table.computed : min(table.computed + budget, context)])
        taken: list[list[float]] = [[] for _ in engines]
        going = [_going_on(engine, table, tokens) for engine, table in zip(engines, tables, strict=True)]
        for _ in range(ROUNDS):
            for number, (engine, table) in enumerate(zip(engines, going, strict=True)):
                for _ in range(STEPS):
                    begin = time.perf_counter()
                    _run(engine, table, [tokens[table.positions]])
                    taken[number].append(time.perf_counter() - begin)
        for engine, table, own in zip(engines, tables, going, strict=True):
            if own is not table:
                engine.manager.release(own)
        for number, seconds in enumerate(taken):
            found[number].append(float(np.median(seconds)))
        advanced(1)
    return found


def line(contexts: Sequence[int], seconds: Sequence[float]) -> Line:
    """The line through a method's measurements, at least two of them. The middle of a measurement is its context."""
    slope, intercept = np.polyfit(np.asarray(contexts) + STEADY / 2, seconds, 1)
    return Line(float(intercept), float(slope))


def _going_on(engine: Engine, table: PageTable, tokens: Sequence[int]) -> PageTable:
    """The table to time: where a policy evicts entries, another one, of what is kept."""
    if engine.evictor is None:
        return table
    return engine.evictor.evict(engine.manager.fork(table), tokens[: table.computed + 1])


def _run(engine: Engine, table: PageTable, tokens: Sequence[int]) -> None:
    if not engine.manager.reserve(table, len(tokens)):
        raise CapacityError("the pages of the contexts to time do not fit: give more memory")
    engine.runner.forward([Piece(table, tokens, table.positions, "last")])
