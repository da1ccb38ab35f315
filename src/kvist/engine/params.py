"""What a request asks for, and what comes of it; names as in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kvist.cache.report import ReuseReport
from kvist.engine.checks import flag, is_whole, number, whole
from kvist.errors import UsageError
from kvist.structured import StructuredOutputs

FinishReason = Literal["stop", "length", "abort"]

MOST_BRANCHES = 64  # n, best_of, beam_width
MOST_STOPS, LONGEST_STOP = 16, 1024  # stop strings, characters of one
MOST_STOP_TOKENS = MOST_BIASES = 1024
MOST_LOGPROBS = 20
COLDEST = 1e-5  # below this temperature the likeliest token is taken: float32 could not tell others apart


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    temperature: 0 is greedy. top_k: the k likeliest tokens only (0 or -1: all). top_p: the likeliest tokens that
    together have this probability. min_p: tokens at least this likely relative to the likeliest. typical_p: the tokens
    of most typical information that together have this probability. Each counts what the one before it left.
    seed: the same seed gives the same text in any batch. max_tokens: at most so many new tokens (None: until the
    context is full). min_tokens: no end before so many. stop_token_ids: end after one of these, besides the model's own
    end tokens, which `ignore_eos` disregards. stop: end where the text has one of these strings; the text ends before
    it, unless include_stop_str_in_output.
    repetition_penalty: logits of tokens in prompt or answer are divided by it where positive, else multiplied.
    presence_penalty, frequency_penalty: subtracted once, and once for each time, for tokens of the answer.
    logit_bias: added to the logits of token ids. logprobs, prompt_logprobs: tell the log-probability of each token
    of answer and prompt, and of the so many likeliest beside it (None: nothing), from the model's own logits.
    n: answers to one prompt; each has a seed of its own, made from `seed`. best_of: answers that are generated, of
    which the n with the highest cumulative log-probability are returned. skip_special_tokens: not in the text.
    structured_outputs: only tokens that keep to it are chosen, whatever else is asked for; the answer ends when it is
    complete, or is cut by max_tokens. Log-probabilities stay those of the model's own logits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        number("temperature", self.temperature, 0.0, 100.0, "0 (greedy) to 100")
        if not is_whole(self.top_k) or self.top_k < -1:
            raise UsageError(f"top_k is {self.top_k!r}: give a whole number from 1, or 0 for all tokens")
        number("top_p", self.top_p, 0.0, 1.0, "more than 0, up to 1", above=True)
        number("min_p", self.min_p, 0.0, 1.0, "0 to 1")
        number("typical_p", self.typical_p, 0.0, 1.0, "more than 0, up to 1", above=True)
        number("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "0.01 to 100, where 1 changes nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            number(name, getattr(self, name), -2.0, 2.0, "-2 to 2")
        if self.seed is not None and not is_whole(self.seed):
            raise UsageError(f"seed is {self.seed!r}: give a whole number")
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            flag(name, getattr(self, name))
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)
        whole("min_tokens", self.min_tokens, 0, self.max_tokens, "which is max_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 0, MOST_LOGPROBS)
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputs):
            raise UsageError(f"structured_outputs is {self.structured_outputs!r:.40}: give a StructuredOutputs")
        self._check_stops()
        self._check_bias()
        self._check_branches()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < COLDEST or self.top_k == 1

    @property
    def filters(self) -> bool:
        """Whether some tokens can never be drawn."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.typical_p < 1.0

    @property
    def penalizes(self) -> bool:
        """Whether tokens that are there already change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def branches(self) -> int:
        """Answers that are generated."""
        return self.n if self.best_of is None else self.best_of

    def _check_stops(self) -> None:
        ids = self.stop_token_ids
        if isinstance(ids, str) or not all(is_whole(token) and token >= 0 for token in ids):
            raise UsageError(f"stop_token_ids is {ids!r}: give a list of token ids")
        if len(ids) > MOST_STOP_TOKENS:
            raise UsageError(f"stop_token_ids has {len(ids)} entries: give at most {MOST_STOP_TOKENS}")
        wrong = f"stop is {repr(self.stop)[:40]}: give up to {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters"
        if self.stop is not None and not isinstance(self.stop, (str, Sequence)):
            raise UsageError(wrong)
        stops = self.stops
        if len(stops) > MOST_STOPS or not all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stops):
            raise UsageError(wrong)

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MOST_BIASES:
            raise UsageError(f"logit_bias: give up to {MOST_BIASES} token ids, each with a number")
        for token, bias in self.logit_bias.items():
            if not is_whole(token) or token < 0:
                raise UsageError(f"logit_bias has {token!r} as a token id: give whole numbers from 0")
            number(f"logit_bias of token {token}", bias, -100.0, 100.0, "-100 to 100")

    def _check_branches(self) -> None:
        whole("n", self.n, 1, MOST_BRANCHES)
        if self.best_of is not None:
            whole("best_of", self.best_of, self.n, MOST_BRANCHES)
        if self.branches > 1 and self.greedy:
            name = "n" if self.best_of is None else "best_of"
            raise UsageError(f"{name} is {self.branches} and all answers would be the same: give a temperature")


@dataclass(frozen=True, slots=True)
class BeamSearchParams:
    """How beams are searched; names as in vLLM, early_stopping as in transformers.

    beam_width: beams that are kept, and answers that are returned. max_tokens: at most so many new tokens.
    ignore_eos: go on after the model's end tokens. length_penalty: an answer's score is its cumulative
    log-probability / length ** length_penalty. early_stopping: True ends with as many answers as beams;
    False when no beam beats the worst answer at its present length; "never" when none can at any length.
    structured_outputs: refused.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    structured_outputs: None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        whole("beam_width", self.beam_width, 1, MOST_BRANCHES)
        whole("max_tokens", self.max_tokens, 1)
        flag("ignore_eos", self.ignore_eos)
        number("length_penalty", self.length_penalty, -10.0, 10.0, "-10 to 10")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UsageError(f'early_stopping is {self.early_stopping!r}: give True, False or "never"')
        if self.structured_outputs is not None:
            raise UsageError(
                "structured_outputs: beams are ranked by the model's own log-probabilities, which know no grammar; "
                "use SamplingParams, with n for several answers"
            )


@dataclass(slots=True)
class RequestMetrics:
    """What a request cost, all its branches or beams together.

    Cached tokens were found in the cache (at its start), computed ones were run, also again after a preemption, and
    also as drafts that were wrong.

    kv_projections: positions whose K and V were projected (in every layer). drafted_tokens: guesses of speculative
    decoding that were run; accepted_tokens: those of them that became tokens. reuse: what of the prompt came from the
    cache, and why not more; None until it starts. policy: which positions tokens saw, where it is not all.
    kv_cache_dtype: the codec of the pages; lossy: whether it packs full pages. Times are `time.monotonic()` seconds.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    kv_projections: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    reuse: ReuseReport | None = None
    policy: str = "full"
    kv_cache_dtype: str = "auto"
    lossy: bool = False
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


class TokenLogprob(NamedTuple):
    """How likely a token was: log-probability in nats, and its place among all tokens, from 1."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What a step gave one request: a new token (None when it ended without one), and why it ended, if it did.

    With speculative decoding a step may give a request several, in order. index: which of its `n` branches.
    stop_reason: the stop string, or the one of stop_token_ids, that ended it; of an "abort" why its guide failed.
    logprobs: of the token, then of the likeliest; None where they were not asked for. cumulative_logprob: of the branch
    so far, where it is known. prompt_logprobs: with a branch's first token, of the prompt's tokens from the second on.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None
    metrics: RequestMetrics = field(repr=False)
    index: int = 0
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    cumulative_logprob: float | None = None
    prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...] | None = field(default=None, repr=False)
