"""What the tests of speculative decoding share: transcripts to the bit, and a proposer that errs where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kvist.config import SpeculativeConfig
from kvist.engine import sequence as sequences
from kvist.engine.engine import Engine
from kvist.engine.params import RequestMetrics, SamplingParams

Request = tuple[list[int], SamplingParams]
MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, top_k=60, top_p=0.95, seed=11, max_tokens=40, ignore_eos=True)
NGRAM = SpeculativeConfig("ngram", 6, prompt_lookup_max=3, prompt_lookup_min=1, adaptive=False)
DRAFT = SpeculativeConfig("draft_model", 3, model="given", adaptive=False)


def prompt(length: int, seed: int = 1) -> list[int]:
    return [(seed * 37 + i * i * 7 + i) % 300 for i in range(length)]


@dataclass
class Transcript:
    """All there is to see of one request."""

    tokens: list[int] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    metrics: RequestMetrics | None = None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Transcript)
        mine = (self.tokens, self.reasons, self.positions, self.rows)
        return mine == (other.tokens, other.reasons, other.positions, other.rows)


def transcripts(engine: Engine, requests: Sequence[Request]) -> list[Transcript]:
    """Run requests together; each one's tokens, and the bits of the logits each token was chosen from."""
    found: dict[str, Transcript] = {}

    def observe(request: str, position: int, logits: np.ndarray) -> None:
        found[request].positions.append(position)
        found[request].rows.append(logits.tobytes())

    engine.observe = observe
    for ids, params in requests:
        found[engine.submit(ids, params)] = Transcript()
    while engine.has_work:
        for output in engine.step():
            transcript = found[output.request_id]
            transcript.tokens.append(output.token_id)
            transcript.reasons.append(output.finish_reason)
            transcript.metrics = output.metrics
    return list(found.values())


@dataclass
class Scripted:
    """A proposer that knows what comes next, and errs where it is told to: `wrong` gives the place of the error, by
    the number of the proposal.
    """

    answers: Mapping[tuple[int, ...], list[int]]
    wrong: Callable[[int], int | None] = lambda number: None
    free: bool = True
    seconds: float = 0.0
    asked: int = 0
    known: set[sequences.Sequence] = field(default_factory=set)

    def propose(self, limits: Mapping[sequences.Sequence, int]) -> dict[sequences.Sequence, list[int]]:
        proposals = {}
        for sequence, limit in limits.items():
            assert limit >= 1
            self.known.add(sequence)
            answer = self.answers[tuple(sequence.tokens[: sequence.prompt_length])]
            proposal = answer[sequence.generated : sequence.generated + limit]
            proposal += [5] * (limit - len(proposal))
            place = self.wrong(self.asked)
            if place is not None and place < limit:
                proposal[place] = (proposal[place] + 1) % 300
            proposals[sequence] = proposal
            self.asked += 1
        return proposals

    def forget(self, sequence: sequences.Sequence) -> None:
        self.known.discard(sequence)

    def close(self) -> None:
        self.known.clear()


def scripted(
    make_engine: MakeEngine,
    requests: Sequence[Request],
    wrong: Callable[[int], int | None] = lambda number: None,
    drafts: int = 6,
    adaptive: bool = False,
    **options: object,
) -> Engine:
    """An engine whose proposer knows the answers of `requests`."""
    answers = {tuple(ids): found.tokens for (ids, _), found in zip(requests, plain(make_engine, requests), strict=True)}
    config = SpeculativeConfig("ngram", drafts, adaptive=adaptive)
    engine = make_engine(speculative_config=config, **options)
    engine.speculation.proposer = Scripted(answers, wrong)
    return engine


def plain(make_engine: MakeEngine, requests: Sequence[Request]) -> list[Transcript]:
    """What each request gives alone, without drafts."""
    return [transcripts(make_engine(enable_prefix_caching=False), [request])[0] for request in requests]


MIXED: list[Request] = [
    (prompt(30, 1), GREEDY),
    (prompt(1, 2), DRAWN),
    (prompt(17, 3), replace(DRAWN, seed=5, max_tokens=9)),
    (prompt(64, 4), replace(GREEDY, max_tokens=1)),
    (prompt(16, 5), replace(GREEDY, max_tokens=2)),
    (prompt(47, 6), replace(DRAWN, temperature=1.3, top_k=0, seed=6, max_tokens=60)),
]
WRONGS: list[Callable[[int], int | None]] = [
    lambda number: None,
    lambda number: 0,
    lambda number: number % 8,  # from 6 on: right to the end
    lambda number: 5,
]
