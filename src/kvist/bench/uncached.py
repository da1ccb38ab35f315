"""What the cache saves: the same answer with and without it, by length, counted and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from kvist.assemble import assemble
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError
from kvist.llm import LLM

LENGTHS = (10, 30, 100, 300, 1000)


@dataclass(frozen=True, slots=True)
class Saving:
    """One length: positions whose K and V were projected, and seconds, without and with the cache."""

    tokens: int
    uncached_projections: int
    cached_projections: int
    uncached_seconds: float
    cached_seconds: float

    @property
    def counted_ratio(self) -> float:
        """How many times fewer projections."""
        return self.uncached_projections / self.cached_projections

    @property
    def measured_ratio(self) -> float:
        """How many times less wall-clock time; smaller, since weights and attention are read either way."""
        return self.uncached_seconds / self.cached_seconds

    def as_json(self) -> dict[str, float]:
        """For programs."""
        return {**asdict(self), "counted_ratio": self.counted_ratio, "measured_ratio": self.measured_ratio}


def savings(
    llm: LLM, lengths: Sequence[int] = LENGTHS, starting: Callable[[str], None] = lambda name: None
) -> Iterator[Saving]:
    """For each length n, process n tokens one by one, without and with the cache.

    That is a prompt of one token and n generated ones, of which the last is not processed.

    The counters of the engine count the projections; nothing is computed by a formula. Both answers must be the same
    tokens.
    """
    for tokens in lengths:
        if tokens + 1 > llm.engine.limits.max_model_len:
            return
        found = []
        for cached in (False, True):
            starting(f"{tokens} tokens {'with' if cached else 'without'} the cache")
            engine = assemble(
                llm.model, replace(llm.config, enable_cache=cached, enable_prefix_caching=False), llm.backend
            )
            begin = time.perf_counter()
            params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
            answer = [output.token_id for output in engine.stream([1], params)]
            found.append((engine.runner.kv_projections, time.perf_counter() - begin, answer))
            engine.manager.close()
        (slow, slow_seconds, first), (fast, fast_seconds, second) = found
        if first != second:
            raise UsageError(
                "the uncached answer differs from the cached one: run `kvist verify` on this model and report it"
            )
        yield Saving(tokens, slow, fast, slow_seconds, fast_seconds)
