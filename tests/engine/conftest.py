"""A tiny model's engine, made to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import tiny
from kvist.assemble import assemble
from kvist.config import EngineConfig
from kvist.engine.engine import Engine
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import Model, load_model

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> Model:
    return load_model(
        tiny.write_folder(replace(tiny.MODELS["llama"], positions=512), tmp_path_factory.mktemp("tiny")), backend
    )


@pytest.fixture
def opened() -> Iterator[Callable[[Engine], Engine]]:
    """`opened(engine)`: the engine, which is closed when the test ends."""
    made: list[Engine] = []

    def keep(engine: Engine) -> Engine:
        made.append(engine)
        return engine

    yield keep
    for engine in made:
        engine.close()


@pytest.fixture
def make_engine(tiny_model: Model, one_thread: CpuBackend) -> Iterator[MakeEngine]:
    """`make_engine(pages=8, **config)`: an engine whose pool holds so many pages (with a draft model, both pools)."""
    made: list[Engine] = []

    def make(pages: int = 64, draft: Model | None = None, **options: Any) -> Engine:
        per_token = page_bytes_per_token(tiny_model) + (page_bytes_per_token(draft) if draft else 0)
        config = EngineConfig(**{"kv_cache_memory_bytes": pages * 16 * per_token, **options})
        made.append(assemble(tiny_model, config, one_thread, draft=draft))
        return made[-1]

    yield make
    for engine in made:
        assert not engine.manager.tables or engine.has_work
        engine.close()


def page_bytes_per_token(model: Model) -> int:
    config = model.config
    return 2 * config.num_layers * config.num_kv_heads * config.stored_head_dim * 4  # f32 weights, so f32 pages
