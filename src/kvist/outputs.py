"""What text generation returns; names as in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvist.engine.params import FinishReason, RequestMetrics


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was: log-probability in nats, its place among all tokens (from 1), and its text."""

    logprob: float
    rank: int
    decoded_token: str


Logprobs = Mapping[int, Logprob]
"""Of one place, by token id: the token that stands there, then the likeliest."""


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of an answer: the text that became certain with this token (it may be empty).

    `finish_reason` says why the answer ended, if it did, `stop_reason` the stop string or the one of stop_token_ids.
    index: which of n answers.
    """

    request_id: str
    text: str
    token_id: int | None
    finish_reason: FinishReason | None
    metrics: RequestMetrics = field(repr=False)
    index: int = 0
    stop_reason: int | str | None = None
    logprobs: Logprobs | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer. token_ids include the end token and those of a stop string, text does not (unless asked to).

    cumulative_logprob, logprobs: of all its tokens; of each. None where they were not asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: tuple[Logprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request. `prompt` is None where token ids were given.

    prompt_logprobs: of each token of the prompt, None for the first; None where they were not asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: tuple[CompletionOutput, ...]
    metrics: RequestMetrics
    finished: bool = True
    prompt_logprobs: tuple[Logprobs | None, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """One answer of a beam search: `tokens` and `text` with the prompt, as in vLLM; answer_text without it.

    cum_logprob: of the answer's tokens. score: cum_logprob / length ** length_penalty.
    """

    tokens: tuple[int, ...]
    cum_logprob: float
    score: float
    text: str
    answer_text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """The answers of a beam search, the best first."""

    sequences: tuple[BeamSearchSequence, ...]
    metrics: RequestMetrics = field(repr=False)
