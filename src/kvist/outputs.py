"""What text generation returns; names as in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvist.engine.params import FinishReason, RequestMetrics


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of an answer: the text that became certain with this token (it may be empty).

    `finish_reason` says why the answer ended, if it did.
    """

    request_id: str
    text: str
    token_id: int | None
    finish_reason: FinishReason | None
    metrics: RequestMetrics = field(repr=False)


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer. token_ids include the end token, text does not."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request. `prompt` is None where token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: tuple[CompletionOutput, ...]
    metrics: RequestMetrics
    finished: bool = True
