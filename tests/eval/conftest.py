"""A tiny model and documents of random tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny
from kvist import LLM
from kvist.eval.text import Document

LENGTHS = (200, 131, 16, 5, 131)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tiny.MODELS["llama"], tmp_path_factory.mktemp("eval") / "llama")


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, kv_cache_memory_bytes=8 << 20, threads=2) as made:
        yield made


@pytest.fixture
def texts() -> list[Document]:
    """Of five lengths, two of them the same; the tokens are those of the tiny vocabulary."""
    random = np.random.default_rng(5)
    return [
        Document("random", f"{i}", tuple(random.integers(2, 300, length + 1).tolist()))
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture
def long(tmp_path: Path) -> LLM:
    """A tiny model with room for 1,024 positions."""
    return LLM(
        tiny.write_folder(tiny.Tiny("llama", "llama", positions=1024), tmp_path / "m"), kv_cache_memory_bytes=16 << 20
    )
