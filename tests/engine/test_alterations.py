"""Penalties, biases and end tokens held back: against formulas that anyone can read, with and without drafts ahead."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvist.engine.params import SamplingParams
from kvist.engine.sampling.alterations import Alterations
from kvist.kernels.reference_choosing import changed

VOCAB = 40
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=60)
HALVES = st.integers(-4, 4).map(lambda n: n / 2)


def by_the_book(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], answer: list[int], ends: set[int]
) -> np.ndarray:
    """One token after the other, in float32."""
    found, times = logits.copy(), Counter(answer)
    for token in range(VOCAB):
        x = found[token]
        if token in ends and len(answer) < params.min_tokens:
            x = np.float32(-np.inf)
        x = x + np.float32((params.logit_bias or {}).get(token, 0.0))
        if token in prompt or token in answer:
            factor = np.float32(params.repetition_penalty)
            x = x / factor if x > 0 else x * factor
        x = x - np.float32(params.frequency_penalty) * np.float32(times[token])
        x = x - np.float32(params.presence_penalty) * np.float32(times[token] > 0)
        found[token] = x
    return found


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    prompt=TOKENS, answer=TOKENS, ahead=st.lists(st.integers(0, VOCAB - 1), max_size=5), seed=st.integers(0, 1000),
    repetition=st.sampled_from([1.0, 1.3, 0.5]), presence=HALVES, frequency=HALVES, least=st.integers(0, 16),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=4), ends=st.sets(st.integers(0, VOCAB - 1), max_size=3),
)  # fmt: skip
def test_a_row_is_altered_by_the_book(
    prompt: list[int], answer: list[int], ahead: list[int], seed: int, repetition: float, presence: float, frequency: float,
    least: int, bias: dict[int, float], ends: set[int],
) -> None:  # fmt: skip
    params = SamplingParams(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        min_tokens=least,
    )
    logits = np.random.RandomState(seed).standard_normal(VOCAB).astype(np.float32)
    kept = logits.copy()
    alterations = Alterations(params, tuple(prompt), frozenset(ends))
    for token in answer:
        alterations.add(token)
    expected = by_the_book(logits, params, prompt, answer + ahead, ends)
    assert np.array_equal(changed(logits, alterations.changes(ahead)), expected)
    assert np.array_equal(logits, kept)
    # looking ahead leaves nothing behind, and drafts that came true are as if they had been there
    assert np.array_equal(changed(logits, alterations.changes([])), by_the_book(logits, params, prompt, answer, ends))
    for token in ahead:
        alterations.add(token)
    assert np.array_equal(changed(logits, alterations.changes([])), expected)
    assert np.array_equal(
        changed(logits, alterations.anew().changes([])), by_the_book(logits, params, prompt, [], ends)
    )
    if not Alterations.wanted(params):
        assert np.array_equal(expected, logits)
