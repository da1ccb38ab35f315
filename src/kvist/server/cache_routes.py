"""`/cache`: how the pages stand, in numbers that name no tenant; and `/cache/flush`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from kvist.llm import LLM
from kvist.server.metrics import EngineNumbers
from kvist.server.service import Service


def routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["cache"])

    @router.get("/cache")
    async def cache() -> dict[str, Any]:
        return await service.worker.call(cache_json)

    @router.post("/cache/flush")
    async def flush() -> dict[str, int]:
        """Forget every page that nobody holds; answers stay the same and take longer for a while."""
        return {"pages_flushed": await service.worker.call(lambda llm: llm.engine.manager.flush())}

    return router


def cache_json(llm: LLM) -> dict[str, Any]:
    """How the cache of an engine stands, between two steps."""
    now = EngineNumbers.of(llm)
    stats, counts = now.stats, now.counters
    pools = [
        {
            "total": pool.total, "free": pool.free, "cached": pool.cached, "live": pool.live, "pinned": pool.pinned,
            "page_bytes": pool.page_bytes, "wasted_slots": pool.wasted_slots, "window": pool.window,
        }
        for pool in stats.pools
    ]  # fmt: skip
    return {
        "page_size": stats.page_size,
        "kv_cache_dtype": llm.engine.limits.kv_cache_dtype,
        "policy": llm.engine.limits.policy,
        "enable_prefix_caching": llm.engine.manager.enable_prefix_caching,
        "pages": {name: getattr(stats, name) for name in ("total", "free", "cached", "live", "pinned")},
        "bytes": {"total": stats.pool_bytes, "cached": stats.cached_bytes, "live": stats.live_bytes},
        "wasted_slots": stats.wasted_slots,
        "wasted_share": stats.wasted_share,
        "pools": pools,
        "tiers": {
            "memory": {
                "pages": stats.cached + stats.live, "bytes": stats.cached_bytes + stats.live_bytes,
                "hits": counts.prefix_hits,
            }
        },
        "counters": asdict(counts),
        "hit_rate": counts.prefix_hits / counts.prefix_queries if counts.prefix_queries else 0.0,
        "requests": {"running": now.running, "waiting": now.waiting, "preemptions": now.preemptions},
    }  # fmt: skip
