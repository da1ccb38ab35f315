"""What a request asks for, and what comes of it; names as in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvist.errors import UsageError

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    temperature: 0 is greedy. top_k: the k likeliest tokens only (0: all). top_p: the likeliest tokens that together
    have this probability. min_p: tokens at least this likely relative to the likeliest. seed: the same seed gives the
    same text in any batch. max_tokens: at most so many new tokens (None: until the context is full). stop_token_ids:
    end after one of these, besides the model's own end tokens, which `ignore_eos` disregards.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0.0 <= self.temperature <= 100.0:
            raise UsageError(f"temperature is {self.temperature}: give 0 (greedy) to 100")
        if self.top_k < 0 and self.top_k != -1:
            raise UsageError(f"top_k is {self.top_k}: give a whole number from 1, or 0 for all tokens")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p is {self.top_p}: give more than 0, up to 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise UsageError(f"min_p is {self.min_p}: give 0 to 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}: give a whole number from 1")


@dataclass(slots=True)
class RequestMetrics:
    """What a request cost.

    Cached tokens were found in the cache (at its start), computed ones were run, also again after a preemption, and
    also as drafts that were wrong.

    kv_projections: positions whose K and V were projected (in every layer). drafted_tokens: guesses of speculative
    decoding that were run; accepted_tokens: those of them that became tokens. Times are `time.monotonic()` seconds.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    kv_projections: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    arrival_time: float = 0.0
    started_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the drafted tokens that were accepted; None where nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What a step gave one request: a new token (None when it ended without one), and why it ended, if it did.

    With speculative decoding a step may give a request several, in order.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None
    metrics: RequestMetrics = field(repr=False)
