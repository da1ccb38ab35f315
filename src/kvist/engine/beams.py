"""Beam search: the likeliest answers rather than likely ones, by keeping `beam_width` of them at every length.

::

    prompt ─┬─ the ─┬─ cat        each step: of every beam the likeliest next tokens, of all these the best 2 x width;
            │       └─ dog        those that end are answers if they are among the best width, of the others the best
            └─ a ──── cat         width are the next beams. A beam is a fork: its prefix is in shared pages, and those
                                  of a beam without children are free at once.

A beam's log-probabilities are float64 sums, candidates stand in order of that sum, then of their parent, then of the
token's place with its parent: nothing is left to chance. Beams of a request advance together: one that is through
early (the step's budget was spent, or another was preempted) pauses with its candidates.

An answer's score is its log-probability / length ** length_penalty, its length that of the generated tokens, the end
token included. When to stop follows the beam search of transformers (Wolf et al. 2020), its three kinds of early
stopping included.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import numpy as np

from kvist.cache.manager import CacheManager
from kvist.engine.params import BeamSearchParams, FinishReason, RequestMetrics, SamplingParams
from kvist.engine.sampler import Sampler
from kvist.engine.scheduler import Scheduler
from kvist.engine.sequence import Sequence
from kvist.kernels.program import Floats


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished answer: its tokens, the end token included, their log-probability, and its score."""

    token_ids: tuple[int, ...]
    cumulative_logprob: float
    score: float
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class _Step:
    """A beam with one more token."""

    parent: Sequence
    token: int
    cumulative: float


class BeamSearch:
    """One request's beams. `open` are the sequences that run; `finished` the best answers so far, the best first."""

    def __init__(
        self,
        name: str,
        prompt: Tokens[int],
        params: BeamSearchParams,
        *,
        ends: frozenset[int],
        salt: bytes,
        metrics: RequestMetrics,
    ) -> None:
        self.request_id, self.params, self.metrics = name, params, metrics
        self._ends = ends
        self._looked_at = params.beam_width * max(2, 1 + len(ends))  # so that enough are left if the best all end
        self._prompt_length, self._limit = len(prompt), len(prompt) + params.max_tokens
        self._salt = salt
        self.open = [self._sequence(list(prompt), 0.0)]
        self.finished: list[Hypothesis] = []
        self._found: dict[Sequence, tuple[list[int], list[float]]] = {}

    def note(self, beam: Sequence, logits: Floats, sampler: Sampler) -> None:
        """Keep the candidates of a beam from its last row of logits (vocab,)."""
        self._found[beam] = sampler.likeliest(logits, min(self._looked_at, len(logits)))

    @property
    def complete(self) -> bool:
        """Whether every beam has its candidates."""
        return len(self._found) == len(self.open)

    def paused(self) -> list[Sequence]:
        """Beams that wait for others."""
        return list(self._found)

    def advance(self, manager: CacheManager, scheduler: Scheduler) -> bool:
        """Make the next beams from the candidates of all; true if the search is over (no beam is left open then)."""
        width, length = self.params.beam_width, len(self.open[0].tokens) + 1 - self._prompt_length
        last = self._prompt_length + length >= self._limit
        going: list[_Step] = []
        for place, step in enumerate(self._best()):
            if last or step.token in self._ends:
                if place < width:
                    self._finish(step, length)
            elif len(going) < width:
                going.append(step)
        self.finished = sorted(self.finished, key=lambda found: -found.score)[:width]  # stable: of equals the older
        self._found = {}
        if not going or self._settled(going[0].cumulative, length):
            going = []
        self.metrics.generated_tokens += len(going)
        self._replace(going, manager, scheduler)
        return not going

    def _best(self) -> list[_Step]:
        """The best candidates of all beams, best first."""
        tables = [self._found[beam] for beam in self.open]
        sums = np.stack(
            [beam.cumulative + np.array(logprobs) for beam, (_, logprobs) in zip(self.open, tables, strict=True)]
        )
        best = np.argsort(-sums.ravel(), kind="stable")[: self._looked_at]
        steps = []
        for i in best.tolist():
            place, rank = divmod(i, sums.shape[1])
            steps.append(_Step(self.open[place], tables[place][0][rank], float(sums[place, rank])))
        return steps

    def _finish(self, step: _Step, length: int) -> None:
        tokens = (*step.parent.tokens[self._prompt_length :], step.token)
        reason: FinishReason = "stop" if step.token in self._ends else "length"
        score: float = step.cumulative / length**self.params.length_penalty
        self.finished.append(Hypothesis(tokens, step.cumulative, score, reason))
        self.metrics.generated_tokens += 1

    def _settled(self, best: float, length: int) -> bool:
        """Whether no beam, the best of which has this log-probability, is to go on."""
        if len(self.finished) < self.params.beam_width:
            return False
        if self.params.early_stopping is True:
            return True
        penalty = self.params.length_penalty
        longest = self.params.early_stopping == "never" and penalty > 0.0
        reachable: float = best / (self.params.max_tokens if longest else length) ** penalty
        return reachable <= self.finished[-1].score

    def _replace(self, going: list[_Step], manager: CacheManager, scheduler: Scheduler) -> None:
        """The beams that go on in the place of those that were: of a beam's children the first takes its pages."""
        heirs: dict[Sequence, _Step] = {}
        beams: list[Sequence] = []
        for step in going:
            if step.parent not in heirs:
                heirs[step.parent] = step
                beams.append(step.parent)
            else:
                twin = self._sequence([*step.parent.tokens, step.token], step.cumulative)
                twin.priority, twin.turn, twin.served = step.parent.priority, step.parent.turn, step.parent.served
                twin.kept = step.parent.kept
                if step.parent.table is not None:
                    twin.table = manager.fork(step.parent.table, request=self.request_id)
                beams.append(twin)
        for beam in self.open:
            if beam not in heirs:
                scheduler.finish(beam)
        for parent, step in heirs.items():
            parent.tokens.append(step.token)
            parent.cumulative = step.cumulative
        self.open = beams
        for beam in beams:
            if beam not in scheduler.running:
                scheduler.join(beam)

    def _sequence(self, tokens: list[int], cumulative: float) -> Sequence:
        return Sequence(
            self.request_id, tokens, self._prompt_length, SamplingParams(temperature=0.0), self._limit, self._ends, 0,
            self._salt, self.metrics, cumulative=cumulative, draftable=False,
        )  # fmt: skip
