"""The engine: requests in, tokens out, one step at a time. It knows token ids, no text; one thread runs it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from kvist.cache.manager import CacheManager
from kvist.engine.batch import Piece, Wanted
from kvist.engine.params import FinishReason, RequestMetrics, SamplingParams, TokenOutput
from kvist.engine.runner import Runner
from kvist.engine.sampler import sample
from kvist.engine.scheduler import Schedule, Scheduler
from kvist.engine.sequence import Sequence
from kvist.engine.speculative.speculator import Speculator
from kvist.errors import RequestError, UsageError
from kvist.events import EventChannel, EventKind
from kvist.kernels.program import Floats


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine takes: token ids below vocab_size, sequences up to max_model_len tokens.

    Up to max_num_seqs of them run together.
    """

    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    eos_ids: frozenset[int]
    seed: int = 0
    enable_cache: bool = True
    check_integrity: bool = False


Observer = Callable[[str, int, Floats], None]
"""Shown every row of logits a token is chosen from: request id, position of that token, logits (vocab,), valid during
the call.
"""


class Engine:
    """Runs requests over a runner and a cache manager.

    ::

        request = engine.submit(prompt_ids, SamplingParams(...))
        while engine.has_work:
            for output in engine.step(): ...
    """

    def __init__(
        self,
        runner: Runner,
        manager: CacheManager,
        limits: EngineLimits,
        events: EventChannel,
        speculation: Speculator | None = None,
    ) -> None:
        self.runner, self.manager, self.limits, self.events = runner, manager, limits, events
        self.speculation = speculation
        self.observe: Observer | None = None
        self.scheduler = Scheduler(manager, limits.max_num_seqs, limits.max_num_batched_tokens, events)
        self._sequences: dict[str, Sequence] = {}
        self._inboxes: dict[str, deque[TokenOutput]] = {}  # of the streams that are open
        self._submitted = 0
        self.steps = 0

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._sequences)

    def submit(
        self, prompt: Tokens[int], params: SamplingParams, *, request_id: str | None = None, salt: bytes = b""
    ) -> str:
        """Queue a request and return its id.

        Raises RequestError for a prompt that can never run, with the arithmetic.
        """
        limit = self._limit(prompt, params)
        self._submitted += 1
        name = f"req-{self._submitted}" if request_id is None else request_id
        if name in self._sequences:
            raise UsageError(f"request {name} is running already: give another id")
        seed = params.seed if params.seed is not None else (self.limits.seed << 32) + self._submitted
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.limits.eos_ids)
        metrics = RequestMetrics(len(prompt), arrival_time=time.monotonic())
        sequence = Sequence(name, list(prompt), len(prompt), params, limit, stops, seed, salt, metrics)
        self._sequences[name] = sequence
        self.scheduler.add(sequence)
        if self.events.listening:
            self.events.emit(EventKind.REQUEST_QUEUED, request=name, count=len(prompt))
        return name

    def step(self) -> list[TokenOutput]:
        """Run one step; what it gave each request that got tokens. Nothing to do gives an empty list."""
        schedule = self.scheduler.schedule()
        if not schedule:
            return []
        drafts = self._drafts(schedule)
        pieces: list[Piece] = []
        sampled: list[Sequence] = []
        for sequence, count in schedule.items():
            assert sequence.table is not None
            start, draft = sequence.computed, drafts.get(sequence, [])
            ready = start + count == len(sequence.tokens)
            tokens = sequence.tokens[start : start + count] + draft
            wanted: Wanted = "all" if draft else "last" if ready else "none"  # drafts stand behind a single token
            pieces.append(Piece(sequence.table, tokens, start, wanted, len(draft)))
            sequence.metrics.computed_tokens += len(tokens)
            sequence.metrics.kv_projections += len(tokens)
            if ready:
                sampled.append(sequence)
        logits = self._forward(pieces)
        self.steps += 1
        likeliest = self.runner.likeliest().tolist()
        outputs: list[TokenOutput] = []
        row = 0
        for sequence in sampled:
            draft = drafts.get(sequence, [])
            end = row + 1 + len(draft)
            outputs += self._take(sequence, logits[row:end], likeliest[row:end], draft)
            row += 1 + len(draft)
        for output in outputs:
            if output.request_id in self._inboxes:
                self._inboxes[output.request_id].append(output)
        if self.limits.check_integrity and not self.has_work:
            self.manager.check_integrity()
        return outputs

    def stream(self, prompt: Tokens[int], params: SamplingParams, *, salt: bytes = b"") -> Iterator[TokenOutput]:
        """Submit one request and yield its outputs as they come; leaving the loop cancels it.

        Other requests run along. Several streams may be open: each keeps what a step gave it until it is asked.
        """
        name = self.submit(prompt, params, salt=salt)
        inbox = self._inboxes[name] = deque()
        try:
            while name in self._sequences or inbox:
                if not inbox:
                    self.step()
                while inbox:
                    yield inbox.popleft()
        finally:
            del self._inboxes[name]
            self.cancel(name)

    def cancel(self, request_id: str) -> bool:
        """Stop a request wherever it is and free its pages; False if it is not running (any more)."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._finish(sequence, "abort")
        return True

    def close(self) -> None:
        """Give the memory of all pools back. Nothing else may be called afterwards."""
        if self.speculation is not None:
            self.speculation.close()
        self.manager.close()

    def _limit(self, prompt: Tokens[int], params: SamplingParams) -> int:
        """Total tokens after which the request ends; refuses one that can never fit."""
        longest, count = self.limits.max_model_len, len(prompt)
        if count == 0:
            raise RequestError("the prompt is empty: give at least one token")
        bad = next((token for token in prompt if not 0 <= token < self.limits.vocab_size), None)
        if bad is not None:
            raise RequestError(f"token id {bad} is not in this model's vocabulary of {self.limits.vocab_size}")
        if count >= longest:
            raise RequestError(
                f"the prompt is {count} tokens long and max_model_len is {longest}, which leaves no room "
                "for an answer: shorten the prompt"
            )
        if params.max_tokens is None:
            return longest
        total = count + params.max_tokens
        if total > longest:
            pages, layout = self.manager.allocator.total, self.manager.layout
            raise RequestError(
                f"{count} prompt tokens + {params.max_tokens} max_tokens = {total} can never fit: "
                f"max_model_len is {longest} (the pool holds {pages} pages of {layout.page_size} = "
                f"{pages * layout.page_size} tokens); ask for at most {longest - count} tokens"
            )
        return total

    def _drafts(self, schedule: Schedule) -> dict[Sequence, list[int]]:
        """What the proposer guesses, as far as budget and pages allow; never empty lists."""
        if self.speculation is None:
            return {}
        proposals = self.speculation.propose(schedule, self.scheduler.room(schedule))
        granted = {s: draft[: self.scheduler.grant(s, schedule[s], len(draft))] for s, draft in proposals.items()}
        return {sequence: draft for sequence, draft in granted.items() if draft}

    def _forward(self, pieces: list[Piece]) -> Floats:
        """Run the pieces, and let speculation know what such a step takes (prompts have another price)."""
        if self.speculation is None:
            return self.runner.forward(pieces)
        begin = time.perf_counter()
        logits = self.runner.forward(pieces)
        if all(len(piece.tokens) == 1 + piece.drafts for piece in pieces):
            self.speculation.cost.note(sum(len(piece.tokens) for piece in pieces), time.perf_counter() - begin)
        return logits

    def _take(self, sequence: Sequence, logits: Floats, likeliest: list[int], draft: list[int]) -> list[TokenOutput]:
        """Choose a sequence's next tokens, from a row each, while its drafts are right; decide whether it ends."""
        assert sequence.table is not None
        outputs: list[TokenOutput] = []
        for i, row in enumerate(logits):
            outputs.append(self._choose(sequence, row, likeliest[i]))
            if outputs[-1].finish_reason or i == len(draft) or outputs[-1].token_id != draft[i]:
                break
        reason, accepted = outputs[-1].finish_reason, len(outputs) - 1
        if draft:
            self.runner.accept(sequence.table, draft, accepted)
            sequence.metrics.drafted_tokens += len(draft)
            sequence.metrics.accepted_tokens += accepted
            if self.events.listening:
                request = sequence.request_id
                self.events.emit(EventKind.REQUEST_VERIFIED, request=request, count=accepted, detail=len(draft))
        if self.speculation is not None:
            self.speculation.settle(sequence, len(draft), sequence.tokens[-len(outputs) :])
        if reason is not None:
            self._finish(sequence, reason)
        elif not self.limits.enable_cache:
            self.manager.rollback(sequence.table, 0)  # the baseline: all K and V are computed again for the next token
        return outputs

    def _choose(self, sequence: Sequence, logits: Floats, likeliest: int) -> TokenOutput:
        """Choose a sequence's next token from logits (vocab,) and the largest's index; say why it ends, if it does."""
        if self.observe is not None:
            self.observe(sequence.request_id, len(sequence.tokens), logits)
        token = sample(logits, sequence.params, sequence.seed, len(sequence.tokens), likeliest)
        sequence.tokens.append(token)
        metrics = sequence.metrics
        metrics.generated_tokens += 1
        if metrics.first_token_time is None:
            metrics.first_token_time = time.monotonic()
        if self.events.listening:
            self.events.emit(EventKind.REQUEST_TOKEN, request=sequence.request_id, detail=token)
        reason: FinishReason | None = None
        if token in sequence.stops:
            reason = "stop"
        elif len(sequence.tokens) >= sequence.limit:
            reason = "length"
        return TokenOutput(sequence.request_id, token, reason, metrics)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence)
        if self.speculation is not None:
            self.speculation.forget(sequence)
        del self._sequences[sequence.request_id]
        sequence.metrics.finished_time = time.monotonic()
        if self.events.listening:
            self.events.emit(
                EventKind.REQUEST_FINISHED, request=sequence.request_id, count=sequence.generated, detail=reason
            )
