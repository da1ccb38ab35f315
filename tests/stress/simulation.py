"""Random requests through a real engine, each answer compared with the one it gives alone, in every bit.

Everything follows from the seed. Requests come in families with common prefixes; they are drawn, greedy, penalised,
branched, searched with beams, cancelled, preempted, salted, pinned, of all priorities. After every step the cache
proves its invariants, no step is over the budget, whoever generates has its token, and somebody gets on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from kvist.engine.beams import BeamSearch
from kvist.engine.branches import Family
from kvist.engine.engine import Engine
from kvist.engine.params import BeamSearchParams, RequestMetrics, SamplingParams
from kvist.errors import RequestError

MakeEngine = Callable[..., Engine]
Params = SamplingParams | BeamSearchParams
SALTS = (b"", b"", b"", b"tenant")
PATIENCE = 2000  # steps without a token for anybody: a prompt of 200 and three beams, one token a step, take fewer


@dataclass
class Answer:
    """All there is to see of a request: tokens by branch, digests of the logits of each, or its beams."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    rows: list[tuple[int, bytes]] = field(default_factory=list)  # (position, digest): branches are told together
    beams: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    metrics: RequestMetrics | None = None
    search: BeamSearch | None = None

    @property
    def all(self) -> tuple[object, ...]:
        return self.tokens, sorted(self.rows), self.beams, self.reasons


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    params: Params
    salt: bytes
    priority: int
    pin: bool


class Simulation:
    """`make_engine(pages, **settings)` gives the engines; run() raises AssertionError with the seed in it."""

    def __init__(self, seed: int, make_engine: MakeEngine, vocab: int, requests: int) -> None:
        self.seed, self._make_engine, self._vocab, self._requests = seed, make_engine, vocab, requests
        self._random = random.Random(seed)
        pick = self._random.choice
        self._settings = {
            "pages": pick([5, 8, 12, 16, 30]),
            "max_num_seqs": pick([1, 3, 6, 8, 8]),
            "max_num_batched_tokens": pick([1, 6, 16, 40, 200]),
            "enable_prefix_caching": pick([True, True, True, False]),
            "drafts": pick([0, 0, 3]),
        }
        self._longest = min(self._settings["pages"] * 16, 200)
        self._trunks = [self._tokens(self._random.randint(1, self._longest * 3 // 4)) for _ in range(4)]
        self._open: dict[str, tuple[Request, Answer]] = {}
        self._alone: dict[tuple[tuple[int, ...], Params], Answer] = {}
        self.compared = self.cancelled = self.refused = self.pinned = self.steps = self._silent = 0

    def run(self) -> Engine:
        """Run everything to its end; the engine, for its counts."""
        engine = self._make_engine(**self._settings)
        engine.observe = self._observe
        try:
            self._run(engine)
        except Exception as error:
            error.add_note(f"simulation seed={self.seed} requests={self._requests} settings={self._settings}")
            raise
        finally:
            engine.close()
        return engine

    def _run(self, engine: Engine) -> None:
        submitted, quiet = 0, 0.0
        while submitted < self._requests or engine.has_work:
            quiet = self._random.random() if self._random.random() < 0.02 else quiet  # busy times and quiet ones
            while submitted < self._requests and len(self._open) < 24 and self._random.random() > 0.5 + quiet / 2:
                submitted += 1
                self._submit(engine, self._request(), f"r{submitted}")
            if self._open and self._random.random() < 0.006:
                self._cancel(engine, self._random.choice(sorted(self._open)))
            if self._random.random() < 0.002:
                engine.manager.flush()
            if engine.manager.pins.names and self._random.random() < 0.02:
                engine.unpin(self._random.choice(engine.manager.pins.names))
            self._step(engine)
        assert engine.manager.stats().live == engine.manager.stats().pinned == engine.unpin()
        engine.manager.check_integrity()
        assert engine.manager.stats().live == 0
        assert self.compared + self.cancelled + self.refused == self._requests

    def _step(self, engine: Engine) -> None:
        limit = engine.limits.max_num_batched_tokens
        running, before = engine.scheduler.running, engine.runner.kv_projections
        owed = [(s, len(s.tokens)) for s in running if s.uncomputed == 1 and self._is_text(engine, s.request_id)]
        owed = owed if len(running) <= limit else []
        made = self._made(engine)
        outputs = engine.step()
        self._silent = 0 if outputs or self._made(engine) != made else self._silent + 1
        assert self._silent < PATIENCE, "nobody gets on"
        for output in outputs:
            request, answer = self._open[output.request_id]
            answer.metrics = output.metrics
            if output.token_id is not None:
                answer.tokens.setdefault(output.index, []).append(output.token_id)
            if output.finish_reason is not None:
                answer.reasons[output.index] = output.finish_reason
                branches = request.params.branches if isinstance(request.params, SamplingParams) else 1
                if len(answer.reasons) == branches:
                    self._compare(output.request_id)
        self.steps += 1
        engine.manager.check_integrity()
        assert engine.runner.kv_projections - before <= limit
        assert len(running) <= engine.limits.max_num_seqs
        for sequence, length in owed:
            waits = sequence.table is None and sequence not in running
            assert waits or len(sequence.tokens) > length, f"{sequence.request_id} got no token in a step"

    def _made(self, engine: Engine) -> int:
        return sum(request.metrics.generated_tokens for request in engine.answers.requests.values())

    def _is_text(self, engine: Engine, name: str) -> bool:
        return isinstance(engine.answers.requests[name], Family)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(1, self._vocab) for _ in range(count))

    def _request(self) -> Request:
        chance, pick = self._random, self._random.choice
        trunk = pick(self._trunks)
        prompt = trunk[: chance.randint(0, len(trunk))] + self._tokens(chance.choice([0, 1, 5, 16, 40]))
        room = self._longest - 1
        prompt = prompt[:room] or (1,)
        count = chance.randint(1, max(1, min(24, self._longest - len(prompt))))
        seed, kind = chance.randrange(3), chance.random()
        params: Params
        if kind < 0.45:
            params = SamplingParams(temperature=0.0, max_tokens=count)
        elif kind < 0.75:
            params = SamplingParams(temperature=0.9, top_p=0.9, seed=seed, max_tokens=count, repetition_penalty=1.2)
        elif kind < 0.85:
            params = SamplingParams(temperature=1.0, seed=seed, max_tokens=count, n=chance.randint(2, 4))
        elif kind < 0.92:
            params = SamplingParams(temperature=0.0, max_tokens=count, prompt_logprobs=1, logprobs=1)
        else:
            params = BeamSearchParams(chance.randint(1, 3), count)
        pin = isinstance(params, SamplingParams) and self._settings["enable_prefix_caching"] and chance.random() < 0.1
        return Request(prompt, params, pick(SALTS), pick([0, 0, 0, -1, 1]), bool(pin))

    def _submit(self, engine: Engine, request: Request, name: str) -> None:
        asked = {"request_id": name, "salt": request.salt, "priority": request.priority}
        answer = self._open.setdefault(name, (request, Answer()))[1]
        try:
            if isinstance(request.params, SamplingParams):
                engine.submit(request.prompt, request.params, pin=request.pin, **asked)  # type: ignore[arg-type]
                self.pinned += request.pin
            else:
                answer.search = engine.submit_beams(request.prompt, request.params, **asked)  # type: ignore[arg-type]
        except RequestError:  # too many pages are pinned: nothing of it may be left
            assert request.pin or engine.manager.pins.names
            del self._open[name]
            self.refused += 1

    def _cancel(self, engine: Engine, name: str) -> None:
        assert engine.cancel(name)
        request, answer = self._open.pop(name)
        self.cancelled += 1
        if isinstance(request.params, SamplingParams):  # what there was of it was right
            expected = self._expected(request)
            for index, tokens in answer.tokens.items():
                assert expected.tokens[index][: len(tokens)] == tokens
            assert set(answer.rows) <= set(expected.rows)

    # -- answers -----------------------------------------------------------------------------------------------------

    def _observe(self, request: str, position: int, logits: np.ndarray) -> None:
        self._open[request][1].rows.append((position, hashlib.blake2b(logits.tobytes(), digest_size=8).digest()))

    def _compare(self, name: str) -> None:
        request, answer = self._open.pop(name)
        _take_beams(answer)
        assert answer.metrics is not None and answer.metrics.reuse is not None
        reuse = answer.metrics.reuse
        assert reuse.computed + sum(reuse.cached.values()) == len(request.prompt)
        if reuse.first_difference is not None:
            assert reuse.first_difference.asked_token == request.prompt[reuse.first_difference.position]
            assert reuse.first_difference.asked_token != reuse.first_difference.cached_token
        assert answer.all == self._expected(request).all, f"{name} is not what it is alone: {request}"
        self.compared += 1

    def _expected(self, request: Request) -> Answer:
        """What a request gives alone, without a cache of others, drafts or a budget worth the name."""
        key = request.prompt, request.params
        if key not in self._alone:
            engine = self._make_engine(
                pages=120, max_num_seqs=8, max_num_batched_tokens=512, enable_prefix_caching=False, drafts=0
            )
            held, self._open = self._open, {}
            try:
                engine.observe = self._observe
                self._submit(engine, replace(request, pin=False), "alone")
                answer = self._open["alone"][1]
                while engine.has_work:
                    for output in engine.step():
                        if output.token_id is not None:
                            answer.tokens.setdefault(output.index, []).append(output.token_id)
                        if output.finish_reason is not None:
                            answer.reasons[output.index] = output.finish_reason
            finally:
                self._open = held
                engine.close()
            _take_beams(answer)
            self._alone[key] = answer
        return self._alone[key]


def _take_beams(answer: Answer) -> None:
    if answer.search is not None:
        answer.beams = [(found.token_ids, found.cumulative_logprob) for found in answer.search.finished]
