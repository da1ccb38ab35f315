"""A real server of the default model, and one of a tiny model, each for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import serving
from kvist import LLM
from serving import Served
from tiny import MODELS, write_folder


@pytest.fixture(scope="session")
def served(smollm2_path: Path) -> Iterator[Served]:
    """The default model, no key."""
    with serving.serving("smollm2") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    """The same model as a library: what the server must say."""
    with LLM(smollm2_path) as made:
        yield made


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(MODELS["llama"], tmp_path_factory.mktemp("served") / "llama")
