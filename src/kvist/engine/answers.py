"""The answers under way: who asked, what a step's logits give each of them, and when one ends.

A *turn* is a sequence that gets a token: its row of logits, and one more for each of its drafts. The branches of a
request all have their first turn on the same row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from kvist.cache.manager import CacheManager
from kvist.engine.batch import Piece
from kvist.engine.beams import BeamSearch
from kvist.engine.branches import Family
from kvist.engine.guide import Bits, masks
from kvist.engine.params import FinishReason, TokenLogprob, TokenOutput
from kvist.engine.runner import Runner
from kvist.engine.sampler import Row, Sampler
from kvist.engine.scheduler import Scheduler
from kvist.engine.sequence import Sequence
from kvist.engine.speculative.speculator import Speculator
from kvist.events import EventChannel, EventKind
from kvist.kernels.choosing import Rating
from kvist.kernels.program import Floats

Observer = Callable[[str, int, Floats], None]
"""Shown every row of logits a token is chosen from: request id, position of that token, logits (vocab,), valid during
the call.
"""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A sequence, its drafts, and its rows: logits (1 + drafts, vocab), each one's likeliest, masks if it is guided.

    There are fewer rows where a guide does not let a draft follow.
    """

    sequence: Sequence
    drafts: Tokens[int]
    logits: Floats
    likeliest: list[int]
    masks: Tokens[Bits | None]


class Answers:
    """Owns the requests that have not ended, and the tokens of their sequences."""

    def __init__(
        self,
        runner: Runner,
        manager: CacheManager,
        scheduler: Scheduler,
        events: EventChannel,
        keep: bool,
        speculation: Speculator | None,
    ) -> None:
        self.requests: dict[str, Family | BeamSearch] = {}
        self.speculation = speculation
        self.observe: Observer | None = None
        self._runner, self._manager, self._scheduler, self._events = runner, manager, scheduler, events
        self._keep = keep  # False: the uncached baseline
        self.sampler = Sampler(runner.executable.chooser)

    def take(self, step: list[tuple[Sequence, Piece]], logits: Floats, likeliest: list[int]) -> list[TokenOutput]:
        """Hand the rows of a step to the sequences that asked for them; what each request got."""
        turns: list[_Turn] = []
        searches: dict[BeamSearch, None] = {}
        row = 0
        for sequence, piece in step:
            wanted = {"none": 0, "last": 1, "all": len(piece.tokens)}[piece.logits]
            own = logits[row : row + wanted]
            if sequence.reads_prompt:
                self._read_prompt(sequence, piece.start, own)
            if sequence.computed == len(sequence.tokens):
                own, known = own[-1 - piece.drafts :], likeliest[row + wanted - 1 - piece.drafts : row + wanted]
                request, drafts = self.requests[sequence.request_id], piece.tokens[len(piece.tokens) - piece.drafts :]
                if isinstance(request, BeamSearch):
                    request.note(sequence, own[0], self.sampler)
                    self._forget_computed(sequence)
                    searches[request] = None
                else:
                    branches = request.fork(sequence, self._manager, self._scheduler)
                    turns += [_turn(branch, drafts, own, known) for branch in branches]
            row += wanted
        known = [turn.sequence.takes_likeliest and -1 not in turn.likeliest for turn in turns]  # the loop found them
        drawn = iter(
            self.sampler.choose(
                row for turn, found in zip(turns, known, strict=True) if not found for row in _rows(turn)
            )
        )
        chosen = [
            turn.likeliest if found else [next(drawn) for _ in turn.likeliest]
            for turn, found in zip(turns, known, strict=True)
        ]
        rated = iter(
            self.sampler.logprobs(
                rating for turn, tokens in zip(turns, chosen, strict=True) for rating in _ratings(turn, tokens)
            )
        )
        outputs: list[TokenOutput] = []
        for turn, tokens in zip(turns, chosen, strict=True):
            outputs += self._take_turn(turn, tokens, [next(rated) if _is_rated(turn) else None for _ in tokens])
        for search in searches:
            outputs += self._advance(search)
        return outputs

    def give_up_pages(self) -> bool:
        """Let go of the pages of a beam that waits for others; false if there is none. It will be computed again."""
        for request in reversed(self.requests.values()):
            if isinstance(request, BeamSearch):
                for beam in reversed(request.paused()):
                    if beam.table is not None:
                        self._scheduler.finish(beam)
                        return True
        return False

    def cancel(self, request_id: str) -> bool:
        """Stop a request wherever it is and free its pages; false if there is none (any more)."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        for sequence in list(request.open):
            self._finish(request, sequence, "abort")
        return True

    def _read_prompt(self, sequence: Sequence, start: int, logits: Floats) -> None:
        """Take log-probabilities of the prompt's tokens from rows (n, vocab) at positions from `start` on."""
        collected, count = sequence.prompt_logprobs, sequence.params.prompt_logprobs
        assert collected is not None and count is not None
        new = len(collected) - start  # what was read before a preemption is not again
        assert new >= 0, "a prompt is read from where it was read to"
        rows = zip(logits[new:], sequence.tokens[len(collected) + 1 : sequence.prompt_length], strict=False)
        collected += self.sampler.logprobs(Rating(row, -1, token, count) for row, token in rows)

    def _take_turn(
        self, turn: _Turn, chosen: list[int], rated: list[tuple[TokenLogprob, ...] | None]
    ) -> list[TokenOutput]:
        """Give a sequence its tokens, while its drafts are right; decide whether it ends."""
        sequence, drafts = turn.sequence, turn.drafts
        guide = sequence.guide
        outputs = [] if chosen else [_failed(sequence)]
        for i, token in enumerate(chosen):
            if guide is not None and not guide.accept(token):
                outputs.append(_failed(sequence))
                break
            outputs.append(self._append(sequence, token, turn.logits[i], rated[i]))
            if outputs[-1].finish_reason or i == len(drafts) or token != drafts[i]:
                break
        reason, accepted = outputs[-1].finish_reason, len(outputs) - 1
        if drafts:
            assert sequence.table is not None
            self._runner.accept(sequence.table, drafts, accepted)
            sequence.metrics.drafted_tokens += len(drafts)
            sequence.metrics.accepted_tokens += accepted
            if self._events.listening:
                request = sequence.request_id
                self._events.emit(EventKind.REQUEST_VERIFIED, request=request, count=accepted, detail=len(drafts))
        if self.speculation is not None:
            self.speculation.settle(sequence, len(drafts), sequence.tokens[-len(outputs) :])
        if reason is not None:
            self._finish(self.requests[sequence.request_id], sequence, reason)
        else:
            self._forget_computed(sequence)
        return outputs

    def _append(
        self, sequence: Sequence, token: int, logits: Floats, rated: tuple[TokenLogprob, ...] | None
    ) -> TokenOutput:
        """Give a sequence its next token, chosen from logits (vocab,); say why it ends, if it does."""
        if self.observe is not None:
            self.observe(sequence.request_id, len(sequence.tokens), logits)
        params, metrics, first = sequence.params, sequence.metrics, sequence.generated == 0
        if rated is not None:
            sequence.cumulative += rated[0].logprob
        sequence.tokens.append(token)
        if sequence.alterations is not None:
            sequence.alterations.add(token)
        metrics.generated_tokens += 1
        if metrics.first_token_time is None:
            metrics.first_token_time = time.monotonic()
        if self._events.listening:
            self._events.emit(EventKind.REQUEST_TOKEN, request=sequence.request_id, detail=token)
        reason, why = _ending(sequence, token)
        if rated is None and sequence.prompt_logprobs is None:
            return TokenOutput(sequence.request_id, token, reason, metrics, sequence.index, why)
        return TokenOutput(
            sequence.request_id, token, reason, metrics, sequence.index, why,
            logprobs=None if params.logprobs is None else rated,
            cumulative_logprob=None if rated is None else sequence.cumulative,
            prompt_logprobs=None if sequence.prompt_logprobs is None or not first else tuple(sequence.prompt_logprobs),
        )  # fmt: skip

    def _advance(self, search: BeamSearch) -> list[TokenOutput]:
        """Let a search go on if all its beams are through, else let those that are pause; its end, if it ended."""
        if not search.complete:
            for beam in search.paused():
                if beam in self._scheduler.running:
                    self._scheduler.pause(beam)
            return []
        if search.metrics.first_token_time is None:
            search.metrics.first_token_time = time.monotonic()
        if not search.advance(self._manager, self._scheduler):
            return []
        reason = search.finished[0].finish_reason
        self._end(search, search.request_id, reason)
        return [TokenOutput(search.request_id, None, reason, search.metrics)]

    def _forget_computed(self, sequence: Sequence) -> None:
        """The uncached baseline: all K and V are computed again for the next token."""
        if not self._keep and sequence.table is not None:
            self._manager.rollback(sequence.table, 0)

    def _finish(self, request: Family | BeamSearch, sequence: Sequence, reason: FinishReason) -> None:
        self._scheduler.finish(sequence)
        if self.speculation is not None:
            self.speculation.forget(sequence)
        request.open.remove(sequence)
        if not request.open:
            self._end(request, sequence.request_id, reason)

    def _end(self, request: Family | BeamSearch, name: str, reason: FinishReason) -> None:
        del self.requests[name]
        request.metrics.finished_time = time.monotonic()
        if self._events.listening:
            made = request.metrics.generated_tokens
            self._events.emit(EventKind.REQUEST_FINISHED, request=name, count=made, detail=reason)


def _turn(sequence: Sequence, drafts: Tokens[int], logits: Floats, likeliest: list[int]) -> _Turn:
    """A sequence's turn, with as many rows as its guide, if it has one, can say something of."""
    if sequence.guide is None:
        return _Turn(sequence, drafts, logits, likeliest, [None] * len(likeliest))
    found = masks(sequence.guide, drafts)
    return _Turn(sequence, drafts, logits[: len(found)], likeliest[: len(found)], found)


def _rows(turn: _Turn) -> list[Row]:
    """A turn's rows as the sampler wants them: each sees the drafts before it as if they were right."""
    s, drafts = turn.sequence, turn.drafts
    return [
        Row(turn.logits[i], known, s.params, s.seed, len(s.tokens) + i, s.alterations, drafts[:i], mask)
        for i, (known, mask) in enumerate(zip(turn.likeliest, turn.masks, strict=True))
    ]


def _failed(sequence: Sequence) -> TokenOutput:
    """The end of a sequence whose guide cannot go on."""
    assert sequence.guide is not None
    why = sequence.guide.failure
    return TokenOutput(sequence.request_id, None, "abort", sequence.metrics, sequence.index, why)


def _is_rated(turn: _Turn) -> bool:
    """Whether log-probabilities of its tokens are asked for, or decide which branches are the best."""
    params = turn.sequence.params
    return params.logprobs is not None or params.branches > params.n


def _ratings(turn: _Turn, tokens: list[int]) -> list[Rating]:
    """A turn's rows and tokens, where they are rated."""
    if not _is_rated(turn):
        return []
    count = turn.sequence.params.logprobs or 0
    rows = zip(turn.logits, turn.likeliest, tokens, strict=True)
    return [Rating(logits, known, token, count) for logits, known, token in rows]


def _ending(sequence: Sequence, token: int) -> tuple[FinishReason | None, int | str | None]:
    """Whether a sequence ends with its last token, and the stop string or stop token that ends it."""
    if token in sequence.stops:
        return "stop", token if token in sequence.params.stop_token_ids else None
    if sequence.guide is not None and sequence.guide.ended:
        return "stop", None
    if sequence.watch is not None and (found := sequence.watch(token)) is not None:
        return "stop", found
    return ("length", None) if len(sequence.tokens) >= sequence.limit else (None, None)
