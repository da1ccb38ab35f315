"""Run requests and keep every row of logits a token was chosen from; compare two such records bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvist.assemble import assemble
from kvist.cache.codec.choice import float_type
from kvist.cache.group import Sharing
from kvist.config import EngineConfig, SpeculativeConfig
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.kernels.program import Backend, Floats
from kvist.layers import page_sharing
from kvist.models.load import Model

Prompt = tuple[int, ...]
Record = Mapping[Prompt, Floats]
"""Logits (generated tokens, vocab) by prompt: the last prompt position's and each generated one's but the last."""


@dataclass
class Difference:
    """What a comparison found: numbers compared, bits that differ."""

    logits: int = 0
    bits: int = 0

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.logits + other.logits, self.bits + other.bits)

    def add(self, expected: Floats, actual: Floats) -> None:
        """Compare two arrays of logits; a missing row differs in every bit."""
        rows = min(len(expected), len(actual))
        changed = expected[:rows].view(np.uint32) ^ actual[:rows].view(np.uint32)
        self.logits += int(expected.size)
        self.bits += int(np.bitwise_count(changed).sum()) + 32 * int(expected.size - changed.size)


@dataclass
class Bench:
    """What all scenarios share.

    `prompts` are for batches; `few` of them, of every length, for what runs one after another. speculation, draft: as
    the user wants it checked besides, with its model if it has one.
    """

    model: Model
    backend: Backend
    one_thread: Backend
    config: EngineConfig
    prompts: Sequence[Prompt]
    few: Sequence[Prompt]
    generated: int
    speculation: SpeculativeConfig | None = None
    draft: Model | None = None

    @property
    def sharing(self) -> Sharing:
        """The groups of pages under this config."""
        floats = float_type(self.config.kv_cache_dtype, self.model.float_type)
        return page_sharing(self.model.config, self.config, floats)

    @property
    def lossy(self) -> bool:
        """Whether full pages are packed."""
        return any(group.exact for group in self.sharing.groups)

    @contextmanager
    def engine(self, *, backend: Backend | None = None, draft: Model | None = None, **changes: Any) -> Iterator[Engine]:
        """An engine with this config but for `changes`."""
        engine = assemble(self.model, replace(self.config, **changes), backend or self.backend, draft=draft)
        try:
            yield engine
            engine.manager.check_integrity()
        finally:
            engine.close()

    def alone(self, prompts: Sequence[Prompt], **changes: Any) -> dict[Prompt, Floats]:
        """Each prompt by itself, one after the other, in an engine that caches no prefix.

        This is what everything is compared with.
        """
        with self.engine(**{"enable_prefix_caching": False, "max_num_batched_tokens": 2048, **changes}) as engine:
            record: dict[Prompt, Floats] = {}
            for prompt in prompts:
                record.update(run(engine, [prompt], self.generated))
            return record


def run(
    engine: Engine,
    prompts: Sequence[Prompt],
    generated: int,
    stagger: int = 0,
    between: Callable[[Engine, int], None] | None = None,
) -> dict[Prompt, Floats]:
    """Generate greedily from prompts together; the logits of each.

    Each starts `stagger` steps after the one before. between: called after each step, with how many there were.
    """
    params = SamplingParams(temperature=0.0, max_tokens=generated, ignore_eos=True)
    rows: dict[str, list[Floats]] = {}
    names: dict[str, Prompt] = {}

    def observe(request: str, position: int, logits: Floats) -> None:
        rows[request].append(logits.copy())

    waiting = list(prompts)
    steps = 0
    engine.observe = observe
    try:
        while waiting or engine.has_work:
            while waiting and (stagger == 0 or steps % stagger == 0):
                prompt = waiting.pop(0)
                name = engine.submit(prompt, params)
                names[name], rows[name] = prompt, []
                if stagger:
                    break
            engine.step()
            steps += 1
            if between is not None:
                between(engine, steps)
    finally:
        engine.observe = None
    return {names[name]: np.stack(found) for name, found in rows.items()}


def compare(expected: Record, actual: Record) -> Difference:
    """All prompts of `actual` against the same of `expected`."""
    difference = Difference()
    for prompt, logits in actual.items():
        difference.add(expected[prompt], logits)
    return difference
