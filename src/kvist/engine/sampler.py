"""Choose the tokens of a step, each from its row of logits as if it were alone, and rate them (see `sampling`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import NamedTuple

from kvist.engine.guide import Bits
from kvist.engine.params import SamplingParams, TokenLogprob
from kvist.engine.sampling.alterations import Alterations
from kvist.engine.sampling.draws import uniform
from kvist.engine.sampling.masks import masked
from kvist.kernels.choosing import Chooser, Draw, Rated, Rating
from kvist.kernels.program import Floats


class Row(NamedTuple):
    """All that a token depends on: logits (vocab,) and the rest.

    likeliest: the index of the largest logit if it is known and all are finite (a kernel finds it sooner), else -1.
    position: of the token. ahead: drafts that stand between the sequence's tokens and this row. mask: of the tokens
    that may follow.
    """

    logits: Floats
    likeliest: int
    params: SamplingParams
    seed: int
    position: int
    alterations: Alterations | None = None
    ahead: Sequence[int] = ()
    mask: Bits | None = None


class Sampler:
    """Asks a chooser for the tokens of requests, and for their log-probabilities: all rows of a step at once."""

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser

    def choose(self, rows: Iterable[Row]) -> list[int]:
        """A token for each row. Greedy: the largest, the first of equals. Otherwise a draw from the kept tokens."""
        asked = [_draw(row) for row in rows]
        return self._chooser.draw(asked) if asked else []

    def logprobs(self, rows: Iterable[Rating]) -> list[tuple[TokenLogprob, ...]]:
        """Of each row's token, then of as many of the likeliest as are asked for (it may be among them).

        From the logits as the model gave them: no temperature, no penalties, no filters.
        """
        asked = list(rows)
        found = self._chooser.rate(asked) if asked else []
        return [_told(row.token, rated) for row, rated in zip(asked, found, strict=True)]

    def likeliest(self, logits: Floats, count: int) -> tuple[list[int], list[float]]:
        """The likeliest tokens of a row, of equals the lower id, and their log-probabilities."""
        found = self._chooser.rate([Rating(logits, -1, -1, count)])[0]
        return found.ids, found.logprobs


def _draw(row: Row) -> Draw:
    params, logits, likeliest = row.params, row.logits, row.likeliest
    changes = None if row.alterations is None else row.alterations.changes(row.ahead)
    if row.mask is not None:
        (logits, changes), likeliest = masked(logits, row.mask, changes), -1
    if params.greedy:
        return Draw(logits, likeliest, 0.0, 0, 1.0, 0.0, 1.0, 0.0, changes)
    return Draw(
        logits, likeliest, params.temperature, max(params.top_k, 0), params.top_p, params.min_p,
        params.typical_p, uniform(row.seed, row.position), changes,
    )  # fmt: skip


def _told(token: int, rated: Rated) -> tuple[TokenLogprob, ...]:
    """A `TokenLogprob` of each, made without a call of Python for each: there may be a thousand in a step."""
    own = (token, rated.logprob, rated.rank)
    others = zip(rated.ids, rated.logprobs, range(1, len(rated.ids) + 1), strict=True)
    return tuple(map(tuple.__new__, repeat(TokenLogprob), chain([own], others)))
