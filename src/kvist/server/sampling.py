"""A request's fields as the engine's parameters, within the server's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.server.failures import ApiError
from kvist.server.schema import BEAMS, CHOOSING, Sampling, asked_for
from kvist.server.settings import ServerSettings
from kvist.structured import StructuredOutputs

PASSED = (
    "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "n",
    "min_tokens", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "skip_special_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for beside its prompt. most: of its answer (None: as far as the context goes).

    structured: what the answer must look like. special_tokens: they are wanted in its text, whatever the request says.
    """

    most: int | None
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: StructuredOutputs | None = None
    special_tokens: bool = False


def parameters(asked: Sampling, wish: Wish, settings: ServerSettings) -> SamplingParams | BeamSearchParams:
    """The parameters; ApiError for what is over a limit, UsageError for what cannot be meant."""
    _check_limits(asked, wish, settings)
    most = wish.most
    if asked.use_beam_search:
        return _beams(asked, most)
    name = asked_for(vars(asked), BEAMS)
    if name is not None:
        raise ApiError(400, f"{name} is for beam searches: set use_beam_search to true as well", name)
    given: dict[str, Any] = {name: getattr(asked, name) for name in PASSED if getattr(asked, name) is not None}
    given["temperature"] = 1.0 if asked.temperature is None else asked.temperature
    if asked.logit_bias:
        given["logit_bias"] = {_token(key): value for key, value in asked.logit_bias.items()}
    if wish.special_tokens:
        given["skip_special_tokens"] = False
    return SamplingParams(
        **given,
        max_tokens=most,
        best_of=wish.best_of,
        logprobs=wish.logprobs,
        prompt_logprobs=wish.prompt_logprobs,
        structured_outputs=wish.structured,
    )


def _beams(asked: Sampling, most: int | None) -> BeamSearchParams:
    name = asked_for(vars(asked), CHOOSING)
    if name is not None:
        raise ApiError(400, f"{name} and a beam search do not go together: leave one of them out", name)
    if asked.stream:
        raise ApiError(400, "a beam search has its answers at the end only: leave stream out", "stream")
    if most is None:
        raise ApiError(400, "a beam search needs max_tokens: say how long an answer may be", "max_tokens")
    return BeamSearchParams(asked.n or 1, most, asked.ignore_eos, asked.length_penalty, asked.early_stopping)


def _check_limits(asked: Sampling, wish: Wish, settings: ServerSettings) -> None:
    over = [("n", asked.n, settings.max_n), ("best_of", wish.best_of, settings.max_n)]
    if asked.use_beam_search:
        over = [("n", asked.n, settings.max_beam_width)]
    if isinstance(asked.stop, list):
        over.append(("stop", len(asked.stop), settings.max_stops))
    for name, value, limit in over:
        if value is not None and value > limit:
            raise ApiError(400, f"{name} is {value} and this server takes {limit} at most", name)


def _token(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10):
        raise ApiError(400, f"logit_bias has {key[:40]!r} as a token id: give whole numbers from 0", "logit_bias")
    return int(key)
