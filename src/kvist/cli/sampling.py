"""Flags that say how tokens are chosen, and what becomes of them: sampling parameters."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kvist.cli.flags import SAMPLING


def _option(flag: str, help_: str) -> Any:
    return typer.Option(flag, help=help_, rich_help_panel=SAMPLING)


MinTokens = Annotated[int, _option("--min-tokens", "Shortest answer in tokens: nothing ends it before.")]
Stop = Annotated[list[str] | None, _option("--stop", "End before this text; may be given several times.")]
Temperature = Annotated[float, _option("--temperature", "0 is greedy.")]
TopK = Annotated[int, _option("--top-k", "The k likeliest tokens only; 0: all.")]
TopP = Annotated[float, _option("--top-p", "The likeliest tokens that together have this probability.")]
MinP = Annotated[float, _option("--min-p", "Tokens at least this likely, relative to the likeliest.")]
TypicalP = Annotated[
    float, _option("--typical-p", "The tokens of most typical information that together have this probability.")
]
RepetitionPenalty = Annotated[
    float, _option("--repetition-penalty", "Divide the logits of tokens in prompt and answer; 1: do not.")
]
PresencePenalty = Annotated[float, _option("--presence-penalty", "Subtract from the logits of tokens in the answer.")]
FrequencyPenalty = Annotated[float, _option("--frequency-penalty", "The same, once for each time that they are in it.")]
Logprobs = Annotated[
    int | None,
    _option("--logprobs", "With --json: each token's log-probability, and those of the so many likeliest beside it."),
]
