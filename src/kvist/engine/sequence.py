"""A sequence: the tokens of one request, and how far they are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvist.cache.table import PageTable
from kvist.engine.params import RequestMetrics, SamplingParams


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens being generated. The scheduler alone sets `table`; None while it waits.

    limit: total tokens after which it ends. stops: token ids that end it. seed: of its draws, fixed at submission.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    limit: int
    stops: frozenset[int]
    seed: int
    salt: bytes
    metrics: RequestMetrics
    table: PageTable | None = field(default=None)

    @property
    def computed(self) -> int:
        """Tokens whose K and V are in pages."""
        return 0 if self.table is None else self.table.computed

    @property
    def uncomputed(self) -> int:
        """Tokens that must still be run; the last one's logits give the next token."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens made so far."""
        return len(self.tokens) - self.prompt_length
