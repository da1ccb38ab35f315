"""Who computes how many tokens in the next step.

There is no prefill and no decode, only tokens that are not computed yet.

Each step has one budget of tokens. Sequences that need a single token (those that are generating) come first, so a
long prompt never stops them; then prompts in order of arrival, cut to what is left of the budget; then new requests
while there is room. When pages run out the youngest sequence gives its pages back and is computed again later (its
sealed pages stay cached while they can).

Drafts of speculative decoding come last: they get what the step's tokens leave of budget and pages, and nobody is
preempted for a draft.
"""

from __future__ import annotations

import time
from collections import deque

from kvist.cache.manager import CacheManager
from kvist.engine.sequence import Sequence
from kvist.events import EventChannel, EventKind

Schedule = dict[Sequence, int]
"""Tokens to run, by sequence, in the order of the batch."""


class Scheduler:
    """Owns the waiting and the running sequences, and gives the running ones their page tables."""

    def __init__(
        self, manager: CacheManager, max_num_seqs: int, max_num_batched_tokens: int, events: EventChannel
    ) -> None:
        self._manager, self._events = manager, events
        self._max_num_seqs, self._budget = max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> Schedule:
        """Choose the next step's tokens and reserve their pages. Empty only if nothing waits or runs."""
        schedule: Schedule = {}
        preempted = False
        for sequence in sorted(self.running, key=lambda sequence: sequence.uncomputed > 1):
            count = min(sequence.runnable, self._budget - sum(schedule.values()))
            if count < 1:
                break
            if sequence.table is None:  # preempted a moment ago
                continue
            while not self._manager.reserve(sequence.table, count, sequence.request_id):
                preempted = True
                victim = self.running[-1]
                self._preempt(victim)
                schedule.pop(victim, None)
                if victim is sequence:
                    break
            else:
                schedule[sequence] = count
        while self.waiting and not preempted and len(self.running) < self._max_num_seqs:
            if not self._start(self.waiting[0], schedule):
                break
        return schedule

    def room(self, schedule: Schedule) -> int:
        """Tokens that the budget has left beside a schedule."""
        return self._budget - sum(schedule.values())

    def grant(self, sequence: Sequence, tokens: int, drafts: int) -> int:
        """Reserve pages for drafts behind the tokens a sequence runs in this step; how many there is a place for."""
        table = sequence.table
        assert table is not None
        if self._manager.reserve(table, tokens + drafts, sequence.request_id):
            return drafts
        return min(drafts, table.reserved - table.computed - tokens)  # the rest of the page it has anyway

    def join(self, sequence: Sequence, beside: Sequence | None = None) -> None:
        """Let a sequence run that has a table already; where no place is left it waits, and is computed again.

        beside: one of the same request, behind which it stands in the order of arrival.
        """
        if sequence.table is not None and len(self.running) < self._max_num_seqs:
            at = self.running.index(beside) + 1 if beside in self.running else len(self.running)
            self.running.insert(at, sequence)
            return
        if sequence.table is not None:
            self._manager.release(sequence.table)
            sequence.table = None
        self.waiting.appendleft(sequence)

    def pause(self, sequence: Sequence) -> None:
        """Take a sequence that has nothing to compute out of the running ones; it keeps its table."""
        self.running.remove(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Let a sequence go, wherever it is; its pages are released."""
        if sequence.table is not None:
            self._manager.release(sequence.table)
            sequence.table = None
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _start(self, sequence: Sequence, schedule: Schedule) -> bool:
        """Give the first waiting sequence a table and its tokens; False if there is no budget or no room."""
        budget = self._budget - sum(schedule.values())
        if budget < 1:
            return False
        match = self._manager.match(sequence.tokens, salt=sequence.salt, limit=sequence.reusable)
        table = self._manager.open(match, request=sequence.request_id)
        sequence.table = table
        count = min(sequence.runnable, budget)
        if not self._manager.reserve(table, count, sequence.request_id):
            self._manager.release(table)
            sequence.table = None
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        schedule[sequence] = count
        if sequence.metrics.started_time is None:
            sequence.metrics.started_time = time.monotonic()
            sequence.metrics.cached_tokens = table.computed
        if self._events.listening:
            self._events.emit(EventKind.REQUEST_STARTED, request=sequence.request_id, count=table.computed)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's pages and put it first in the queue."""
        assert sequence.table is not None
        self._manager.release(sequence.table)
        sequence.table = None
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1
        sequence.metrics.preemptions += 1
        if self._events.listening:
            self._events.emit(EventKind.REQUEST_PREEMPTED, request=sequence.request_id)
