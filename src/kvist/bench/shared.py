"""`shared_64`: requests of mixed lengths of which half begin alike, and what each of them sees of the others.

All arrive at once: that is the fullest batch and the longest queue, and, unlike a stream of arrivals, it has no rate,
which would be idle on one machine and too much for another. `shared_64_tight` is the same work in a pool that holds
two fifths of it, so that sequences lose their pages and are computed again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from kvist.assemble import assemble
from kvist.bench.percentile import percentile
from kvist.bench.workloads import Prompt, Result, Setting
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.llm import LLM

NAMES = ("shared_64", "shared_64_tight")
REQUESTS = 64
SHARED = 1000  # tokens that every second prompt begins with
SHORTEST, LONGEST = 16, 2000  # tokens of a prompt
ANSWERS = 16, 128  # tokens of an answer
TIGHT = 0.4  # of the slots that all requests fill, the part that the small pool has


@dataclass(frozen=True, slots=True)
class Served(Result):
    """A workload of many requests: rate and seconds are of all of them, the rest of all repetitions together.

    ttft: seconds from arrival to the first token. itl: seconds between two tokens of a request. worst_gap_steps: the
    longest of these, in steps of a full budget (their median; None if none was full). hit_rate: of the tokens asked for
    when sequences start, also after a preemption, those that were cached. wasted_share: of the bytes of live pages,
    each counted for as long as it was live, those that held no token.
    """

    ttft_p50: float | None = None
    ttft_p99: float | None = None
    itl_p50: float | None = None
    itl_p99: float | None = None
    hit_rate: float | None = None
    wasted_share: float | None = None
    worst_gap_steps: float | None = None
    preemptions: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of prompts and answers; every second prompt begins with the same `shared` ones."""

    lengths: tuple[int, ...]
    answers: tuple[int, ...]
    shared: int = SHARED

    @staticmethod
    def drawn() -> Work:
        """All lengths are log-uniform: those of prompts that begin alike from SHARED + SHORTEST on."""
        random = np.random.default_rng(1064)
        least = [SHARED * (i % 2) + SHORTEST for i in range(REQUESTS)]
        lengths = np.exp(random.uniform(np.log(least), np.log(LONGEST + 1), REQUESTS)).astype(int)
        low, high = ANSWERS
        answers = np.exp(random.uniform(np.log(low), np.log(high + 1), REQUESTS)).astype(int)
        return Work(tuple(lengths.tolist()), tuple(answers.tolist()))

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return max(length + answer for length, answer in zip(self.lengths, self.answers, strict=True))

    @property
    def slots(self) -> int:
        """Positions of all sequences together, those of the common prefix once."""
        return sum(self.lengths) + sum(self.answers) - self.shared * (len(self.lengths) // 2 - 1)

    def prompts(self, setting: Setting, repeat: int) -> list[Prompt]:
        """Random tokens, others for every repetition."""
        begin = setting.prompt(self.shared, 2_000_000 + 1000 * repeat)
        prompts = []
        for i, length in enumerate(self.lengths):
            own = setting.prompt(length, 2_000_001 + 1000 * repeat + i)
            prompts.append(begin + own[self.shared :] if i % 2 else own)
        return prompts


@dataclass
class Record:
    """What is noted while requests run: seconds, but for live and wasted (bytes times seconds)."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    full_steps: list[float] = field(default_factory=list)
    live: float = 0.0
    wasted: float = 0.0

    def run(self, engine: Engine, prompts: Sequence[Prompt], answers: Sequence[int]) -> float:
        """Submit all, run until all are answered; seconds of everything."""
        start = before = time.perf_counter()
        last: dict[str, float] = {}
        for prompt, tokens in zip(prompts, answers, strict=True):
            engine.submit(prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True))
        computed, budget = engine.runner.kv_projections, engine.limits.max_num_batched_tokens
        while engine.has_work:
            made = engine.step()
            now = time.perf_counter()
            for output in made:
                seen = last.get(output.request_id)
                (self.ttft if seen is None else self.gaps).append(now - (start if seen is None else seen))
                last[output.request_id] = now
            if engine.runner.kv_projections - computed == budget:
                self.full_steps.append(now - before)
            stats = engine.manager.stats()
            self.live += stats.live_bytes * (now - before)
            self.wasted += stats.wasted_share * stats.live_bytes * (now - before)
            computed, before = engine.runner.kv_projections, now
        return before - start


def serve(setting: Setting, name: str, work: Work | None = None) -> Served:
    """The workload on the setting's engine."""
    engine, work = setting.engine, work or Work.drawn()
    if work.longest > engine.limits.max_model_len:
        return Served(
            name, None, None, None, None,
            note=f"needs {work.longest} positions, the model has {engine.limits.max_model_len}",
        )  # fmt: skip
    record, counted, preempted = Record(), engine.manager.counters, engine.scheduler.preemptions
    samples = [record.run(engine, work.prompts(setting, repeat), work.answers) for repeat in range(setting.repeats)]
    after, seconds = engine.manager.counters, median(samples)
    asked = after.prefix_queries - counted.prefix_queries
    found = Served(
        name, sum(work.answers) / seconds, seconds, None, None, tuple(samples),
        ttft_p50=percentile(record.ttft, 50), ttft_p99=percentile(record.ttft, 99),
        itl_p50=percentile(record.gaps, 50), itl_p99=percentile(record.gaps, 99),
        hit_rate=(after.prefix_hits - counted.prefix_hits) / asked,
        wasted_share=record.wasted / record.live,
        worst_gap_steps=max(record.gaps) / median(record.full_steps) if record.full_steps else None,
        preemptions=engine.scheduler.preemptions - preempted,
    )  # fmt: skip
    return replace(found, note=_note(found))


def serve_tight(setting: Setting, llm: LLM, name: str) -> Served:
    """The workload on an engine over the same weights whose pool holds TIGHT of it."""
    work = Work.drawn()
    pool = int(TIGHT * work.slots) * llm.engine.manager.bytes_per_token
    longest = min(work.longest, llm.model.config.max_positions)
    config = replace(llm.config, kv_cache_memory_bytes=pool, max_model_len=longest, speculative_config=None)
    engine = assemble(llm.model, config, llm.backend)
    try:
        return serve(replace(setting, engine=engine), name, work)
    finally:
        engine.close()


def _note(found: Served) -> str:
    assert found.ttft_p50 and found.ttft_p99 and found.itl_p50 and found.itl_p99
    gap = "" if found.worst_gap_steps is None else f", worst {found.worst_gap_steps:.2f} full steps"
    return (
        f"first token {found.ttft_p50:.2f} s p50, {found.ttft_p99:.2f} p99; next {found.itl_p50 * 1e3:.0f} ms p50, "
        f"{found.itl_p99 * 1e3:.0f} p99{gap}; {found.hit_rate:.0%} cached, {found.wasted_share:.1%} wasted, "
        f"{found.preemptions} preempted"
    )
