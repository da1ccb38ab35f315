"""What a type of weights costs in quality: its logits against those of float32 weights, over a passage.

The passage is the beginning of Lewis Carroll's "Alice's Adventures in Wonderland" (1865, in the public domain).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np

from kvist.divergence import distances
from kvist.errors import unknown_name
from kvist.kernels.program import BLOCK_TYPES, Floats
from kvist.llm import LLM
from kvist.models.config import WEIGHT_TYPES
from kvist.models.hub import resolve
from kvist.models.weights import open_model


@dataclass(frozen=True, slots=True)
class Quality:
    """One type of weights over `tokens` tokens.

    perplexity: of the passage. divergence: mean Kullback-Leibler divergence of the next token's distribution from that
    of float32 weights, in nats. agreement: share of positions whose likeliest next token is the same.
    """

    weights: str
    weights_bytes: int
    tokens: int
    perplexity: float
    divergence: float
    agreement: float

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def check_types(given: Sequence[str]) -> tuple[str, ...]:
    """The types to measure; empty: all that a file takes."""
    for name in given:
        if name not in WEIGHT_TYPES[1:]:
            raise unknown_name("weight type", name, WEIGHT_TYPES[1:])
    return tuple(given)


def qualities(
    model: str, types: Sequence[str] = (), starting: Callable[[str], None] = lambda name: None, **options: Any
) -> Iterator[Quality]:
    """Measure types of weights of one model, float32 first. Pages are float32 throughout."""
    passage = resources.files("kvist.bench").joinpath("passage.txt").read_text()
    truth: Floats | None = None
    wanted = ["f32", *(name for name in types if name != "f32")]
    while wanted:
        name = wanted.pop(0)
        starting(f"{name} weights")
        with LLM(model, **{**options, "weights": name, "kv_cache_dtype": "f32"}) as llm:
            ids = llm.tokenizer.encode(passage)[: llm.engine.limits.max_model_len]
            logits = llm.logits(ids)
            if truth is None:
                truth = logits
                wanted = wanted or (["packed", "bf16", "f16"] if _is_packed(model) else ["bf16", "f16", "int8"])
            found = distances(logits, truth, [*ids[1:], ids[0]])  # nothing came after the last: it is left out here:
            perplexity = float(np.exp(-found.own[:-1].mean()))
            divergence, agreement = float(found.divergence.mean()), float(found.same.mean())
            yield Quality(name, llm.model.weights_bytes, len(ids), perplexity, divergence, agreement)


def _is_packed(model: str) -> bool:
    """Whether the file is block-quantised: then `packed` is a type it takes, and `int8` none."""
    file = open_model(resolve(model))
    try:
        return any(file.info(name).dtype in BLOCK_TYPES for name in file.names())
    finally:
        file.close()
