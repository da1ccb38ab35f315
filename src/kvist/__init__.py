"""kvist: an LLM inference engine built around its KV cache.

::

    from kvist import LLM, SamplingParams

    with LLM("smollm2") as llm:
        print(llm.generate("The capital of Sweden is", SamplingParams(temperature=0))[0].outputs[0].text)

Names are imported when they are first used, so that ``import kvist`` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvist.version import __version__

if TYPE_CHECKING:
    from kvist.cache.report import FirstDifference, ReuseReport
    from kvist.config import EngineConfig
    from kvist.engine.params import BeamSearchParams, RequestMetrics, SamplingParams
    from kvist.errors import KvistError
    from kvist.llm import LLM, Request
    from kvist.outputs import BeamSearchOutput, BeamSearchSequence, CompletionOutput, Logprob, RequestOutput, TextChunk
    from kvist.session import Session
    from kvist.structured import StructuredOutputs

_HOME = {
    "LLM": "kvist.llm",
    "BeamSearchOutput": "kvist.outputs",
    "BeamSearchParams": "kvist.engine.params",
    "BeamSearchSequence": "kvist.outputs",
    "CompletionOutput": "kvist.outputs",
    "EngineConfig": "kvist.config",
    "FirstDifference": "kvist.cache.report",
    "KvistError": "kvist.errors",
    "Logprob": "kvist.outputs",
    "Request": "kvist.llm",
    "RequestMetrics": "kvist.engine.params",
    "RequestOutput": "kvist.outputs",
    "ReuseReport": "kvist.cache.report",
    "SamplingParams": "kvist.engine.params",
    "Session": "kvist.session",
    "StructuredOutputs": "kvist.structured",
    "TextChunk": "kvist.outputs",
}

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "EngineConfig",
    "FirstDifference",
    "KvistError",
    "Logprob",
    "Request",
    "RequestMetrics",
    "RequestOutput",
    "ReuseReport",
    "SamplingParams",
    "Session",
    "StructuredOutputs",
    "TextChunk",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'kvist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
