"""The window policy: the newest positions and the first few, in constant memory, with the bits of every other way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tiny
from drafts import prompt
from kvist.assemble import assemble
from kvist.cache.policy import policy
from kvist.config import EngineConfig
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.errors import UnknownNameError, UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend
from kvist.kernels.reference import ReferenceBackend
from kvist.models.load import Model, load_model

MakeEngine = Callable[..., Engine]
RULE = "window:40+4"
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> dict[str, Model]:
    """Llama; windows and local angles of its own (of 24 and all); learned positions."""
    found = {}
    for name in ("llama", "gemma3", "gpt2"):
        folder = tiny.write_folder(replace(tiny.MODELS[name], positions=128), tmp_path_factory.mktemp(name))
        found[name] = load_model(folder, backend)
    return found


@pytest.fixture
def make_engine(models: dict[str, Model], one_thread: CpuBackend, opened: Callable[[Engine], Engine]) -> MakeEngine:
    def make(name: str = "llama", rule: str = RULE, on: Backend = one_thread, **options: Any) -> Engine:
        config = EngineConfig(**{"policy": rule, "kv_cache_memory_bytes": 1 << 20, "max_model_len": 120, **options})
        return opened(assemble(models[name], config, on))

    return make


def run(engine: Engine, ids: list[int], params: SamplingParams = GREEDY) -> tuple[list[int], int]:
    outputs = list(engine.stream(ids, params))
    return [output.token_id for output in outputs if output.token_id is not None], outputs[-1].metrics.cached_tokens


def logits(engine: Engine, ids: list[int], chunk: int = 1) -> np.ndarray:
    """Of every position, through the engine's pages, `chunk` at a time."""
    table, rows = engine.manager.open(), []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        assert engine.manager.reserve(table, len(part))
        rows.append(engine.runner.forward([Piece(table, part, start, "all")]).copy())
    engine.manager.release(table)
    return np.concatenate(rows)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_close_to_the_reference_and_far_from_full(make_engine: MakeEngine, name: str) -> None:
    ids = prompt(110)
    found = logits(make_engine(name), ids)
    assert np.abs(found - logits(make_engine(name, on=ReferenceBackend()), ids)).max() < 1e-4
    full = logits(make_engine(name, "full"), ids)
    assert np.array_equal(found[:40], full[:40]), "the window holds all there is"
    assert np.abs(found[60:] - full[60:]).max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_the_bits_are_those_of_every_other_way(make_engine: MakeEngine, name: str) -> None:
    ids = prompt(75)
    expected, _ = run(make_engine(name, enable_cache=False), ids)
    engine = make_engine(name)
    assert run(engine, ids) == (expected, 0)
    assert run(engine, ids) == (expected, 74)
    assert run(make_engine(name, max_num_batched_tokens=7, page_size=32), ids)[0] == expected
    whole = logits(make_engine(name), ids, chunk=75)
    for chunk in (1, 9):
        assert logits(make_engine(name), ids, chunk).tobytes() == whole.tobytes()


def test_text_without_end_in_constant_memory(make_engine: MakeEngine) -> None:
    """Far beyond what the model was trained for, with the pages of sinks and window and no more."""
    engine = make_engine(max_model_len=4000, enable_prefix_caching=False, max_num_seqs=1)
    (group,) = engine.manager.groups
    assert group.span == 1 + 3 + 1
    engine.submit(prompt(100), replace(GREEDY, max_tokens=1500))
    most = made = 0
    while engine.has_work:
        made += sum(output.token_id is not None for output in engine.step())
        most = max(most, engine.manager.stats().live)
    assert (made, most) == (1500, 1 + 3 + 1)
    engine.manager.check_integrity()


def test_pages_of_another_policy_are_not_found(make_engine: MakeEngine) -> None:
    one, two = make_engine(), make_engine(rule="window:41+4")
    assert one.manager.root(b"") != two.manager.root(b"")
    assert one.manager.root(b"") == make_engine(rule="window:40").manager.root(b""), "4 sinks unless told"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("windows:40", "did you mean window"), ("window:", "in window:1024"), ("window:40+", "in window:1024"),
        ("window:0+0", "1 to"), ("window:20+21", "21 sinks are more than the window of 20"), ("full:1", "nothing"),
        ("window:4٤", "in window:1024"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(rule: str, message: str) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=message):
        policy(rule)
    with pytest.raises((UsageError, UnknownNameError), match=message):
        EngineConfig(policy=rule)


def test_what_does_not_fit_the_model(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="smaller than a page of 64"):
        make_engine(page_size=64)
    with pytest.raises(UsageError, match="trained for 128"):
        make_engine(rule="window:125+4")
    with pytest.raises(UsageError, match="beyond the 128 positions"):
        make_engine("gpt2", max_model_len=129)
    with pytest.raises(UsageError, match="beyond the 128 positions"):
        make_engine(rule="full", max_model_len=129)
