"""The scenarios of `kvist verify`, on tiny random models of every family, for every float codec: no bit may differ.

And the proof that they can fail: an engine that breaks the contract on purpose is caught by each of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import tiny
from kvist.cache.pool import PagePool
from kvist.config import EngineConfig
from kvist.engine.batch import Piece
from kvist.engine.runner import Runner
from kvist.kernels.choosing import Chooser
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend, BatchMetadata, Executable, Floats, Limits, Program
from kvist.models.load import Model, load_model
from kvist.verify import verify as verifying
from kvist.verify.record import Bench
from kvist.verify.scenarios import SCENARIOS, Scenario
from kvist.verify.verify import make_prompt, verify

LENGTHS = (1, 2, 5, 15, 16, 17, 33, 40, 47, 63, 64, 65, 80, 100, 130, 150)
FEW = (1, 17, 64, 150)
GENERATED = 32


@pytest.fixture(scope="module", params=["llama", "llama-odd", "gpt2", "gpt_oss", "llama packed"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> Model:
    name, _, packed = request.param.partition(" ")
    longer = replace(tiny.MODELS[name], positions=512)
    folder = tmp_path_factory.mktemp(name)
    if packed:
        return load_model(tiny.write_gguf(longer, folder / "tiny.gguf", "Q4_1", others={"ffn_up": "Q8_0"}), backend)
    return load_model(tiny.write_folder(longer, folder), backend)


def make_bench(model: Model, backend: Backend, one_thread: Backend, codec: str, **changes: int) -> Bench:
    config = EngineConfig(kv_cache_dtype=codec, kv_cache_memory_bytes=64 << 20, **changes)
    prompts = {length: make_prompt(length, model.config.vocab_size) for length in LENGTHS}
    return Bench(model, backend, one_thread, config, list(prompts.values()), [prompts[n] for n in FEW], GENERATED)


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
def test_every_scenario_is_exact(model: Model, backend: CpuBackend, one_thread: CpuBackend, codec: str) -> None:
    bench = make_bench(model, backend, one_thread, codec)
    expected = bench.alone(bench.prompts)
    for scenario in SCENARIOS:
        found = scenario.run(bench, expected)
        assert found.logits > 0, scenario.name
        assert found.bits == 0, scenario.name


def test_contexts_beyond_a_split_are_exact(backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path) -> None:
    """Attention is cut at 512 positions: prompts that lie on either side of the cuts, and decode steps that cross
    one.
    """
    folder = tiny.write_folder(replace(tiny.MODELS["llama"], positions=1400), tmp_path)
    loaded = load_model(folder, backend)
    config = EngineConfig(kv_cache_memory_bytes=64 << 20)
    prompts = [make_prompt(length, 300) for length in (500, 511, 512, 513, 1020, 1200)]
    bench = Bench(loaded, backend, one_thread, config, prompts, prompts, 20)
    expected = bench.alone(prompts)
    wanted = (
        "chunks of 7 = whole",
        "chunks of 64 = whole",
        "batch of 7 = alone",
        "1 thread = all threads",
        "fork and roll back = fresh",
    )
    for scenario in SCENARIOS:
        if scenario.name in wanted:
            assert scenario.run(bench, expected).bits == 0, scenario.name


@dataclass
class Sabotage:
    """A backend whose answers depend on what they must not depend on."""

    inner: Backend
    kind: str

    def bind(self, program: Program, pools: Sequence[PagePool], limits: Limits) -> Executable:
        return _Sabotaged(self.inner.bind(program, pools, limits), self.kind, pools)

    def close(self) -> None:
        """The inner backend belongs to the session."""


@dataclass
class _Sabotaged:
    inner: Executable
    kind: str
    pools: Sequence[PagePool]

    @property
    def chooser(self) -> Chooser:
        return self.inner.chooser

    def likeliest(self) -> npt.NDArray[np.int64]:
        return self.inner.likeliest()

    def run(self, batch: BatchMetadata) -> Floats:
        logits = self.inner.run(batch)
        rows = len(batch.tokens)
        if (self.kind == "rows" and rows > 1) or (self.kind == "sequences" and len(batch.sequences) > 1):
            logits = logits.copy()
            logits.view(np.uint32)[..., 0] ^= 1  # the smallest difference there is
        if self.kind == "pages":  # a bit of V of the newest position's page, after it was computed
            page = int(batch.row_pages[0, -1])
            self.pools[0].parts(page)[-1][-1, -2] ^= 1
        return logits


def scenario(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("rows", "uncached = cached"),
        ("rows", "chunks of 7 = whole"),
        ("sequences", "batch of 2 = alone"),
        ("sequences", "batch of 16 = alone"),
        ("rows", "fork and roll back = fresh"),
        ("sequences", "branches of one prompt = alone"),
        ("rows", "preempted and recomputed = undisturbed"),
        ("pages", "prefix hit = miss"),
        ("pages", "chunks of 7 = whole"),
        ("rows", "speculative (ngram) = plain"),
        ("rows", "speculative (draft) = plain"),
        ("rows", "speculative (right and wrong) = plain"),
        ("pages", "speculative (right and wrong) = plain"),
    ],
)
def test_a_broken_engine_is_caught(
    kind: str, name: str, backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path
) -> None:
    loaded = load_model(tiny.write_folder(replace(tiny.MODELS["llama"], positions=512), tmp_path), backend)
    good = make_bench(loaded, backend, one_thread, "f16")
    expected = good.alone(good.prompts)
    bad = replace(good, backend=Sabotage(backend, kind))  # type: ignore[arg-type]
    assert scenario(name).run(bad, expected).bits > 0


@pytest.mark.parametrize("name", ["speculative (draft) = plain", "speculative (right and wrong) = plain"])
def test_keys_and_values_of_a_wrong_guess_are_caught(
    name: str, backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last draft that is run is not the one that is accepted."""
    loaded = load_model(tiny.write_folder(replace(tiny.MODELS["llama"], positions=512), tmp_path), backend)
    bench = make_bench(loaded, backend, one_thread, "f16")
    expected = bench.alone(bench.prompts)

    forward = Runner.forward

    def run_another(self: Runner, pieces: Sequence[Piece]) -> Floats:
        return forward(self, [replace(p, tokens=[*p.tokens[:-1], p.tokens[-1] ^ 1]) if p.drafts else p for p in pieces])

    monkeypatch.setattr(Runner, "forward", run_another)
    assert scenario(name).run(bench, expected).bits > 0


def test_verify_yields_a_row_for_each_scenario_and_codec(
    backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny.write_folder(replace(tiny.MODELS["gpt2"], positions=512), tmp_path), backend)
    monkeypatch.setattr(verifying, "QUICK_LENGTHS", (1, 2, 20, 33))
    monkeypatch.setattr(verifying, "QUICK_FEW", (1, 33))
    told: list[str] = []
    rows = list(
        verify(
            loaded, backend, one_thread, EngineConfig(), quick=True, codecs=("f16", "bf16"),
            starting=lambda name, codec: told.append(name),
        )
    )  # fmt: skip
    assert [row.name for row in rows] == [scenario.name for scenario in SCENARIOS] * 2
    assert {row.codec for row in rows} == {"f16", "bf16"}
    assert all(row.differing_bits == 0 and row.logits > 0 for row in rows)
    assert set(json.loads(json.dumps(rows[0].as_json()))) == {
        "name",
        "codec",
        "policy",
        "logits",
        "differing_bits",
        "seconds",
    }
    assert set(told) >= {scenario.name for scenario in SCENARIOS}
