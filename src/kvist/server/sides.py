"""One side of a comparison: the same answer from an engine of its own, with the cache or without it, step by step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from kvist.assemble import assemble
from kvist.engine.params import SamplingParams
from kvist.fold import Fold
from kvist.llm import LLM
from kvist.server.apart import apart

Mode = Literal["uncached", "cached"]
MOST_TOKENS = 256
"""Of prompt and answer together: without a cache an answer costs their square."""

AT_ONCE = 64  # tokens of an engine's step: others get their turn in between


class Side:
    """Made, run and closed in the engine's thread.

    singly: the prompt is read a token at a time too, as an answer is made. With the cache each of its tokens is a step
    of its own; without, each step reads all tokens up to one, which is the loop that the cache replaces.
    """

    def __init__(self, llm: LLM, mode: Mode, prompt: Sequence[int], params: SamplingParams, *, singly: bool) -> None:
        self.mode: Mode = mode
        self.tokens: list[int] = []  # of the answer
        self.text, self.done = "", False
        self.seconds, self.steps = 0.0, 0
        cached = mode == "cached"
        config = apart(
            llm, MOST_TOKENS, enable_cache=cached, max_num_batched_tokens=1 if cached and singly else AT_ONCE
        )
        self._llm, self._prompt, self._params = llm, list(prompt), params
        self._engine = assemble(
            llm.model, config, llm.backend, eos_ids=llm.tokenizer.eos_ids, instruction=llm.instruction
        )
        self._fold = Fold(llm.tokenizer, params, None, self._prompt)
        self._each = singly and cached  # every step of the engine is one to tell of
        self._read = 1 if singly and not cached else len(prompt)  # tokens of the prompt that are read now
        self._projected: list[int] = []
        self._spent = 0.0
        self._before = 0
        try:
            self._warm()
            self._submit()
        except BaseException:
            self._engine.close()
            raise

    @property
    def projections(self) -> int:
        """Positions whose K and V were projected, as the engine counts them."""
        return self._engine.runner.kv_projections - self._before

    def advance(self) -> dict[str, Any] | None:
        """Run one step of the engine; what there is to tell, once a token is through."""
        before, start, begin = self.projections, self._computed(), time.perf_counter()
        outputs = self._engine.step()
        self._spent += time.perf_counter() - begin
        self._projected += range(start, start + self.projections - before)
        if not outputs and not self._each:
            return None
        token, text = None, ""
        if self._read < len(self._prompt):
            self._read += 1
            self._submit()
        elif outputs:
            chunk = self._fold.add(outputs[-1])
            token, text, self.done = chunk.token_id, chunk.text, chunk.finish_reason is not None
            self.text += text
            if token is not None:
                self.tokens.append(token)
        return self._tell(token, text)

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()

    def totals(self) -> dict[str, Any]:
        """What it took, all in all."""
        return {
            "tokens": self.tokens, "text": self.text, "steps": self.steps, "projections_total": self.projections,
            "seconds_total": self.seconds,
        }  # fmt: skip

    def _warm(self) -> None:
        """Run a step that nobody is told of: the first one waits for the system to provide the memory."""
        self._engine.submit(self._prompt[:1], SamplingParams(temperature=0.0, max_tokens=1))
        while self._engine.has_work:
            self._engine.step()
        self._before = self._engine.runner.kv_projections

    def _tell(self, token: int | None, text: str) -> dict[str, Any]:
        projected, seconds = self._projected, self._spent
        self._projected, self._spent = [], 0.0
        self.seconds += seconds
        self.steps += 1
        return {
            "event": "step", "mode": self.mode, "step": self.steps, "position": projected[-1], "token_id": token,
            "token": None if token is None else token_text(self._llm, token), "text": text, "projected": projected,
            "projections_total": self.projections, "seconds": seconds, "seconds_total": self.seconds,
        }  # fmt: skip

    def _computed(self) -> int:
        """Positions whose K and V are in the pages: where the next step begins."""
        return sum(sequence.computed for sequence in self._engine.scheduler.running)

    def _submit(self) -> None:
        whole = self._read == len(self._prompt)
        params = self._params if whole else SamplingParams(temperature=0.0, max_tokens=1)
        watching = self._fold.watching if whole else None
        self._engine.submit(self._prompt[: self._read], params, watching=watching)


def token_text(llm: LLM, token: int) -> str:
    """The text of one token, control tokens included."""
    return llm.tokenizer.decode([token], skip_special=False, continues=True)
