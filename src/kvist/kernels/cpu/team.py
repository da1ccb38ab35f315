"""A team of threads that runs a step together: the caller is thread 0, the others linger, then sleep, between steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

import numpy as np

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.compile import Kernels


class Team:
    """`threads` threads over the compiled loop. One step at a time; a second caller waits."""

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self.threads = threads
        self._kernels = kernels
        self._lock = threading.Lock()
        lines = np.zeros((threads + 2, abi.BOARD_LINE), np.int64)
        shift = -lines.ctypes.data % 64 // 8  # lines of the processor's cache
        self._board = lines.reshape(-1)[shift : shift + (threads + 1) * abi.BOARD_LINE]
        self._board[abi.BOARD_THREADS] = threads
        self._failures: list[BaseException] = []
        self._inboxes: list[queue.SimpleQueue[bool]] = [queue.SimpleQueue() for _ in range(threads - 1)]
        for tid, inbox in enumerate(self._inboxes, start=1):
            self._board[(1 + tid) * abi.BOARD_LINE + 1] = 1  # asleep
            threading.Thread(target=self._serve, args=(tid, inbox), name="kvist-kernel", daemon=True).start()

    def prepare(self, units: Iterable[str]) -> None:
        """Begin to build units that will be asked for."""
        self._kernels.prepare(units)

    def unit(self, name: str) -> int:
        """Where the compiled loop finds a unit."""
        return self._kernels.address(name)

    def run(self, table: int, count: int, context: int) -> None:
        """Run `count` ops; returns when all are done and every thread has left the tables, also when interrupted."""
        with self._lock:
            board, address = self._board, self._board.ctypes.data
            board[abi.BOARD_TABLE], board[abi.BOARD_COUNT], board[abi.BOARD_CONTEXT] = table, count, context
            before = int(board[abi.BOARD_STEP])
            try:
                if self._kernels.run(abi.START, address, 0):
                    self._wake()
                    self._kernels.run(abi.LEAD, address, 0)
            except BaseException:
                if board[abi.BOARD_STEP] != before:  # posted: the workers do all of it, whoever is missing
                    self._join()
                raise
            if self._failures:
                failures, self._failures = self._failures, []
                raise failures[0]

    def close(self) -> None:
        """Let the threads end; idempotent."""
        with self._lock:
            for inbox in self._inboxes:
                inbox.put(False)
            self._inboxes = []
            self._kernels.close()

    def _wake(self) -> None:
        for inbox in self._inboxes:  # who is awake finds it later, and looks for a step in vain
            inbox.put(True)

    def _join(self) -> None:
        """Wait until every worker has left. Another Ctrl-C is held back meanwhile: the tables are in use."""
        while True:
            try:
                self._wake()
                self._kernels.run(abi.JOIN, self._board.ctypes.data, 0)
                return
            except KeyboardInterrupt:
                continue

    def _serve(self, tid: int, inbox: queue.SimpleQueue[bool]) -> None:
        while inbox.get():
            try:
                self._kernels.run(abi.SERVE, self._board.ctypes.data, tid)
            except BaseException as error:  # handed to the caller of `run`, who raises it
                self._failures.append(error)
                self._kernels.run(abi.LEAVE, self._board.ctypes.data, tid)
