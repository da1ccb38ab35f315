"""What an answer cost: OpenAI's `usage`, and the extension `kvist`, which says where the prompt's tokens came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from kvist.engine.params import RequestMetrics
from kvist.server.schema import StreamOptions


def usage(metrics: Iterable[RequestMetrics]) -> dict[str, Any]:
    """Tokens of all prompts and answers of a request."""
    every = list(metrics)
    prompt, made = sum(m.prompt_tokens for m in every), sum(m.generated_tokens for m in every)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": sum(m.cached_tokens for m in every)},
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(m.accepted_tokens for m in every),
            "rejected_prediction_tokens": sum(m.drafted_tokens - m.accepted_tokens for m in every),
        },
    }


def usage_so_far(told: StreamOptions, metrics: Iterable[RequestMetrics] | None) -> dict[str, Any]:
    """What a chunk says of usage: nothing, null until the last one, or how much it is by now."""
    if not told.include_usage:
        return {}
    return {"usage": usage(metrics) if told.continuous_usage_stats and metrics is not None else None}


def extension(metrics: Iterable[RequestMetrics]) -> dict[str, Any]:
    """Of one prompt its own report, of several a list of them."""
    every = [_one(m) for m in metrics]
    return every[0] if len(every) == 1 else {"prompts": every}


def _one(metrics: RequestMetrics) -> dict[str, Any]:
    reuse = metrics.reuse
    difference = None if reuse is None else reuse.first_difference
    return {
        "cached_tokens_by_tier": {} if reuse is None else dict(reuse.cached),
        "computed_tokens": metrics.prompt_tokens if reuse is None else reuse.computed,
        "reason": None if reuse is None else reuse.reason,
        "first_difference": None if difference is None else asdict(difference),
        "time_to_first_token_seconds": metrics.time_to_first_token,
        "kv_projections": metrics.kv_projections,
        "preemptions": metrics.preemptions,
        "kv_cache_dtype": metrics.kv_cache_dtype,
        "policy": metrics.policy,
        "lossy": metrics.lossy or metrics.policy != "full",
    }
