"""Who computes how many tokens in the next step.

There is no prefill and no decode, only tokens that are not computed yet.

**Order.** Requests stand in one fixed order, that of their turns: `(priority * PATIENCE + step of arrival, number)`,
lowest first. A level of priority is worth so many steps of waiting; since the order never changes and only finitely
many requests can ever stand before another one (those that come within its head start), and since the first of the
order always advances, nobody starves.

**Budget.** Each step computes at most `max_num_batched_tokens`. Sequences that need a single token (those that are
generating) come first; then prompts in order, cut to what is left of the budget; then new requests in order, while
there is room. No more requests start than the budget has tokens, so whoever generates gets its token in every step,
whatever prompts come: the gap between two tokens of a running sequence is one budgeted step. (Where branches or beams
are more than the budget has tokens they take turns, those that waited longest first.)

**Pages.** Where they run out a prompt takes what is left, or waits a step with what it has. Who generates takes the
pages of a victim, as does the first of the order, whatever it needs: the victim is of the worst priority, never the
first of the order, and the one whose loss is least (see `cache.room.loss`); of equals the last of the order. It is
computed again later, but for what is still cached of its sealed pages then.

**Common prefixes.** A request whose next page is being computed by a sequence of this step waits for it, and shares
it. That ends when the other one is through, or gone: a request that is not in this step is not waited for. As every
step computes at least a token of the page, nobody is held for more steps than it has tokens.

Drafts of speculative decoding come last: they get what the step's tokens leave of budget and pages, and nobody is
preempted for a draft.
"""

from __future__ import annotations

import time
from bisect import insort

from kvist.cache.manager import CacheManager
from kvist.cache.room import lacking, loss, room
from kvist.cache.table import PrefixMatch
from kvist.engine.eviction import Evictor, Steps
from kvist.engine.sequence import Sequence
from kvist.events import EventChannel, EventKind

Schedule = dict[Sequence, int]
"""Tokens to run, by sequence, in the order of the batch."""

PATIENCE = 1024  # steps of waiting that a level of priority is worth


class Scheduler:
    """Owns the waiting and the running sequences, and gives the running ones their page tables."""

    def __init__(
        self, manager: CacheManager, max_num_seqs: int, max_num_batched_tokens: int, events: EventChannel,
        evictor: Evictor | None = None,
    ) -> None:  # fmt: skip
        self._manager, self._events, self._evictor = manager, events, evictor
        self._max_num_seqs, self._budget = max_num_seqs, max_num_batched_tokens
        self.waiting: list[Sequence] = []  # both in order of turns
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._added = self._steps = 0
        self._evicting: tuple[Sequence, Steps] | None = None

    def add(self, sequence: Sequence) -> None:
        """Queue the first sequence of a new request, and say whose turn it is before and after."""
        self._added += 1
        sequence.turn = (sequence.priority * PATIENCE + self._steps, self._added)
        sequence.kept = None if self._evictor is None else self._evictor.kept(sequence.tokens)
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> Schedule:
        """Choose the next step's tokens and reserve their pages. Empty only if nothing waits or runs."""
        self._steps += 1
        schedule: Schedule = {}
        preemptions = self.preemptions
        for sequence in sorted(self.running, key=_before):
            if (left := self.room(schedule)) < 1:
                break
            count = min(sequence.runnable, left)  # 0: its prompt waits for entries to be evicted
            if count and sequence.table is not None and (count := self._make_room(sequence, count, schedule)):
                schedule[sequence] = count
        if preemptions == self.preemptions:
            self._start_waiting(schedule)
        for sequence in schedule:
            sequence.served = self._steps
        return schedule

    def evict(self) -> bool:
        """Go a step on with evicting entries of a prompt, the first in order; false if there is none, or no room."""
        if self._evicting is None:
            sequence = next((sequence for sequence in self.running if sequence.ripe), None)
            if sequence is None or not self._make_room_to_evict(sequence):
                return False
            assert self._evictor is not None and sequence.table is not None and sequence.kept is not None
            self._evicting = sequence, self._evictor.steps(sequence.table, sequence.kept)
        sequence, steps = self._evicting
        try:
            next(steps)
        except StopIteration as end:
            sequence.table, self._evicting = end.value, None
        return True

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

    def join(self, sequence: Sequence) -> None:
        """Let a sequence of a request that runs join it, with the table it has.

        Where no place is left, or without a table, it waits and is computed again.
        """
        if sequence.table is not None and len(self.running) < self._max_num_seqs:
            insort(self.running, sequence, key=_order)
            return
        self._let_go(sequence)
        insort(self.waiting, sequence, key=_order)

    def pause(self, sequence: Sequence) -> None:
        """Take a sequence that has nothing to compute out of the running ones; it keeps its table."""
        self.running.remove(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's pages and let it wait for its turn. It costs time, and changes no answer."""
        self._let_go(sequence)
        self.running.remove(sequence)
        insort(self.waiting, sequence, key=_order)
        self.preemptions += 1
        sequence.metrics.preemptions += 1
        if self._events.listening:
            self._events.emit(EventKind.REQUEST_PREEMPTED, request=sequence.request_id)

    def finish(self, sequence: Sequence) -> None:
        """Let a sequence go, wherever it is; its pages are released."""
        self._let_go(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        """Release a sequence's pages, if it has any."""
        if self._evicting is not None and self._evicting[0] is sequence:
            self._evicting[1].close()
            self._evicting = None
        if sequence.table is not None:
            self._manager.release(sequence.table)
            sequence.table = None

    def _make_room_to_evict(self, sequence: Sequence) -> bool:
        """Have the pages that evicting a prompt's entries takes. Only the first of the order takes those of others."""
        assert self._evictor is not None and sequence.table is not None and sequence.kept is not None
        while count := self._evictor.lacking(sequence.table, sequence.kept):
            victim = self._victim([count]) if sequence is self.running[0] else None
            if victim is None:
                return False
            self.preempt(victim)
        return True

    def _make_room(self, sequence: Sequence, count: int, schedule: Schedule) -> int:
        """Reserve pages for `count` tokens, or as many as there is room for; how many, 0 for none in this step."""
        table, prompt = sequence.table, sequence.uncomputed > 1
        assert table is not None
        while not self._manager.reserve(table, count, sequence.request_id):
            if prompt and (left := room(self._manager, table)):
                count = min(count, left)
                continue
            if prompt and sequence is not self.running[0]:
                return 0
            victim = self._victim(lacking(self._manager, table, count))
            if victim is None:  # it is alone, and beams that wait for it have the pages: see Engine._schedule
                return 0
            self.preempt(victim)
            schedule.pop(victim, None)
            if victim is sequence:
                return 0
        return count

    def _victim(self, wanted: list[int]) -> Sequence | None:
        """Whose pages to take where so many are wanted; None where only the first of the order runs."""
        worst = max((sequence.priority for sequence in self.running[1:]), default=0)
        found: Sequence | None = None
        least = (True, 0)
        for sequence in reversed(self.running[1:]):
            if sequence.priority == worst and sequence.table is not None:
                lost = loss(self._manager, sequence.table, wanted)
                if found is None or lost < least:
                    found, least = sequence, lost
        return found

    def _start_waiting(self, schedule: Schedule) -> None:
        """Start waiting sequences in order, while there is budget and room. Who is held for a prefix keeps a place."""
        held, most = 0, min(self._max_num_seqs, self._budget)
        for sequence in self.waiting[:most]:
            if len(self.running) + held >= most or self.room(schedule) < 1:
                return
            match = self._match(sequence)
            if self._is_coming(sequence, match, schedule):
                match.release()
                sequence.held += 1
                held += 1
            elif not self._start(sequence, match, schedule):
                return

    def _is_coming(self, sequence: Sequence, match: PrefixMatch, schedule: Schedule) -> bool:
        """Whether somebody computes the page right behind a match in this step, or begins to."""
        if not match.keys or match.kept is not None or sequence.held >= len(sequence.tokens):
            return False
        if sequence.kept is not None and any(
            other.kept == sequence.kept and other.salt == sequence.salt and other.table.kept is None
            for other in self.running
            if other.table is not None
        ):
            return True  # what is kept of the same prompt
        if match.cached >= sequence.prefix:
            return False
        size = self._manager.layout.page_size
        start, end = len(match.pages) * size, (len(match.pages) + 1) * size
        page = sequence.tokens[start:end]
        # equal keys: equal prefixes (and salts). As many keys: the page behind them is not computed yet.
        return len(page) == size and any(
            other.table is not None
            and len(other.table.keys) == len(match.keys)
            and other.table.keys[-1] == match.keys[-1]
            and other.tokens[start:end] == page
            for other in schedule
        )

    def _match(self, sequence: Sequence) -> PrefixMatch:
        """What is cached of a sequence: of what is kept of its prompt, if all of that is there, or of its prefix."""
        kept, salt = sequence.kept, sequence.salt
        if kept is not None:
            limit = sequence.reusable - kept.evicted
            match = self._manager.match(kept.slot_tokens(sequence.tokens), salt=salt, limit=limit, kept=kept)
            if match.cached >= kept.slots:
                return match
            match.release()
        return self._manager.match(sequence.tokens, salt=salt, limit=sequence.prefix)

    def _start(self, sequence: Sequence, match: PrefixMatch, schedule: Schedule) -> bool:
        """Give a waiting sequence a table that begins with a match, and its tokens; False if there is no room."""
        first = sequence.metrics.started_time is None
        limit = sequence.prefix if match.kept is None else sequence.reusable
        broke = self._manager.explain(match, sequence.tokens, limit) if first else None
        table = self._manager.open(match, request=sequence.request_id)
        sequence.table = table
        count = min(sequence.runnable, self.room(schedule))
        if not self.running:  # alone, it takes what there is: a window's pages may be fewer than a step's tokens
            count = min(count, max(room(self._manager, table), 1))
        if not self._manager.reserve(table, count, sequence.request_id):
            self._manager.release(table)
            sequence.table = None
            return False
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)
        if count:
            schedule[sequence] = count
        if broke is not None:
            sequence.metrics.started_time = time.monotonic()
            sequence.metrics.cached_tokens = table.positions
            sequence.metrics.reuse = broke.report(table.computed)
        if self._events.listening:
            self._events.emit(EventKind.REQUEST_STARTED, request=sequence.request_id, count=table.positions)
        return True


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return (*sequence.turn, sequence.index)


def _before(sequence: Sequence) -> tuple[bool, int]:
    """Who comes first in a step: single tokens, of those the ones that waited longest; else the order stays."""
    prompt = sequence.uncomputed > 1
    return prompt, 0 if prompt else sequence.served
