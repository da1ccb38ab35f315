"""Eviction of a prompt's entries: score them, keep the best, and go on with those in pages of their own.

::

    plain table    | p0 .. p15 | p16 .. p31 | ... | .. p999 |          all of the prompt but its last token
                          │ score: rows are run again over these pages, which do not change
    kept table     | e0 .. e15 | ... | .. e511 |                        in each layer and KV head other positions'
                                                 ▲ the last token goes here, at position 1000

Both tables hold pages until the copy is made; then the plain one is released, and its pages stay cached for prompts
that begin alike. The kept ones are published under a root key of their own, so the same prompt finds them next time.

Scores are of the prompt alone: nothing depends on the batch, on how the prompt was computed, or on what was cached.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvist.cache.entries import copy_entries, read_entries
from kvist.cache.manager import CacheManager
from kvist.cache.policy.evict import FIRST, NEWEST, Evict
from kvist.cache.score import Prompt, Seen, score
from kvist.cache.table import ENTRY, Kept, PageTable
from kvist.divergence import log_probabilities
from kvist.engine.batch import Piece
from kvist.engine.moments import Moments
from kvist.engine.runner import Runner
from kvist.errors import CapacityError
from kvist.kernels.program import Attend, Executable, Floats, Program, RotaryStore
from kvist.kernels.watching import Watching, watching

SPARE = 2
"""Pages that eviction may take beside those that hold something new."""

Bind = Callable[[Program, int, int], Executable]
"""Makes a program runnable, for steps of so many rows, of which so many have logits."""

Steps = Generator[None, None, PageTable]
"""A step each time it is asked for more; returns the table to go on with."""

SURPRISED = 64
"""Rows of a step that has logits of all."""


class Evictor:
    """Applies the policy `rule` to tables of one manager.

    program: a step of the model. budget: rows of a step at most. instruction: see `Prompt`.
    """

    def __init__(
        self, rule: Evict, program: Program, bind: Bind, manager: CacheManager, budget: int, longest: int,
        instruction: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.rule, self._manager, self._budget, self._instruction = rule, manager, budget, tuple(instruction)
        self._score = score(rule.by)
        self._attends = [op for op in program.ops if isinstance(op, Attend)]
        self._rotaries = [op.rotary for op in program.ops if isinstance(op, RotaryStore)]
        self._head_dim = program.head_dim
        self._watching: Watching | None = None
        self._runner: Runner | None = None
        self._predicting: Runner | None = None
        if self._score.watch != "nothing":
            self._watching = watching(program, self._score.watch, budget, longest)
            self._runner = Runner(bind(self._watching.program, budget, 1), manager)
        if self._score.surprised:
            self._predicting = Runner(bind(program, SURPRISED, SURPRISED), manager)

    def kept(self, prompt: Sequence[int]) -> Kept | None:
        """What is to be left of a prompt, which is all but its last token; None where nothing is evicted."""
        positions = len(prompt) - 1
        slots = self.rule.kept(positions)
        if slots >= positions:
            return None
        return Kept(tuple(prompt[:positions]), slots, repr((self.rule.name, self._instruction)).encode())

    def pages(self, positions: int) -> int:
        """Pages that a prompt of so many positions takes until its entries are evicted, at most."""
        layout = self._manager.layout
        # and what a fork writes to is copied, and both may begin and end inside of pages
        return layout.pages_for(positions) + layout.pages_for(self.rule.extra(positions)) + SPARE

    def lacking(self, table: PageTable, kept: Kept) -> int:
        """How many pages `steps` would need beyond those that can be allocated."""
        return max(0, self.pages(len(kept.tokens)) - len(table.pages) - self._manager.ledgers[0].allocator.available)

    def evict(self, table: PageTable, prompt: Sequence[int]) -> PageTable:
        """All of `steps` at once, where something is to be evicted; else the table as it is."""
        kept = self.kept(prompt)
        if kept is None:
            return table
        steps = self.steps(table, kept)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                made: PageTable = end.value
                return made

    def steps(self, table: PageTable, kept: Kept) -> Steps:
        """Make a table of what is kept; `table`, which holds the prompt, is released when it is there.

        All pages are taken in the first step. Closed before its end it leaves everything as it was. One at a time: what
        is seen of the rows has one place. Raises CapacityError where there are too few pages.
        """
        manager = self._manager
        with ExitStack() as undo:
            target = manager.open(manager.match((), salt=table.salt, kept=kept), request=table.request)
            undo.callback(manager.release, target)
            self._reserve(target, kept.slots)
            moments = yield from self._watch(table, target, kept)
            for layer in range(len(self._attends)):
                best = self._best(layer, table, kept, moments)
                copy_entries(manager.ledgers[0].pool, table.pages, target.pages, layer, best)
            manager.commit(target, [ENTRY] * kept.slots)
            undo.pop_all()
        manager.release(table)
        return target

    def _watch(self, table: PageTable, scrap: PageTable, kept: Kept) -> Generator[None, None, list[Moments]]:
        """Run what the score wants to see, a step's rows at a time. It is in `_watching`, or moments are returned."""
        if self._watching is None or self._runner is None:
            return []
        into, weights = self._watching.into, self._watching.weights
        moments = [Moments(self._heads(rows)) for rows in into] if self._score.watch == "queries" else []
        for array in into:
            array.fill(0)
        behind = self._score.beyond(len(kept.tokens))
        with ExitStack() as undo:
            if behind:
                table = self._manager.fork(table, request=table.request)
                undo.callback(self._manager.release, table)
                self._reserve(table, behind)
            surprisals = yield from self._surprisals(table, scrap, kept.tokens)
            for each in self._score.passes(Prompt(kept.tokens, self._instruction, surprisals)):
                for at in range(0, len(each.tokens), self._budget):
                    tokens = each.tokens[at : at + self._budget]
                    weights[: len(tokens)] = 1 if each.counts is None else each.counts[at : at + len(tokens)]
                    drafts = len(tokens) if behind else 0  # they are never committed
                    self._runner.forward([Piece(table, tokens, each.start + at, "none", drafts)], scrap)
                    for layer, own in enumerate(moments):
                        own.add(self._heads(into[layer])[: len(tokens)])
                    yield
        return moments

    def _surprisals(
        self, table: PageTable, scrap: PageTable, tokens: Sequence[int]
    ) -> Generator[None, None, npt.NDArray[np.float64]]:
        """See `Prompt`, a step at a time."""
        found = np.empty(len(tokens) - 1 if self._predicting else 0)
        if self._predicting is not None:
            for at in range(0, len(found), SURPRISED):
                end = min(at + SURPRISED, len(found))
                logits = self._predicting.forward([Piece(table, tokens[at:end], at, "all")], scrap)
                found[at:end] = -log_probabilities(logits, tokens[at + 1 : end + 1])
                yield
        return found

    def _best(self, layer: int, table: PageTable, kept: Kept, moments: Sequence[Moments]) -> npt.NDArray[np.intp]:
        """The positions of a layer to keep, ascending, (KV heads, slots)."""
        count, pool = len(kept.tokens), self._manager.ledgers[0].pool
        keys, values = read_entries(pool, table.pages, layer, count)
        seen = Seen(keys, values, self._attends[layer].scale)
        if moments:
            mean, covariance = moments[layer].result()
            seen = replace(seen, mean=mean, covariance=covariance, turn=self._turn(layer, count))
        elif self._watching is not None:
            seen = replace(seen, attention=self._watching.into[layer][:, :count])
        importance = np.array(self._score.importance(seen), np.float64)
        importance[:, :FIRST] = importance[:, -NEWEST:] = np.inf
        # stable: of equals the first
        return np.sort(np.argsort(-importance, axis=1, kind="stable")[:, : kept.slots], axis=1)

    def _turn(self, layer: int, start: int) -> npt.NDArray[np.float64] | None:
        """Mean cosines and sines of the positions behind a prompt."""
        rotary = self._rotaries[layer]
        if rotary is None:
            return None
        ahead = slice(start, start + self._score.ahead)
        return np.stack([table[ahead].astype(np.float64).mean(0) for table in (rotary.cos, rotary.sin)])

    def _heads(self, rows: Floats) -> Floats:
        """Rows of queries, head by head."""
        return rows.reshape(len(rows), -1, self._head_dim)

    def _reserve(self, table: PageTable, slots: int) -> None:
        if not self._manager.reserve(table, slots):
            raise CapacityError("no pages are left to evict entries of a prompt: raise kv_cache_memory_bytes")
