"""Engines over a real model, as `Simulation` asks for them."""

from __future__ import annotations

from collections.abc import Callable

from kvist.assemble import assemble
from kvist.config import EngineConfig, SpeculativeConfig
from kvist.engine.engine import Engine
from kvist.kernels.program import Backend
from kvist.layers import page_sharing
from kvist.models.load import Model


def real_engines(model: Model, backend: Backend) -> Callable[..., Engine]:
    """`make_engine(pages, **settings)` over a model."""
    page_bytes = page_sharing(model.config, EngineConfig(), "f32").each

    def make_engine(pages: int, drafts: int, **settings: int) -> Engine:
        speculation = SpeculativeConfig("ngram", drafts, 3, 1, adaptive=False) if drafts else None
        config = EngineConfig(
            kv_cache_memory_bytes=pages * page_bytes, kv_cache_dtype="f32", speculative_config=speculation,
            **settings,  # type: ignore[arg-type]
        )  # fmt: skip
        return assemble(model, config, backend)

    return make_engine
