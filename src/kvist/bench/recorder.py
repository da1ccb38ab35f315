"""Time an engine's steps part by part, from outside: nothing in the engine knows of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

from kvist.engine.engine import Engine
from kvist.kernels.cpu.backend import CpuExecutable
from kvist.kernels.cpu.profile import Launch

HOST_PARTS = ("schedule", "batch", "launch", "sample")
"""What a step does outside the compiled loop: choose tokens and pages; build the batch and commit it; fill the tables,
wake the threads and part from them; choose tokens and tell who asked.
"""


@dataclass
class Run:
    """One measured stretch, in nanoseconds: a decode step, or the steps of a prompt."""

    wall: int
    host: dict[str, int]
    launches: list[Launch]

    @staticmethod
    def together(runs: Sequence[Run]) -> Run:
        """Several as one."""
        return Run(
            sum(run.wall for run in runs),
            {part: sum(run.host[part] for run in runs) for part in HOST_PARTS},
            [launch for run in runs for launch in run.launches],
        )


class Recorder:
    """Times an engine's steps part by part while it is open."""

    def __init__(self, engine: Engine) -> None:
        executable = engine.runner.executable
        assert isinstance(executable, CpuExecutable)
        self._engine, self._executable = engine, executable

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self.profile = opened.enter_context(self._executable.profile())
            self._forwards = opened.enter_context(timed(self._engine.runner, "forward"))
            self._launches = opened.enter_context(timed(self._executable, "run"))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def record(self, step: Callable[[], Any]) -> tuple[Run, Any]:
        """Run one step; where its time went, and what it gave."""
        for noted in (self._forwards, self._launches, self.profile.launches):
            noted.clear()
        begin = time.perf_counter_ns()
        made = step()
        wall = time.perf_counter_ns() - begin
        forward, launched = (sum(b - a for a, b in spans) for spans in (self._forwards, self._launches))
        loop = sum(launch.nanoseconds for launch in self.profile.launches)
        schedule = self._forwards[0][0] - begin if self._forwards else wall
        host = {
            "schedule": schedule, "batch": forward - launched, "launch": launched - loop,
            "sample": wall - schedule - forward,
        }  # fmt: skip
        return Run(wall, host, list(self.profile.launches)), made


@contextmanager
def timed(owner: object, method: str) -> Iterator[list[tuple[int, int]]]:
    """Begin and end of every call of a method of one object while this is open, in nanoseconds."""
    own, inner, spans = vars(owner).get(method), getattr(owner, method), list[tuple[int, int]]()

    def call(*args: Any) -> Any:
        begin = time.perf_counter_ns()
        result = inner(*args)
        spans.append((begin, time.perf_counter_ns()))
        return result

    setattr(owner, method, call)
    try:
        yield spans
    finally:
        if own is None:
            delattr(owner, method)
        else:  # a function of a module
            setattr(owner, method, own)
