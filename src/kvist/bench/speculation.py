"""What speculative decoding gives: the same answers with and without it, side by side, on two kinds of text.

`speculation_repeat`: a file that is copied once and is about to be copied again, as in edits and summaries.
`speculation_other`: prose, drawn at temperature 1, where there is nothing to look up; it must cost nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median

from kvist.assemble import assemble, load_draft
from kvist.bench.workloads import Prompt, Result
from kvist.config import SpeculativeConfig
from kvist.engine.engine import Engine
from kvist.engine.params import RequestMetrics, SamplingParams
from kvist.errors import UsageError
from kvist.llm import LLM

TURN = 16  # tokens that one engine makes before the other has its turn: both meet the machine in the same moods
CODE = '''
def total_price(items, discount):
    """Sum the prices of all items and take the discount off."""
    total = 0
    for item in items:
        if item.price < 0:
            raise ValueError(f"negative price: {item.price}")
        total += item.price * item.count
    if discount > 0:
        total -= total * discount / 100
    return round(total, 2)


def cheapest(items, count):
    """The names of the cheapest items, in order of their price."""
    ordered = sorted(items, key=lambda item: item.price)
    return [item.name for item in ordered[:count]]
'''
REPEAT = f"The file:\n```python{CODE}```\n\nThe file again:\n```python{CODE}```\n\nThe file once more:\n```python\n"
OTHER = (
    "The harbour lay still under the first snow of the year. Ingrid had walked down from the village before anybody "
    "else was awake, because she wanted to see the ship before they gave it a name. She"
)
WORKLOADS = {
    "speculation_repeat": (REPEAT, SamplingParams(temperature=0.0, max_tokens=193, ignore_eos=True)),
    "speculation_other": (OTHER, SamplingParams(temperature=1.0, seed=7, max_tokens=129, ignore_eos=True)),
}
NAMES = tuple(WORKLOADS)


@dataclass(frozen=True, slots=True)
class Comparison(Result):
    """A workload with speculation: rate and seconds are with it, the ratio is of seconds without to seconds with."""

    ratio: float | None = None
    drafted_tokens: int = 0
    acceptance_rate: float | None = None


def compare(llm: LLM, config: SpeculativeConfig, name: str, repeats: int) -> Comparison:
    """One workload, answered by two engines over the same weights in turns. The answers must be the same."""
    plain = replace(llm.config, enable_prefix_caching=False, max_num_seqs=1, speculative_config=None)
    drafting = replace(plain, speculative_config=config)
    engines = [
        assemble(llm.model, plain, llm.backend),
        assemble(llm.model, drafting, llm.backend, draft=load_draft(drafting, llm.backend, _quiet)),
    ]
    text, params = WORKLOADS[name]
    try:
        return _compared(name, engines, llm.tokenizer.encode(text), params, repeats)
    finally:
        for engine in engines:
            engine.close()


def _compared(name: str, engines: list[Engine], prompt: Prompt, params: SamplingParams, repeats: int) -> Comparison:
    """One workload, `repeats` times after a first time that does not count: memory is touched, costs are learnt."""
    needed = len(prompt) + (params.max_tokens or 0)
    longest = engines[0].limits.max_model_len
    if needed > longest:
        return Comparison(name, None, None, None, None, note=f"needs {needed} positions, the model has {longest}")
    _side_by_side(engines, prompt, params)
    samples, ratios = [], []
    for _ in range(repeats):
        without, seconds, metrics = _side_by_side(engines, prompt, params)
        samples.append(seconds)
        ratios.append(without / seconds)
    ratio, rate = median(ratios), metrics.acceptance_rate
    note = f"{ratio:.2f}x of without; {metrics.drafted_tokens} drafted"
    note += "" if rate is None else f", {rate:.0%} accepted"
    seconds = median(samples)
    return Comparison(
        name, (metrics.generated_tokens - 1) / seconds, seconds, None, None, tuple(samples), f"{note}; same text",
        ratio, metrics.drafted_tokens, rate,
    )  # fmt: skip


def _side_by_side(engines: list[Engine], prompt: Prompt, params: SamplingParams) -> tuple[float, float, RequestMetrics]:
    """Answer a prompt with two engines in turns: seconds of each from its first token on, and the second's metrics."""
    streams = [engine.stream(prompt, params) for engine in engines]
    first = [next(stream) for stream in streams]
    answers = [[output.token_id] for output in first]
    seconds = [0.0, 0.0]
    while any(len(answer) < (params.max_tokens or 0) for answer in answers):
        for i, stream in enumerate(streams):
            begin = time.perf_counter()
            answers[i] += [output.token_id for output in islice(stream, TURN)]
            seconds[i] += time.perf_counter() - begin
    if answers[0] != answers[1]:
        raise UsageError(
            "the answer with speculation differs from the one without: run `kvist verify` on this model and report it"
        )
    return seconds[0], seconds[1], first[1].metrics


def _quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody sees: the line is the workload's."""
