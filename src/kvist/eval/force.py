"""Teacher forcing through the decode path: documents side by side, one given token each a step.

A pass over a whole prompt might read K and V before they are stored; a decode step reads the pages, as generation does.
The reference runs chunks of positions over float32 pages. What a position's logits are does not depend on how the
prompt was cut, nor on float32 pages between (the exactness contract; a test compares with the uncached loop), so these
are the uncached float32 logits. Both go on in lockstep: only one chunk of logits is held at a time. ::

    positions   0 ................ 15 | 16 .............. 31 | ...
    reference   one step, all logits  |                      |
    methods     16 steps each         |                      |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvist.divergence import distances
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.errors import CapacityError
from kvist.eval.scores import FIELDS, SURE, Scores
from kvist.eval.text import Document
from kvist.kernels.program import Floats

CHUNK = 16
"""Positions of each document that the reference runs ahead."""


class Reading:
    """Documents on one engine, each read up to somewhere."""

    def __init__(self, engine: Engine, documents: Sequence[Document]) -> None:
        self._engine, self._documents = engine, documents
        self._tables = [engine.manager.open() for _ in documents]

    def run(self, active: Sequence[int], start: int, end: int) -> Floats:
        """Run positions start..end-1 of some documents: their logits (rows, vocab), document after document."""
        pieces = []
        for i in active:
            document = self._documents[i]
            table, tokens = self._tables[i], document.ids[start : min(end, document.positions)]
            if (evictor := self._engine.evictor) is not None and start == document.positions // 2:
                table = self._tables[i] = evictor.evict(table, document.ids[: start + 1])
            if not self._engine.manager.reserve(table, len(tokens)):
                raise CapacityError("the pages of the documents do not fit: measure fewer tokens")
            pieces.append(Piece(table, tokens, start, "all"))
        return self._engine.runner.forward(pieces)

    def first(self, i: int) -> int:
        """The first position of a document that may not see all there is, where a policy evicts entries of a prompt.

        The first half of a document is the prompt then, and the second is measured.
        """
        return 0 if self._engine.evictor is None else self._documents[i].positions // 2

    def close(self, i: int) -> int:
        """Let go of a document; the bytes it held."""
        manager = self._engine.manager
        before = manager.stats().live_bytes
        manager.release(self._tables[i])
        return before - manager.stats().live_bytes


def force(
    reference: Engine,
    engines: Sequence[Engine],
    documents: Sequence[Document],
    advanced: Callable[[int], None] = lambda positions: None,
    stride: int = 1,
) -> list[list[Scores]]:
    """Read documents on all engines; for each engine the scores of each document.

    Each engine must take as many sequences as there are documents, and the reference `CHUNK` rows for each, in pages
    of their own. `advanced` is told of positions that one engine has read. stride: positions of each document that the
    engines read in a step, a divisor of `CHUNK`; more than one are faster, give the same bits by the contract, and
    leave the decode path.
    """
    truth, readings = Reading(reference, documents), [Reading(engine, documents) for engine in engines]
    kept = [[_empty(document.positions) for document in documents] for _ in engines]
    held = [[0] * len(documents) for _ in engines]
    for start in range(0, max(document.positions for document in documents), CHUNK):
        active = [i for i, document in enumerate(documents) if document.positions > start]
        ends = {i: min(start + CHUNK, documents[i].positions) for i in active}
        logits = truth.run(active, start, start + CHUNK)
        firsts = dict(zip(active, np.cumsum([0, *(ends[i] - start for i in active)]).tolist(), strict=False))
        for own, into in zip(readings, kept, strict=True):
            for position in range(start, max(ends.values()), stride):
                read = [(i, at) for i in active for at in range(position, min(position + stride, ends[i]))]
                rows = [firsts[i] + at - start for i, at in read]
                tokens = [documents[i].ids[at + 1] for i, at in read]
                going = list(dict.fromkeys(i for i, _ in read))
                _keep(into, read, own.run(going, position, position + stride), logits[rows], tokens)
                advanced(len(read))
        for i in active:
            if ends[i] == documents[i].positions:
                truth.close(i)
                for own, sizes in zip(readings, held, strict=True):
                    sizes[i] = own.close(i)
    return [
        [_scores(arrays, size, own.first(i)) for i, (arrays, size) in enumerate(zip(*pair, strict=True))]
        for own, *pair in zip(readings, kept, held, strict=True)
    ]


Arrays = dict[str, np.ndarray]


def _empty(positions: int) -> Arrays:
    return {name: np.empty(positions, kind) for name, kind in FIELDS.items()}


def _scores(arrays: Arrays, live_bytes: int, first: int) -> Scores:
    measured: dict[str, Any] = {name: array[first:] for name, array in arrays.items()}
    return Scores(**measured, live_bytes=live_bytes, first=first)


def _keep(
    kept: Sequence[Arrays], read: Sequence[tuple[int, int]], logits: Floats, truth: Floats, tokens: Sequence[int]
) -> None:
    """Note one step: a row for each document and position that was read."""
    found = distances(logits, truth, tokens)
    columns = {
        "own": found.own, "reference": found.reference, "divergence": found.divergence, "same": found.same,
        "sure": found.margin > SURE,
    }  # fmt: skip
    for row, (i, position) in enumerate(read):
        for name, column in columns.items():
            kept[i][name][position] = column[row]
