"""A team of threads that runs a step together: the caller is thread 0, the others sleep between steps."""

from __future__ import annotations

import queue
import threading

from kvist.kernels.cpu.compile import Kernels

_Work = tuple[int, int, int, int]  # table, ops, context, thread id


class Team:
    """`threads` threads over the compiled loop. One step at a time; a second caller waits."""

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self.threads = threads
        self._kernels = kernels
        self._lock = threading.Lock()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._inboxes: list[queue.SimpleQueue[_Work | None]] = [queue.SimpleQueue() for _ in range(threads - 1)]
        for inbox in self._inboxes:
            threading.Thread(target=self._serve, args=(inbox,), name="kvist-kernel", daemon=True).start()

    def run(self, table: int, count: int, context: int) -> None:
        """Run `count` ops; returns when all are done and every thread has left the tables."""
        with self._lock:
            for tid, inbox in enumerate(self._inboxes, start=1):
                inbox.put((table, count, context, tid))
            try:
                self._kernels.run(table, count, context, 0)
            finally:
                failures = [self._done.get() for _ in self._inboxes]
            for failure in failures:
                if failure is not None:
                    raise failure

    def close(self) -> None:
        """Let the threads end; idempotent."""
        with self._lock:
            for inbox in self._inboxes:
                inbox.put(None)
            self._inboxes = []

    def _serve(self, inbox: queue.SimpleQueue[_Work | None]) -> None:
        while (work := inbox.get()) is not None:
            failure: BaseException | None = None
            try:
                self._kernels.run(*work)
            except BaseException as error:
                failure = error
            self._done.put(failure)
