"""All rounds of all cases on all engines, interleaved: what the machine does to one, it does to the next as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from runner.disturbance import Disturbance
from runner.engines import EngineSpec
from runner.failure import PeerError
from runner.results import Results
from runner.say import say
from runner.worker import Worker
from runner.workloads import Case, prompts

ANSWER_SECONDS = 900.0
BUSY = 0.1  # cores that others take; above, a measurement says little

Start = Callable[[EngineSpec], tuple[Worker, dict[str, str]]]
"""Sets up and starts an engine that is ready for work, with what it says of itself; PeerError if it cannot."""


def measure(engines: Sequence[EngineSpec], cases: Sequence[Case], rounds: int, results: Results, start: Start) -> None:
    """Measure what `results` does not have.

    Within a round, each case runs on one engine after the other, and each round begins with another engine.
    """
    session = Session(results, start)
    try:
        for turn in range(rounds):
            shift = turn % len(engines)
            for case in cases:
                for spec in (*engines[shift:], *engines[:shift]):
                    if not spec.cases or case.name in spec.cases:
                        session.run(spec, case, turn)
            session.end_round()
    finally:
        session.close()


class Session:
    """The engines' processes, and what failed: that is not tried again in later rounds.

    An engine has a new process every round, but for one that takes minutes to start.
    """

    def __init__(self, results: Results, start: Start) -> None:
        self._results, self._start = results, start
        self._workers: dict[str, tuple[EngineSpec, Worker]] = {}
        self._failed: set[tuple[str, str]] = set()
        self._dead: dict[str, PeerError] = {}

    def run(self, spec: EngineSpec, case: Case, turn: int) -> None:
        """One measurement, unless it is there or failed before; a failing engine loses its process."""
        if self._results.has(spec.name, case.name, turn) or (spec.name, case.name) in self._failed:
            return
        try:
            worker = self._worker(spec)
            for _, other in self._workers.values():
                other.pause()  # again: somebody else may have continued it
            reply = run_case(worker, case, turn)
        except PeerError as error:
            self._failed.add((spec.name, case.name))
            self._results.fail(spec.name, case.name, str(error))
            say(f"round {turn + 1}: {case.name} {spec.name}: {error}")
            self._end(spec.name)
        else:
            self._results.add(spec.name, case.name, turn, reply)
            say(f"round {turn + 1}: {case.name} {spec.name}: {_told(reply)}")

    def end_round(self) -> None:
        """End the processes that are quick to start again."""
        for spec, _ in list(self._workers.values()):
            if not spec.slow_start:
                self._end(spec.name)

    def close(self) -> None:
        """End all processes."""
        for name in list(self._workers):
            self._end(name)

    def _worker(self, spec: EngineSpec) -> Worker:
        if spec.name in self._dead:
            raise self._dead[spec.name]
        if spec.name not in self._workers:
            say(f"starting {spec.name}" + (" (compiles the model: a minute or more)" if spec.slow_start else ""))
            try:
                worker, about = self._start(spec)
            except PeerError as error:
                self._dead[spec.name] = error
                raise
            self._workers[spec.name] = spec, worker
            self._results.about(spec.name, about)
        return self._workers[spec.name][1]

    def _end(self, name: str) -> None:
        if name in self._workers:
            self._workers.pop(name)[1].close()


def run_case(worker: Worker, case: Case, turn: int) -> dict[str, Any]:
    """Warm up, then measure; with `again` the same prompts once more, for the seconds to their first token.

    others: cores that other processes took meanwhile.
    """
    _ask(worker, case.warm_up(), turn)
    disturbance = Disturbance(worker.pid)
    reply = _ask(worker, case, turn)
    if case.again:
        reply["again"] = _ask(worker, case, turn)["first"]
    return {**reply, "others": disturbance.cores()}


def _ask(worker: Worker, case: Case, turn: int) -> dict[str, Any]:
    return worker.ask({"prompts": prompts(case, turn), "new_tokens": case.new_tokens}, ANSWER_SECONDS)


def _told(reply: dict[str, Any]) -> str:
    told = f"first token {reply['first']:.3f} s"
    if reply["decode_tokens"]:
        told += f", {reply['decode_tokens'] / reply['decode_seconds']:.1f} tokens/s"
    if "again" in reply:
        told += f", cached {reply['again'] * 1e3:.1f} ms"
    if (reply["others"] or 0) > BUSY:
        told += f" (others took {reply['others']:.2f} cores)"
    return told
