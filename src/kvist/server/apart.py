"""A small engine over the model that is loaded: for what is shown apart from what is served.

It has a few pages of its own, so it takes nothing from those who ask the server something, and nothing that it computes
is found by anybody. Only the engine's thread makes, runs and closes one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvist.config import EngineConfig
from kvist.llm import LLM

LENGTH_MATTERS = ("dynamic", "longrope")
"""Scalings whose angles go by the longest sequence that is run at all (see `RopeScaling`)."""


def apart(llm: LLM, tokens: int, **changes: Any) -> EngineConfig:
    """The settings of such an engine, for one sequence of up to `tokens` tokens, whose numbers are the served ones.

    changes: fields that are other than those of the engine that serves.
    """
    scaling, longest = llm.model.config.rope_scaling, llm.engine.limits.max_model_len
    if scaling is None or scaling.kind not in LENGTH_MATTERS:
        longest = min(tokens, longest)
    fixed: dict[str, Any] = {
        "max_model_len": longest, "max_num_seqs": 1, "kv_cache_memory_bytes": None, "enable_prefix_caching": False,
        "speculative_config": None, "prefault": False,
    }  # fmt: skip
    return replace(llm.config, **fixed, **changes)
