"""The workloads that every engine is measured with; names and shapes as the project's conventions give them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from kvist.bench.roofline import Cost, Roofline
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError

Prompt = list[int]

DECODES = {"decode_1": (1, 32), "decode_1_ctx8000": (1, 8000), "decode_16": (16, 32), "decode_64": (64, 32)}
"""Sequences that generate together, and the tokens each has before."""

PREFILLS = {"prefill_2048": 2048}
"""Tokens of a prompt that is not cached."""


@dataclass(frozen=True, slots=True)
class Result:
    """One workload: its rate, its time and its share of the bound.

    The time is of one step for decode, to the first token for ttft, of everything for the rest.

    bound: "read" or "fma", the limit that the share is of; None where no single one applies. samples: seconds of each
    repetition.
    """

    name: str
    tokens_per_s: float | None
    seconds: float | None
    roofline_share: float | None
    bound: str | None
    samples: tuple[float, ...] = ()
    note: str = ""


@dataclass
class Setting:
    """What a workload runs in."""

    engine: Engine
    cost: Cost
    roofline: Roofline
    repeats: int

    def prompt(self, length: int, seed: int) -> Prompt:
        """Token ids, another sequence for every seed."""
        return [int(token) for token in np.random.default_rng(seed).integers(0, self.engine.limits.vocab_size, length)]


def _shared(
    setting: Setting, bound: str, amount: float, run: Callable[[], float]
) -> tuple[float, float, tuple[float, ...]]:
    """Repeat `run` (it gives seconds) between probes of the machine.

    Returns the median seconds, the median share of `amount` a second against the better probe beside it, all seconds.
    """
    samples, shares = [], []
    before = setting.roofline.probe(bound)
    for _ in range(setting.repeats):
        seconds = run()
        after = setting.roofline.probe(bound)
        samples.append(seconds)
        shares.append(amount / seconds / max(before, after))
        before = after
    return median(samples), median(shares), tuple(samples)


def decode(setting: Setting, name: str, sequences: int, context: int, steps: int = 48) -> Result:
    """Tokens per second of `sequences` that generate together, each behind `context` tokens; the median step counts."""
    engine = setting.engine
    if context + steps + 2 > engine.limits.max_model_len:
        return Result(
            name,
            None,
            None,
            None,
            None,
            note=f"needs {context + steps + 2} positions, the model has {engine.limits.max_model_len}",
        )
    prompts = [setting.prompt(context, 1000 * sequences + i) for i in range(sequences)]
    params = SamplingParams(temperature=0.0, max_tokens=steps + 1, ignore_eos=True)

    def run() -> float:
        names = [engine.submit(prompt, params) for prompt in prompts]
        waiting = set(names)
        while waiting:  # until each has its first token
            waiting -= {output.request_id for output in engine.step()}
        times = []
        while engine.has_work:
            begin = time.perf_counter()
            made = len(engine.step())
            if made == sequences:
                times.append(time.perf_counter() - begin)
        return median(times)

    run()  # fills the cache: repetitions need not compute the context again
    bound, amount = setting.roofline.limit(*setting.cost.of([(context + steps // 2 - 1, 1)] * sequences, sequences))
    seconds, share, samples = _shared(setting, bound, amount, run)
    return Result(name, sequences / seconds, seconds, share, bound, samples)


def prefill(setting: Setting, name: str, length: int) -> Result:
    """Tokens per second of computing a prompt that is not cached."""
    engine = setting.engine
    if length + 1 > engine.limits.max_model_len:
        return Result(
            name,
            None,
            None,
            None,
            None,
            note=f"needs {length + 1} positions, the model has {engine.limits.max_model_len}",
        )
    seeds = iter(range(10**6))
    bound, amount = setting.roofline.limit(*setting.cost.of([(0, length)], 1))
    seconds, share, samples = _shared(
        setting, bound, amount, lambda: first_token(engine, setting.prompt(length, 500_000 + next(seeds)))[0]
    )
    return Result(name, length / seconds, seconds, share, bound, samples)


def first_token_times(setting: Setting, length: int) -> tuple[Result, Result]:
    """Time to the first token of a prompt, new (cold) and known (warm).

    Both answers must be the same 16 tokens.
    """
    cold_name, warm_name = f"ttft_cold_{length}", f"ttft_warm_{length}"
    engine = setting.engine
    if length + 16 > engine.limits.max_model_len:
        note = f"needs {length + 16} positions, the model has {engine.limits.max_model_len}"
        return Result(cold_name, None, None, None, None, note=note), Result(
            warm_name, None, None, None, None, note=note
        )
    cold, warm = [], []
    for repeat in range(setting.repeats):
        prompt = setting.prompt(length, 700_000 + repeat)
        seconds, text = first_token(engine, prompt, 16)
        again, same = first_token(engine, prompt, 16)
        if text != same:
            raise UsageError(
                "the warm answer differs from the cold one: run `kvist verify` on this model and report it"
            )
        cold.append(seconds)
        warm.append(again)
    return (
        Result(cold_name, length / median(cold), median(cold), None, None, tuple(cold)),
        Result(warm_name, length / median(warm), median(warm), None, None, tuple(warm), "warm text = cold text"),
    )


def mixed(setting: Setting, name: str, requests: int) -> Result:
    """Generated tokens per second of requests of mixed lengths that arrive at once.

    Prompts of 16 to 512 tokens, answers of 16 to 128.
    """
    engine = setting.engine
    random = np.random.default_rng(64)
    lengths = np.exp(random.uniform(np.log(16), np.log(512), requests)).astype(int)
    answers = np.exp(random.uniform(np.log(16), np.log(128), requests)).astype(int)
    if int((lengths + answers).max()) > engine.limits.max_model_len:
        return Result(name, None, None, None, None, note=f"needs {int((lengths + answers).max())} positions")
    samples = []
    for repeat in range(setting.repeats):
        begin = time.perf_counter()
        for i in range(requests):
            params = SamplingParams(temperature=0.0, max_tokens=int(answers[i]), ignore_eos=True)
            engine.submit(setting.prompt(int(lengths[i]), 900_000 + 1000 * repeat + i), params)
        while engine.has_work:
            engine.step()
        samples.append(time.perf_counter() - begin)
    seconds = median(samples)
    return Result(name, float(answers.sum()) / seconds, seconds, None, None, tuple(samples))


def first_token(engine: Engine, prompt: Prompt, tokens: int = 1) -> tuple[float, list[int]]:
    """Seconds from submission to the first token, and the first `tokens` tokens."""
    begin = time.perf_counter()
    answer: list[int] = []
    seconds = 0.0
    for output in engine.stream(prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)):
        if not answer:
            seconds = time.perf_counter() - begin
        if output.token_id is not None:
            answer.append(output.token_id)
    return seconds, answer
