"""A team of threads that runs a step together: the caller is thread 0, the others sleep between steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

from kvist.kernels.cpu.compile import Kernels

_Work = tuple[int, int, int, int, int]  # step, table, ops, context, thread id


class Team:
    """`threads` threads over the compiled loop. One step at a time; a second caller waits."""

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self.threads = threads
        self._kernels = kernels
        self._lock = threading.Lock()
        self._step = 0
        self._done: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        self._inboxes: list[queue.SimpleQueue[_Work | None]] = [queue.SimpleQueue() for _ in range(threads - 1)]
        for inbox in self._inboxes:
            threading.Thread(target=self._serve, args=(inbox,), name="kvist-kernel", daemon=True).start()

    def prepare(self, units: Iterable[str]) -> None:
        """Begin to build units that will be asked for."""
        self._kernels.prepare(units)

    def unit(self, name: str) -> int:
        """Where the compiled loop finds a unit."""
        return self._kernels.address(name)

    def run(self, table: int, count: int, context: int) -> None:
        """Run `count` ops; returns when all are done and every thread has left the tables, also when interrupted."""
        with self._lock:
            self._step += 1
            try:
                self._hand_out(table, count, context)
                self._kernels.run(table, count, context, 0)
            except BaseException:
                self._hand_out(
                    table, count, context
                )  # the first time it may have been interrupted half-way; nobody takes a step twice
                raise
            finally:
                self._join()

    def close(self) -> None:
        """Let the threads end; idempotent."""
        with self._lock:
            for inbox in self._inboxes:
                inbox.put(None)
            self._inboxes = []
            self._kernels.close()

    def _hand_out(self, table: int, count: int, context: int) -> None:
        for tid, inbox in enumerate(self._inboxes, start=1):
            inbox.put((self._step, table, count, context, tid))

    def _join(self) -> None:
        """Wait for every thread's word on this step. Ctrl-C is held back meanwhile: the tables are in use."""
        missing = len(self._inboxes)
        failure: BaseException | None = None
        while missing:
            try:
                step, error = self._done.get()
            except KeyboardInterrupt as interrupt:
                failure = interrupt
                continue
            if step == self._step:
                missing -= 1
                failure = failure or error
        if failure is not None:
            raise failure

    def _serve(self, inbox: queue.SimpleQueue[_Work | None]) -> None:
        taken = 0
        while (work := inbox.get()) is not None:
            step, *arguments = work
            if step == taken:
                continue
            taken, failure = step, None
            try:
                self._kernels.run(*arguments)
            except BaseException as error:  # handed to the caller of `run`, who raises it
                failure = error
            self._done.put((step, failure))
