"""What a type of weights costs in quality: its logits against those of float32 weights, over a passage.

The passage is the beginning of Lewis Carroll's "Alice's Adventures in Wonderland" (1865, in the public domain).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.errors import unknown_name
from kvist.kernels.program import BLOCK_TYPES
from kvist.llm import LLM
from kvist.models.config import WEIGHT_TYPES
from kvist.models.hub import resolve
from kvist.models.weights import open_model

Logs = npt.NDArray[np.float64]


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
    truth: Logs | None = None
    wanted = ["f32", *(name for name in types if name != "f32")]
    while wanted:
        name = wanted.pop(0)
        starting(f"{name} weights")
        with LLM(model, **{**options, "weights": name, "kv_cache_dtype": "f32"}) as llm:
            ids = llm.tokenizer.encode(passage)[: llm.engine.limits.max_model_len]
            logs = _log_probabilities(llm.logits(ids))
            if truth is None:
                truth = logs
                wanted = wanted or (["packed", "bf16", "f16"] if _is_packed(model) else ["bf16", "f16", "int8"])
            yield Quality(name, llm.model.weights_bytes, len(ids), *_compare(logs, truth, ids))


def _is_packed(model: str) -> bool:
    """Whether the file is block-quantised: then `packed` is a type it takes, and `int8` none."""
    file = open_model(resolve(model))
    try:
        return any(file.info(name).dtype in BLOCK_TYPES for name in file.names())
    finally:
        file.close()


def _log_probabilities(logits: npt.NDArray[np.float32]) -> Logs:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def _compare(logs: Logs, truth: Logs, ids: Sequence[int]) -> tuple[float, float, float]:
    """Perplexity, divergence, agreement."""
    own = logs[np.arange(len(ids) - 1), np.asarray(ids[1:])]
    divergence = (np.exp(truth) * (truth - logs)).sum(-1)
    return float(np.exp(-own.mean())), float(divergence.mean()), float((logs.argmax(-1) == truth.argmax(-1)).mean())
