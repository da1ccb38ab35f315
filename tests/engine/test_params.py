"""Parameters that cannot be meant are refused, each with its name and what to give instead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.errors import UsageError


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 101, math.nan, math.inf, "hot", None, True]),
        ("top_k", [-2, 1.5, math.nan, "3", None, True]),
        ("top_p", [0.0, 1.1, math.nan, -1, None]),
        ("min_p", [-0.1, 1.5, math.nan, None]),
        ("typical_p", [0.0, 1.1, math.nan, "x"]),
        ("repetition_penalty", [0.0, -1.0, 101, math.nan, math.inf, None]),
        ("presence_penalty", [-2.1, 2.1, math.nan, "0"]),
        ("frequency_penalty", [-2.1, 2.1, math.nan, None]),
        ("seed", [1.5, "1", math.nan, True]),
        ("max_tokens", [0, -5, 1.5, math.nan, "3", True]),
        ("min_tokens", [-1, 17, 1.5, None, math.nan]),  # 17: above max_tokens, 16
        ("stop_token_ids", [[-1], [1.5], "12", [None], [True], list(range(1025))]),
        ("stop", ["", ["a", ""], [1], ["x"] * 17, "x" * 1025, 5, {"a"}]),
        ("logprobs", [-1, 21, 1.5, math.nan, True]),
        ("prompt_logprobs", [-1, 21, 1.5, "all"]),
        ("n", [0, 65, 1.5, math.nan, None, True]),
        ("best_of", [0, 65, 1.5, math.nan]),
        ("logit_bias", [{-1: 1.0}, {1: 101}, {1: math.nan}, {1: None}, {"1": 1.0}, {1.5: 1.0}, [1], dict.fromkeys(range(1025), 1)]),
        ("ignore_eos", [1, None, "no"]),
        ("include_stop_str_in_output", [0, None]),
        ("skip_special_tokens", ["yes", None]),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_meant(name: str, values: list[Any]) -> None:
    for value in values:
        options: dict[str, Any] = {name: value}
        with pytest.raises(UsageError, match=f"(?s)^{name}.*give"):
            SamplingParams(**options)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("beam_width", [0, 65, 1.5, None, math.nan, True]),
        ("max_tokens", [0, -1, 1.5, None]),
        ("ignore_eos", [1, None]),
        ("length_penalty", [math.nan, math.inf, 10.5, "1", None]),
        ("early_stopping", ["always", None, 1, math.nan]),
    ],
)
def test_beams_that_cannot_be_meant(name: str, values: list[Any]) -> None:
    for value in values:
        options: dict[str, Any] = {"beam_width": 2, "max_tokens": 4, name: value}
        with pytest.raises(UsageError, match=f"(?s)^{name}.*give"):
            BeamSearchParams(**options)


def test_several_answers_must_be_able_to_differ() -> None:
    with pytest.raises(UsageError, match=r"n is 2 .* the same: give a temperature"):
        SamplingParams(temperature=0, n=2)
    with pytest.raises(UsageError, match=r"best_of is 3 .* the same: give a temperature"):
        SamplingParams(top_k=1, best_of=3)
    with pytest.raises(UsageError, match=r"best_of is 2: give a whole number 4 to 64"):
        SamplingParams(n=4, best_of=2)


def test_what_is_at_the_edges_is_taken() -> None:
    SamplingParams(
        temperature=np.float32(0.5), top_k=np.int64(3), top_p=1, min_p=1, typical_p=1, seed=-(2**70), max_tokens=None,
        min_tokens=2000, stop=["x" * 1024] * 16, logprobs=20, prompt_logprobs=0, n=2, best_of=64, logit_bias={0: -100},
        repetition_penalty=0.01, presence_penalty=-2, frequency_penalty=2,
    )  # fmt: skip
    assert SamplingParams(stop="a").stops == ("a",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")
    assert SamplingParams().stops == ()
    BeamSearchParams(64, 1, length_penalty=-10, early_stopping="never")
