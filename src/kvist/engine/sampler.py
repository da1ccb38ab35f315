"""Choose the tokens of a step: each from its row of logits as if it were alone (see `sampling`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvist.engine.params import SamplingParams
from kvist.engine.sampling.alterations import Alterations
from kvist.engine.sampling.blocks import block_sums, check_finite
from kvist.engine.sampling.draws import uniform
from kvist.engine.sampling.filters import draw, draw_from_all, weights_of
from kvist.kernels.program import Floats


@dataclass(frozen=True, slots=True)
class Row:
    """All that a token depends on: logits (vocab,) and the rest.

    likeliest: the index of the largest logit if it is known and all are finite (a kernel finds it sooner), else -1.
    position: of the token. ahead: drafts that stand between the sequence's tokens and this row.
    """

    logits: Floats
    likeliest: int
    params: SamplingParams
    seed: int
    position: int
    alterations: Alterations | None = None
    ahead: Sequence[int] = ()


class Sampler:
    """Chooses tokens; it keeps room for one row of weights and one of altered logits."""

    def __init__(self) -> None:
        self._weights = self._altered = np.empty(0, np.float32)

    def choose(self, rows: Sequence[Row]) -> list[int]:
        """A token for each row. Greedy: the largest, the first of equals. Otherwise a draw from the kept tokens."""
        with np.errstate(over="ignore"):  # a low temperature: all but the likeliest are infinitely unlikely
            return [self._choose(row) for row in rows]

    def _choose(self, row: Row) -> int:
        params, logits, best = row.params, row.logits, row.likeliest
        if row.alterations is not None:
            if len(self._altered) != len(logits):
                self._altered = np.empty(len(logits), np.float32)
            logits, best = row.alterations.apply(logits, row.ahead, self._altered), -1
        if best < 0:
            best = int(logits.argmax())
            check_finite(float(logits[best]))  # argmax finds a NaN wherever it is
        if params.greedy:
            return best
        if len(self._weights) != len(logits):
            self._weights = np.empty(len(logits), np.float32)
        top, number = float(logits[best]), uniform(row.seed, row.position)
        if params.filters:
            return draw(logits, top, params, number, self._weights)
        weights = weights_of(logits, top, params.temperature, self._weights)
        return draw_from_all(weights, block_sums(weights).astype(np.float64).cumsum(), number)
