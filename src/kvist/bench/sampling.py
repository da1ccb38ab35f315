"""What choosing tokens costs: each way of choosing, inside the steps of 64 sequences that generate from prose together.

The time of choosing is what the sampler takes, its rows' making included, what guides take to tell what may follow, and
what the compiled loop takes to find the largest logits, which it does in every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import resources
from statistics import median
from typing import Any

from kvist.bench.recorder import timed
from kvist.engine import answers
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.backend import CpuExecutable
from kvist.kernels.cpu.profile import Launch
from kvist.llm import LLM
from kvist.structured import StructuredOutputs

SEQUENCES, CONTEXT, STEPS = 64, 32, 24
PEOPLE = {
    "type": "array",
    "minItems": 9,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    },
}
NUDGED = dict.fromkeys(range(100), 1.0)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "temperature 1": {},
    "top-k 50": {"top_k": 50},
    "top-k 1000": {"top_k": 1000},
    "top-p 0.9, temperature 0.7": {"top_p": 0.9, "temperature": 0.7},
    "top-p 0.95": {"top_p": 0.95},
    "top-p 0.99, temperature 1.5": {"top_p": 0.99, "temperature": 1.5},
    "min-p 0.05": {"min_p": 0.05},
    "typical-p 0.95": {"typical_p": 0.95},
    "typical-p 0.95, temperature 1.5": {"typical_p": 0.95, "temperature": 1.5},
    "top-k 50, top-p 0.9, min-p 0.02": {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
    "penalties, top-p 0.95": {"top_p": 0.95, "repetition_penalty": 1.1, "presence_penalty": 0.5},
    "bias of 100 tokens": {"logit_bias": NUDGED},
    "greedy, JSON of a schema": {"temperature": 0.0, "structured_outputs": StructuredOutputs(json=PEOPLE)},
    "top-p 0.95, JSON of a schema": {"top_p": 0.95, "structured_outputs": StructuredOutputs(json=PEOPLE)},
    "greedy, 1 log-probability": {"temperature": 0.0, "logprobs": 1},
    "greedy, 5 log-probabilities": {"temperature": 0.0, "logprobs": 5},
    "greedy, 20 log-probabilities": {"temperature": 0.0, "logprobs": 20},
    "penalties, top-p 0.95, 5 log-probabilities": {"top_p": 0.95, "repetition_penalty": 1.1, "logprobs": 5},
}
"""What is asked for, by what people call it."""


@dataclass(frozen=True, slots=True)
class Choosing:
    """One way of choosing; seconds of a step are medians over all steps in which every sequence got a token."""

    way: str
    params: dict[str, Any] = field(repr=False)
    choosing: float
    step: float
    share: float

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        short = {"logit_bias": len(NUDGED), "structured_outputs": "json"}
        params = {name: short.get(name, value) for name, value in self.params.items()}
        return {
            "way": self.way, "params": params, "choosing_seconds": self.choosing, "step_seconds": self.step,
            "share": self.share,
        }  # fmt: skip


def choosings(llm: LLM, starting: Callable[[str], None] = lambda name: None) -> Iterator[Choosing]:
    """Measure every way in turn."""
    if llm.engine.limits.max_num_seqs < SEQUENCES:
        raise UsageError(f"--sampling runs {SEQUENCES} sequences together: give max_num_seqs of at least that")
    text = resources.files("kvist.bench").joinpath("passage.txt").read_text()
    ids = llm.tokenizer.encode(text)
    apart = max(1, (len(ids) - CONTEXT) // SEQUENCES)
    prompts = [ids[i * apart : i * apart + CONTEXT] for i in range(SEQUENCES)]
    _run(llm, prompts, SamplingParams(max_tokens=2, ignore_eos=True))  # compiled, and the prompts cached
    for way, params in WAYS.items():
        starting(way)
        steps = _run(llm, prompts, SamplingParams(**{"seed": 1, "max_tokens": STEPS + 1, "ignore_eos": True, **params}))
        choosing, whole = (median(column) for column in zip(*steps, strict=True))
        yield Choosing(way, params, choosing, whole, median(part / step for part, step in steps))


def _run(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[tuple[float, float]]:
    """Seconds of choosing and of the whole step, for each step that gave every sequence a token."""
    engine, executable = llm.engine, llm.engine.runner.executable
    assert isinstance(executable, CpuExecutable)
    wanted = params.structured_outputs
    waiting = {engine.submit(prompt, params, guide=llm.guides.guide(wanted)) for prompt in prompts}
    while waiting:
        waiting -= {output.request_id for output in engine.step()}
    steps = []
    with ExitStack() as opened:
        profile = opened.enter_context(executable.profile())
        noted = [opened.enter_context(timed(engine.answers.sampler, name)) for name in ("choose", "logprobs")]
        noted.append(opened.enter_context(timed(answers, "masks")))
        while engine.has_work:
            profile.launches.clear()
            for spans in noted:
                spans.clear()
            begin = time.perf_counter()
            made = len(engine.step())
            seconds = time.perf_counter() - begin
            spent = sum(end - start for spans in noted for start, end in spans) + sum(map(_largest, profile.launches))
            if made == len(prompts):
                steps.append((spent / 1e9, seconds))
    return steps


def _largest(launch: Launch) -> float:
    """Nanoseconds that a launch's threads worked to find the largest logits, divided by their number."""
    return float(launch.times[:, launch.codes == abi.LIKELIEST, 1].sum()) / len(launch.times)
