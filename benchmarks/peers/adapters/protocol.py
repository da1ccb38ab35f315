"""What the runner and an engine's script say to each other: one JSON object a line, over standard input and output.

Imported by every script, in every environment: the standard library only.

The runner sends one `open` line, then any number of work lines; each gets one reply. What the engine itself prints
goes to standard error. Times are seconds by the script's own clock, so the pipe costs nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Timeline:
    """When the tokens of one piece of work came; begins when it is made.

    first: seconds until every sequence had its first token. decode_tokens and decode_seconds: the steps after that
    which gave every sequence a token, so that neither a prompt nor a batch that empties is in the decode rate.
    """

    def __init__(self, sequences: int) -> None:
        self._sequences = sequences
        self._waiting = set(range(sequences))
        self._begin = self._last = time.perf_counter()
        self.first = 0.0
        self.decode_tokens = 0
        self.decode_seconds = 0.0

    def step(self, got: Iterable[int]) -> None:
        """These sequences got one token each, just now."""
        now, numbers = time.perf_counter(), set(got)
        if self._waiting:
            self._waiting -= numbers
            self.first = now - self._begin
        elif len(numbers) == self._sequences:
            self.decode_tokens += self._sequences
            self.decode_seconds += now - self._last
        self._last = now

    def as_json(self) -> dict[str, float]:
        """For the reply; no rate where no step gave every sequence a token."""
        if self._waiting:
            raise RuntimeError(f"{len(self._waiting)} of {self._sequences} sequences got no token")
        return {"first": self.first, "decode_tokens": self.decode_tokens, "decode_seconds": self.decode_seconds}


class Engine(Protocol):
    """An engine under test."""

    about: dict[str, str]
    """What the table names: its version, types and settings."""

    def run(self, prompts: list[list[int]], new_tokens: int, timeline: Timeline) -> list[list[int]]:
        """Generate exactly `new_tokens` tokens after each prompt, greedily, all prompts together.

        Tells the timeline every step, and returns the generated ids. A prompt that was run before may be found in
        the engine's own prefix cache.
        """


def serve(open_engine: Callable[[str, int, dict[str, Any]], Engine]) -> None:
    """Answer the runner until it closes the pipe. `open_engine` gets model path, threads and the engine's options."""
    if sys.platform == "linux":  # a stopped script must not outlive its runner
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print, print to standard error
    engine: Engine | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if engine is None:
                engine = open_engine(message["model"], message["threads"], message["options"])
                reply: dict[str, Any] = {"about": engine.about}
            else:
                reply = _work(engine, message["prompts"], message["new_tokens"])
        except Exception as error:  # whatever an engine raises becomes its reply
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _work(engine: Engine, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    timeline = Timeline(len(prompts))
    answers = engine.run(prompts, new_tokens, timeline)
    for answer in answers:
        if len(answer) != new_tokens:
            raise RuntimeError(f"{len(answer)} tokens were generated instead of {new_tokens}")
    return {**timeline.as_json(), "tokens": answers[0][:16]}
