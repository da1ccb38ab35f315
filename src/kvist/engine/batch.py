"""Build a step's `BatchMetadata` from pieces of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvist.cache.table import PageTable
from kvist.kernels.program import BatchMetadata, SequenceRows

Wanted = Literal["none", "last", "all"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one sequence to run at positions `start`, `start` + 1, ...

    `logits` are wanted of none, the last or all of them.

    Positions the table has computed already are run again without touching its pages (for their logits); the others
    are written to the pages reserved for them. The last `drafts` tokens are guesses: they are written, not committed.
    """

    table: PageTable
    tokens: Sequence[int]
    start: int
    logits: Wanted
    drafts: int = 0


def build_batch(pieces: Sequence[Piece], page_size: int, scrap: Sequence[int]) -> BatchMetadata:
    """The step's arrays.

    scrap: of each group the page that takes K and V of positions which must not be written (any page id if there are
    none).
    """
    rows = sum(len(piece.tokens) for piece in pieces)
    tokens, positions, slots = (np.empty(rows, np.int32) for _ in range(3))
    row_pages = np.empty((len(scrap), rows), np.int32)
    sequences: list[SequenceRows] = []
    sampled: list[npt.NDArray[np.int32]] = []
    full: list[npt.NDArray[np.int32]] = []
    first = 0
    for piece in pieces:
        count, end, start = len(piece.tokens), first + len(piece.tokens), piece.start - piece.table.evicted
        pages = np.array(piece.table.groups, np.int32)
        tokens[first:end] = piece.tokens
        if count == 1:  # decode: no arrays for one number
            positions[first], slots[first] = piece.start, start
            row_pages[:, first] = pages[:, start // page_size]
        else:
            slots[first:end] = own = np.arange(start, start + count, dtype=np.int32)
            positions[first:end] = own + piece.table.evicted
            row_pages[:, first:end] = pages[:, own // page_size]
        again = min(count, piece.table.computed - start)
        if again > 0:
            row_pages[:, first : first + again] = np.array(scrap, np.int32)[:, None]
        filled = max(1, piece.table.computed // page_size), (start + count) // page_size
        if filled[0] < filled[1]:
            full.append(pages[:, filled[0] : filled[1]])
        if piece.logits == "all":
            sampled.append(np.arange(first, end, dtype=np.int32))
        elif piece.logits == "last":
            sampled.append(np.array([end - 1], np.int32))
        sequences.append(SequenceRows(first, count, start, pages))
        first = end
    wanted = np.concatenate(sampled) if sampled else np.empty(0, np.int32)
    full_pages = np.concatenate(full, axis=1) if full else np.empty((len(scrap), 0), np.int32)
    return BatchMetadata(tokens, positions, row_pages, wanted, sequences, slots, full_pages)
