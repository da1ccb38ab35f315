"""A draft model: a smaller model of the same vocabulary runs ahead.

It has a runner, a cache manager and a pool of its own. Its tables follow the sequences: what the target kept is
committed, what it refused is rolled back, so guesses are never published here either. All sequences of a step share
one forward pass for each draft position::

    sequence   t0 ........ t9 | 10 tokens, t9 not computed yet
    catch up   run what is not computed (here t9): its logits give d1          committed: these are tokens
    run ahead  run d1 -> d2, run d2 -> d3                                      written, not committed
    next time  t10 = d1 was right, t11 != d2: commit d1, roll back, catch up with t11

A token is drawn as the target will draw it, with the request's parameters, seed and position: the draws share their
random numbers, so a draft model that agrees with its target agrees on sampled text too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvist.cache.manager import CacheManager
from kvist.cache.table import PageTable
from kvist.engine.batch import Piece
from kvist.engine.runner import Runner
from kvist.engine.sampler import Row, Sampler
from kvist.engine.sequence import Sequence
from kvist.engine.speculative.proposer import agreed
from kvist.kernels.program import Floats

KEEP = 0.9  # of the smoothed seconds of a forward pass, at each new one


@dataclass(slots=True)
class _Follower:
    """A sequence as the draft model has it: its table, and guesses that were run behind it but are not committed."""

    table: PageTable
    ahead: list[int] = field(default_factory=list)


class DraftProposer:
    """Proposes what a smaller model would say.

    longest: positions it can run. budget: tokens it computes in a step at most, to catch up; a sequence that is
    further behind gets its proposals later.
    """

    free = False

    def __init__(self, runner: Runner, manager: CacheManager, longest: int, budget: int) -> None:
        self.runner, self.manager = runner, manager
        self.seconds = 0.0
        self._longest, self._budget = longest, budget
        self._followers: dict[Sequence, _Follower] = {}
        self._sampler = Sampler(runner.executable.chooser)

    def propose(self, limits: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """See `Proposer`."""
        proposals = self._catch_up([sequence for sequence in limits if len(sequence.tokens) <= self._longest])
        going = list(proposals)
        while going := [sequence for sequence in going if self._may_go_on(sequence, proposals, limits)]:
            begin = time.perf_counter()
            self._run_ahead(going, proposals)
            seconds = time.perf_counter() - begin
            self.seconds = KEEP * self.seconds + (1 - KEEP) * seconds if self.seconds else seconds
        return proposals

    def forget(self, sequence: Sequence) -> None:
        """See `Proposer`."""
        follower = self._followers.pop(sequence, None)
        if follower is not None:
            self.manager.release(follower.table)

    def close(self) -> None:
        """See `Proposer`."""
        for sequence in list(self._followers):
            self.forget(sequence)
        self.manager.close()

    def _catch_up(self, sequences: list[Sequence]) -> dict[Sequence, list[int]]:
        """Run the tokens that the draft model has not seen, as far as the budget goes; the first guess of each."""
        room, pieces, done = self._budget, [], []
        for sequence in sequences:
            table = self._settled(sequence).table
            tokens = sequence.tokens[table.computed :][:room]
            if not tokens or not self.manager.reserve(table, len(tokens), sequence.request_id):
                continue  # no budget or no page: it keeps what it has
            room -= len(tokens)
            complete = table.computed + len(tokens) == len(sequence.tokens)
            pieces.append(Piece(table, tokens, table.computed, "last" if complete else "none"))
            if complete:
                done.append(sequence)
        if not pieces:
            return {}
        logits = self.runner.forward(pieces)
        likeliest = self.runner.likeliest().tolist()
        chosen = self._sampler.choose([_row(s, logits[i], likeliest[i], []) for i, s in enumerate(done)])
        return {sequence: [token] for sequence, token in zip(done, chosen, strict=True)}

    def _settled(self, sequence: Sequence) -> _Follower:
        """The follower of a sequence, with no guesses left: committed where they came true, else rolled back."""
        follower = self._followers.get(sequence)
        if follower is None:
            match = self.manager.match(sequence.tokens, salt=sequence.salt, limit=len(sequence.tokens) - 1)
            table = self.manager.open(match, request=sequence.request_id)
            follower = self._followers[sequence] = _Follower(table)
        elif follower.ahead:
            # the last token is left to be run (again, if it was guessed): its logits give the next guess
            came = sequence.tokens[follower.table.computed : -1]
            self.runner.accept(follower.table, follower.ahead, agreed(follower.ahead, came))
            follower.ahead = []
        return follower

    def _may_go_on(
        self, sequence: Sequence, proposals: Mapping[Sequence, list[int]], limits: Mapping[Sequence, int]
    ) -> bool:
        """Whether a sequence wants another guess, and there are a position and a page for the last one."""
        ahead = len(proposals[sequence])
        return (
            ahead < limits[sequence]
            and len(sequence.tokens) + ahead <= self._longest
            and self.manager.reserve(self._followers[sequence].table, ahead, sequence.request_id)
        )

    def _run_ahead(self, going: list[Sequence], proposals: dict[Sequence, list[int]]) -> None:
        """Run the last guess of each sequence for the next one."""
        pieces = []
        for sequence in going:
            follower, guess = self._followers[sequence], proposals[sequence][-1]
            start = follower.table.computed + len(follower.ahead)
            follower.ahead.append(guess)
            pieces.append(Piece(follower.table, [guess], start, "last", drafts=1))
        logits = self.runner.forward(pieces)
        likeliest = self.runner.likeliest().tolist()
        rows = [_row(s, logits[i], likeliest[i], proposals[s]) for i, s in enumerate(going)]
        for sequence, token in zip(going, self._sampler.choose(rows), strict=True):
            proposals[sequence].append(token)


def _row(sequence: Sequence, logits: Floats, likeliest: int, ahead: list[int]) -> Row:
    """What the request would choose its token behind the guesses `ahead` from."""
    at = len(sequence.tokens) + len(ahead)
    return Row(logits, likeliest, sequence.params, sequence.seed, at, sequence.alterations, ahead)
