"""What a step is told beside its program: its rows, its sequences, how large it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """The rows of one sequence in a step.

    `count` rows from `first` on are its slots `position`, `position` + 1, ... which are its positions too, but where
    entries were evicted. pages: int32 (groups, n), of each group of layers the ids of the pages that hold slots 0 ..
    position + count - 1, in order; `GONE` where no layer of a group sees a slot any more.
    """

    first: int
    count: int
    position: int
    pages: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BatchMetadata:
    """All a step is told, built once by engine.batch.

    Int32 arrays: one entry a row, but `sampled_rows`: the rows whose logits are asked for. positions: what a row's
    angles or learned positions go by; slots: where in its sequence's pages K and V go. row_pages: (groups, rows), the
    page of the slot.
    full_pages: (groups, n), pages that this step fills: what packed layers seal, and what is sketched. Not page 0 of a
    sequence, which is never read as it was packed and always by who chooses.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    row_pages: npt.NDArray[np.int32]
    sampled_rows: npt.NDArray[np.int32]
    sequences: Sequence[SequenceRows]
    slots: npt.NDArray[np.int32]
    full_pages: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty((1, 0), np.int32))


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest step a bound program must take. positions: of a sequence (None: what the pages hold)."""

    rows: int
    sampled: int
    sequences: int
    positions: int | None = None
