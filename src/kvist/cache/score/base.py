"""What a score is: a number for each entry of a layer and KV head, the higher the more it matters.

A score is a pure function of the prompt, the model and the pages' codec. Some look at what queries do: they name rows
to run once the prompt is computed, over its pages, whoever computed those; what is seen of these rows does not depend
on how they are cut into steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Watch = Literal["nothing", "sum", "max", "queries"]
"""What is seen of the rows: the attention that each position gets, added up over rows and the heads of a group, or the
largest; or mean and covariance of the queries before they are rotated.
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known before anything is run for a score.

    instruction: tokens that ask to repeat the text, where a tokenizer is there to make them. surprisals: (tokens - 1,),
    nats, of each token but the first after those before it; empty if the score does not want them.
    """

    tokens: Sequence[int]
    instruction: Sequence[int] = ()
    surprisals: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True, slots=True)
class Pass:
    """Tokens to run at positions `start`, `start` + 1, ...: those of the prompt again, or others behind it.

    counts: float32, what the attention of each row counts (None: 1).
    """

    tokens: Sequence[int]
    start: int
    counts: Array | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A layer of a prompt of n positions.

    keys, values: (KV heads, n, head size), as the pages hold them, keys rotated. attention: (KV heads, n). mean,
    covariance: of the queries, (heads, head size) and (heads, head size, head size). turn: mean cosines and sines, (2,
    half), of the positions behind the prompt; None where nothing is rotated. scale: of the scores of attention.
    """

    keys: Array
    values: Array
    scale: float
    attention: Array | None = None
    mean: Array | None = None
    covariance: Array | None = None
    turn: Array | None = None


def lengths(vectors: Array) -> npt.NDArray[np.float64]:
    """Of vectors (..., head size)."""
    found: npt.NDArray[np.float64] = np.sqrt(np.square(vectors.astype(np.float64)).sum(-1))
    return found


class Score(Protocol):
    """See the module."""

    @property
    def watch(self) -> Watch:
        """What must be seen."""

    @property
    def ahead(self) -> int:
        """Positions behind the prompt whose angles it wants."""

    def beyond(self, positions: int) -> int:
        """Positions behind a prompt of so many that its passes reach, at most."""

    @property
    def surprised(self) -> bool:
        """Whether it goes by how surprising the prompt's tokens are."""

    def passes(self, prompt: Prompt) -> Iterator[Pass]:
        """What to run."""

    def importance(self, seen: Seen) -> Array:
        """The scores of a layer, (KV heads, n)."""


@dataclass(frozen=True, slots=True)
class Attended:
    """The attention that entries get from the `rows` last rows of the prompt (None: all), added up."""

    rows: int | None
    watch: ClassVar[Watch] = "sum"
    ahead: ClassVar[int] = 0
    surprised: ClassVar[bool] = False

    def beyond(self, positions: int) -> int:
        """See `Score`."""
        return 0

    def passes(self, prompt: Prompt) -> Iterator[Pass]:
        """See `Score`."""
        start = max(0, len(prompt.tokens) - (self.rows or len(prompt.tokens)))
        yield Pass(prompt.tokens[start:], start)

    def importance(self, seen: Seen) -> Array:
        """See `Score`."""
        assert seen.attention is not None
        return seen.attention
