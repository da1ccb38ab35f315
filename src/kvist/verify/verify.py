"""Run all scenarios over all codecs and report each as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from kvist.cache.policy import policy
from kvist.config import EngineConfig
from kvist.kernels.program import Backend
from kvist.models.load import Model
from kvist.verify.record import Bench, Prompt
from kvist.verify.scenarios import AS_GIVEN, SCENARIOS

CODECS = ("f32", "f16", "bf16")
LENGTHS: tuple[int, ...] = (1, 2, 15, 16, 17, 63, 64, 65, 129, 300, 511, 513, 700, 1000, 1500, 2000)
FEW: tuple[int, ...] = (1, 17, 64, 300, 513, 2000)
QUICK_LENGTHS: tuple[int, ...] = (1, 2, 5, 9, 15, 16, 17, 20, 23, 31, 33, 40, 55, 64, 70, 100)
QUICK_FEW: tuple[int, ...] = (1, 23, 100)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    codec: str
    policy: str
    logits: int
    differing_bits: int
    seconds: float

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


def verify(
    model: Model,
    backend: Backend,
    one_thread: Backend,
    config: EngineConfig,
    *,
    quick: bool = False,
    codecs: Sequence[str] = CODECS,
    draft: Model | None = None,
    starting: Callable[[str, str], None] = lambda name, codec: None,
) -> Iterator[Row]:
    """Yield a row for each scenario and codec; `starting` is told before each.

    Quick: shorter prompts, 8 generated tokens. Where the config has a speculative_config (draft: its model) there is a
    scenario more; all others run without it. Pages that the policy does not take are left out; under a lossy codec also
    those of another size: which positions are read exactly goes by pages; and where the policy goes by pages other
    sizes and no cache at all.
    """
    scenarios = SCENARIOS if config.speculative_config is None else (*SCENARIOS, AS_GIVEN)
    rule = policy(config.policy)
    scenarios = tuple(
        scenario
        for scenario in scenarios
        if rule.takes(scenario.page_size) and not (rule.paged and (scenario.page_size or not scenario.cached))
    )
    lengths, few, generated = (QUICK_LENGTHS, QUICK_FEW, 8) if quick else (LENGTHS, FEW, 32)
    room = min(model.config.max_positions, config.max_model_len or model.config.max_positions)
    lengths, few = (tuple(n for n in sizes if n + 3 * generated + 8 <= room) for sizes in (lengths, few))
    prompts = {length: make_prompt(length, model.config.vocab_size) for length in lengths}
    for name in codecs:
        bench = Bench(
            model, backend, one_thread, replace(config, kv_cache_dtype=name, speculative_config=None),
            list(prompts.values()), [prompts[length] for length in few], generated, config.speculative_config, draft,
        )  # fmt: skip
        starting("reference: alone, whole", name)
        expected = bench.alone(bench.prompts)
        for scenario in scenarios:
            if scenario.page_size and bench.lossy:
                continue
            starting(scenario.name, name)
            begin = time.perf_counter()
            found = scenario.run(bench, expected)
            seconds = round(time.perf_counter() - begin, 3)
            yield Row(scenario.name, name, config.policy, found.logits, found.bits, seconds)


def make_prompt(length: int, vocab_size: int) -> Prompt:
    """A prompt of `length` token ids, another for every length, the same in every run."""
    return tuple(int(token) for token in np.random.default_rng(length).integers(0, vocab_size, length))
