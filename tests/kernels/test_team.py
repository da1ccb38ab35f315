"""The team: every thread gets every step, what one raises reaches the caller, and closing ends the threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from kvist.kernels.cpu.team import Team


class Fake:
    """Kernels that note their calls and fail for some threads."""

    def __init__(self, *failing: int) -> None:
        self.failing, self.calls, self.closed = set(failing), [], 0

    def run(self, table: int, count: int, context: int, tid: int) -> None:
        self.calls.append((table, count, context, tid))
        if tid in self.failing:
            raise ValueError(f"thread {tid}")

    def close(self) -> None:
        self.closed += 1


def team(fake: Fake, threads: int) -> Team:
    kernels: Any = fake
    return Team(kernels, threads)


def workers(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread not in before}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_thread_runs_every_step(threads: int) -> None:
    fake = Fake()
    made = team(fake, threads)
    for step in range(20):
        made.run(step, 2, 3)
        assert sorted(fake.calls) == [(step, 2, 3, tid) for tid in range(threads)], "all are done when run returns"
        fake.calls.clear()
    made.close()


@pytest.mark.parametrize("failing", [(0,), (1,), (3,), (0, 2), (1, 2, 3)])
def test_a_failure_reaches_the_caller_and_the_team_goes_on(failing: tuple[int, ...]) -> None:
    fake = Fake(*failing)
    made = team(fake, 4)
    for _ in range(3):
        with pytest.raises(ValueError, match="thread"):
            made.run(0, 0, 0)
        assert len(fake.calls) == 4, "nobody still works on the tables"
        fake.calls.clear()
    fake.failing = set()
    made.run(1, 1, 1)
    assert len(fake.calls) == 4
    made.close()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_caller_interrupted_while_it_hands_out_work_leaves_nobody_behind(at: int, before: bool) -> None:
    """The tables are freed when `run` is left: no thread may work on them then."""
    left: list[int] = []

    class Slow(Fake):
        def run(self, table: int, count: int, context: int, tid: int) -> None:
            time.sleep(0.02)
            left.append(tid)

    class Interrupted:
        def __init__(self, inbox: Any) -> None:
            self.inbox, self.again = inbox, False

        def put(self, work: Any) -> None:
            if self.again or not before:
                self.inbox.put(work)
            if not self.again:
                self.again = True
                raise KeyboardInterrupt

    made = team(Slow(), 4)
    inbox = made._inboxes[at]
    stand_in: Any = Interrupted(inbox)
    made._inboxes[at] = stand_in
    with pytest.raises(KeyboardInterrupt):
        made.run(0, 0, 0)
    assert sorted(left) == [1, 2, 3], "each took the step once, and had left it when run was left"
    made._inboxes[at] = inbox
    made.run(1, 1, 1)
    assert sorted(left) == [0, 1, 1, 2, 2, 3, 3]
    made.close()


def test_close_ends_the_threads_and_can_be_repeated() -> None:
    before = set(threading.enumerate())
    fake = Fake()
    made = team(fake, 4)
    assert len(workers(before)) == 3 and not fake.closed
    for _ in range(3):
        made.close()
    assert fake.closed, "what is still being built is ended too"
    end = time.monotonic() + 5
    while workers(before) and time.monotonic() < end:
        time.sleep(0.001)
    assert not workers(before)


def test_two_callers_take_turns() -> None:
    fake = Fake()
    made = team(fake, 3)
    callers = [threading.Thread(target=lambda n=n: [made.run(n, 0, 0) for _ in range(50)]) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    steps = [fake.calls[i : i + 3] for i in range(0, len(fake.calls), 3)]
    assert len(steps) == 200
    assert all(len({table for table, *_ in step}) == 1 and {tid for *_, tid in step} == {0, 1, 2} for step in steps)
    made.close()
