"""An engine's process: started, asked, stopped while another is measured, ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.failure import PeerError


class Worker:
    """One engine script in a process group of its own, speaking the protocol of `adapters/protocol.py`.

    It only runs while it is asked something: between questions its whole group is stopped, so that threads which
    spin or poll take nothing from the engine that is measured.
    """

    def __init__(
        self, command: Sequence[str | Path], variables: Mapping[str, str], cores: Sequence[int], log: Path
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={**os.environ, **variables}, start_new_session=True,
            )  # fmt: skip
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, cores)
        self.pid = self._process.pid
        self._log = log
        self._received = b""

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Its reply within so many seconds; PeerError if there is none, or it says what went wrong."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        line = self._line(seconds)
        self.pause()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(str(reply["error"]).splitlines()[0][:300])
        return reply

    def pause(self) -> None:
        """Stop it until it is asked again."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it and all it started; idempotent."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(until - time.monotonic(), 0)):
                    raise PeerError(f"no answer after {seconds:.0f} s")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise self._ended()
                self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _ended(self) -> PeerError:
        status = self._process.wait()
        return PeerError(f"its process ended with status {status} (log: {self._log.name})")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
