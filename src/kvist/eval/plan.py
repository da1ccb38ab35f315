"""What a run measures, and with which sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvist.errors import UsageError
from kvist.eval.passkey import DEPTHS, MARGIN
from kvist.eval.speed import STEADY


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes in tokens, but for counts.

    tokens: positions of a document at most. documents: how many. lengths, depths, seeds: of passkey texts, and how many
    places in each. contexts: where decode steps are timed, more than `STEADY` apart.
    """

    tokens: int
    documents: int
    lengths: tuple[int, ...]
    depths: int
    seeds: int
    contexts: tuple[int, ...]

    def within(self, longest: int) -> Plan:
        """The same for a model of `longest` positions: what is too long for it is cut or left out."""
        return replace(
            self,
            tokens=min(self.tokens, longest),
            lengths=tuple(length for length in self.lengths if MARGIN < length <= longest),
            contexts=tuple(context for context in self.contexts if context + STEADY <= longest),
        )

    def asking(self, longest: int, tokens: int | None, documents: int | None, seeds: int | None) -> Plan:
        """The same with sizes that somebody asked for. Raises UsageError for what the model cannot take."""
        if tokens is not None and tokens > longest:
            raise UsageError(f"{tokens} tokens are more than the {longest} positions of this model: give fewer")
        fitting = self.within(longest)
        return replace(
            fitting,
            tokens=tokens or fitting.tokens,
            documents=documents or self.documents,
            seeds=self.seeds if seeds is None else seeds,
        )


QUICK = Plan(tokens=160, documents=6, lengths=(400,), depths=5, seeds=1, contexts=(250, 900))
FULL = Plan(
    tokens=8000, documents=64, lengths=(1000, 2000, 4000, 8000), depths=DEPTHS, seeds=20,
    contexts=(250, 900, 4000, 8000),
)  # fmt: skip
"""Two contexts lie within 1,024 positions, so that every model has a slope: a rough one. `--speed` is for those."""
