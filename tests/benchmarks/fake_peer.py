"""A peer for the tests: answers at once, in the order it is asked, and breaks where its options say so."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers" / "adapters"))

from protocol import Timeline, serve


class Fake:
    """Writes a line to the file `diary` for every piece of work; `breaks`: the context length it fails at."""

    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        if options.get("breaks") == "start":
            raise ImportError("no such peer")
        self.about = {"version": "1"}
        self._name, self._options = model, options

    def run(self, prompts: list[list[int]], new_tokens: int, timeline: Timeline) -> list[list[int]]:
        with Path(self._options["diary"]).open("a") as diary:
            diary.write(f"{self._name} {len(prompts)}x{len(prompts[0])}+{new_tokens}\n")
        print("noise on standard output")
        if self._options.get("breaks") == len(prompts[0]):
            raise ValueError("cannot do this")
        if self._options.get("dies") == len(prompts[0]):
            os._exit(3)
        for _ in range(new_tokens):
            timeline.step(range(len(prompts)))
        return [[len(prompt)] * new_tokens for prompt in prompts]


if __name__ == "__main__":
    serve(Fake)
