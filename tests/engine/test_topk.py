"""The policy topk: a token reads the pages it chooses, with the bits of every other way to reach it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tiny
from drafts import prompt
from kvist.assemble import assemble
from kvist.cache.policy import Choice, policy
from kvist.config import EngineConfig, SpeculativeConfig
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.errors import UnknownNameError, UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend
from kvist.kernels.reference import ReferenceBackend
from kvist.models.load import Model, load_model

MakeEngine = Callable[..., Engine]
RULE = "topk:0.3+3p"
LENGTH = 230
CODECS = ["f32", "int8", "k=int4,v=int3", "lm4"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> dict[str, Model]:
    """Four layers, of which two choose; soft caps and windows of their own; learned positions."""
    found = {}
    for name in ("llama", "gpt2", "gemma2", "mistral"):
        model = replace(tiny.MODELS[name], positions=512, layers=4)
        found[name] = load_model(tiny.write_folder(model, tmp_path_factory.mktemp(name)), backend)
    return found


@pytest.fixture
def make_engine(models: dict[str, Model], one_thread: CpuBackend, opened: Callable[[Engine], Engine]) -> MakeEngine:
    def make(name: str = "llama", rule: str = RULE, on: Backend = one_thread, **options: Any) -> Engine:
        config = EngineConfig(**{"policy": rule, "kv_cache_memory_bytes": 1 << 22, **options})
        return opened(assemble(models[name], config, on))

    return make


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def run(engine: Engine, ids: list[int], tokens: int = 40) -> tuple[list[int], int]:
    outputs = list(engine.stream(ids, greedy(tokens)))
    return [output.token_id for output in outputs if output.token_id is not None], outputs[-1].metrics.cached_tokens


def forced(engine: Engine, ids: list[int], chunk: int) -> np.ndarray:
    """Logits of every position, `chunk` at a time, behind whatever of it is cached."""
    table, rows = engine.manager.open(), []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        assert engine.manager.reserve(table, len(part))
        rows.append(engine.runner.forward([Piece(table, part, start, "all")]).copy())
    engine.manager.release(table)
    return np.concatenate(rows)


def together(engine: Engine, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """What each prompt is answered, all of them in one batch."""
    found: dict[str, list[int]] = {}
    names = [engine.submit(ids, greedy(tokens)) for ids in prompts]
    while engine.has_work:
        for output in engine.step():
            if output.token_id is not None:
                found.setdefault(output.request_id, []).append(output.token_id)
    engine.manager.check_integrity()
    return [found[name] for name in names]


@pytest.mark.parametrize("kv", ["f32", "fp8"])  # which multiply floats, so that both choose the same
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_close_to_the_reference_and_far_from_full(make_engine: MakeEngine, name: str, kv: str) -> None:
    ids = prompt(LENGTH)
    found = forced(make_engine(name, kv_cache_dtype=kv), ids, 64)
    truth = forced(make_engine(name, on=ReferenceBackend(), kv_cache_dtype=kv), ids, 64)
    assert np.abs(found - truth).max() < (1e-4 if kv == "f32" else 3e-3)  # a code at a border may fall either way
    full = forced(make_engine(name, "full", kv_cache_dtype=kv), ids, 64)
    assert np.array_equal(found[:48], full[:48]), "three pages are always read"
    assert np.abs(found[64:] - full[64:]).max() > 1e-2


@pytest.mark.parametrize("kv", CODECS)
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
def test_chunks_of_any_size_have_the_bits_of_one(make_engine: MakeEngine, page_size: int, kv: str) -> None:
    ids, options = prompt(500), {"page_size": page_size, "kv_cache_dtype": kv}
    whole = forced(make_engine(**options), ids, 500)
    for chunk in (1, 9, 128):
        assert forced(make_engine(**options), ids, chunk).tobytes() == whole.tobytes()


@pytest.mark.parametrize("rule", ["topk:1", "topk:15p", "topk:0.3"])
@pytest.mark.parametrize("kv", CODECS)
def test_all_pages_have_the_bits_of_full(make_engine: MakeEngine, rule: str, kv: str) -> None:
    ids = prompt(LENGTH)
    for chunk in (1, LENGTH):
        found, full = (forced(make_engine(rule=name, kv_cache_dtype=kv), ids, chunk) for name in (rule, "full"))
        assert found.tobytes() == full.tobytes()


@pytest.mark.parametrize("kv", CODECS)
def test_hits_forks_and_threads_have_the_bits_of_a_miss(make_engine: MakeEngine, kv: str, backend: CpuBackend) -> None:
    ids = prompt(LENGTH)
    engine = make_engine(kv_cache_dtype=kv)
    expected, cached = run(engine, ids)
    assert cached == 0
    assert run(engine, ids) == (expected, LENGTH - 1)
    assert run(make_engine(on=backend, max_num_batched_tokens=7, kv_cache_dtype=kv), ids)[0] == expected
    assert run(make_engine(enable_prefix_caching=False, kv_cache_dtype=kv), ids)[0] == expected
    longer = [*ids[:150], *prompt(80, 5)]
    fresh, _ = run(make_engine(kv_cache_dtype=kv), longer)
    assert run(engine, longer) == (fresh, 150), "a page is copied and filled again, with a sketch of its own"
    engine.manager.check_integrity()


def test_a_batch_has_the_bits_of_alone_and_so_has_who_gave_way(make_engine: MakeEngine) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate((200, 17, 90, 333, 3), 1)]
    alone = [run(make_engine(), ids, 60)[0] for ids in prompts]
    assert together(make_engine(), prompts, 60) == alone
    tight = make_engine(kv_cache_memory_bytes=1 << 19, max_model_len=400, max_num_batched_tokens=48)
    assert together(tight, prompts, 60) == alone
    assert tight.scheduler.preemptions > 0


@pytest.mark.parametrize("kv", CODECS)
def test_drafts_that_are_taken_back_leave_no_sketches_behind(make_engine: MakeEngine, kv: str) -> None:
    ids = prompt(60) * 4
    expected, _ = run(make_engine(kv_cache_dtype=kv), ids, 100)
    drafting = make_engine(speculative_config=SpeculativeConfig("ngram", adaptive=False), kv_cache_dtype=kv)
    assert run(drafting, ids, 100)[0] == expected


@pytest.mark.parametrize("kv", CODECS)
def test_a_table_rolled_back_goes_on_as_a_fresh_one(make_engine: MakeEngine, kv: str) -> None:
    engine, ids, other = make_engine(kv_cache_dtype=kv), prompt(200), prompt(120, 9)
    table = engine.manager.open()
    assert engine.manager.reserve(table, 200)
    engine.runner.forward([Piece(table, ids, 0, "last")])
    engine.manager.rollback(table, 100)
    assert engine.manager.reserve(table, 120)
    found = engine.runner.forward([Piece(table, other, 100, "all")]).copy()
    engine.manager.release(table)
    assert found.tobytes() == forced(make_engine(kv_cache_dtype=kv), [*ids[:100], *other], 220)[100:].tobytes()


@pytest.mark.parametrize("kv", CODECS)
def test_a_batch_over_packed_pages_has_the_bits_of_alone(make_engine: MakeEngine, kv: str) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate((200, 17, 90, 333, 3), 1)]
    alone = [run(make_engine(kv_cache_dtype=kv), ids, 30)[0] for ids in prompts]
    assert together(make_engine(kv_cache_dtype=kv), prompts, 30) == alone


@pytest.mark.parametrize("kv", CODECS)
def test_what_pages_held_before_is_never_chosen_by(make_engine: MakeEngine, kv: str) -> None:
    ids = prompt(LENGTH)
    clean = forced(make_engine(kv_cache_dtype=kv), ids, LENGTH)
    engine = make_engine(kv_cache_dtype=kv)
    for ledger in engine.manager.ledgers:
        ledger.pool.data[:] = ledger.pool.sketches[:] = 0xFF  # every number in the pool is NaN
    assert forced(engine, ids, 16).tobytes() == clean.tobytes()


def test_pages_of_another_policy_are_not_found(make_engine: MakeEngine) -> None:
    roots = {make_engine(rule=rule).manager.root(b"") for rule in ("full", RULE, "topk:0.31+3p", "topk:5p")}
    assert len(roots) == 4
    assert make_engine(rule="topk:.3000+3p").manager.root(b"") in roots


def test_sketches_are_counted(make_engine: MakeEngine) -> None:
    full, chosen = (make_engine(rule=rule).manager.groups[0].layout for rule in ("full", RULE))
    assert chosen.page_bytes - full.page_bytes == 3 * 2 * (64 + 32 + 16 * 32 // 8 + 32), (
        "layers, KV heads: mean, step, signs in the room of 32 dims, lengths"
    )


@pytest.mark.parametrize(
    ("share", "pages", "read"),
    [
        ("0.25", 1, 1),
        ("0.25+3p", 3, 3),
        ("0.25+3p", 4, 3),
        ("0.25+3p", 13, 4),
        ("0.25", 500, 125),
        ("0.25", 200, 64),
        ("0.25", 50, 50),
        ("1", 500, 500),
        ("64p", 500, 64),
        ("0.25+64p", 500, 125),
        ("0.25+64p", 100, 64),
        ("0.25+64p", 9, 9),
    ],
)
def test_how_many_pages_are_read(share: str, pages: int, read: int) -> None:
    rule = policy(f"topk:{share}")
    assert rule.choice(0, 16) is None, "the first layer reads all"
    assert rule.choice(1, 16) is not None
    choice = rule.choice(2, 16)
    assert isinstance(choice, Choice)
    assert choice.count(pages) == read


def test_the_least_is_counted_in_positions() -> None:
    least = {size: policy("topk:0.1").choice(2, size) for size in (16, 32, 128)}
    assert least == {16: Choice(1000, 64), 32: Choice(1000, 32), 128: Choice(1000, 8)}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("topk", "as in topk:0.25"), ("topk:", "as in topk:0.25"), ("topk:0.12345", "at most 4 decimals"),
        ("topk:0", "at most all"), ("topk:1.5", "at most all"), ("topk:0.0000", "at most all"), ("topk:2p", "give 3 to"),
        ("topk:99999999p", "give 3 to"), ("topk:p", "as in topk"), ("topk:0.25+2p", "give 3 to"), ("topk:+64p", "at most all"), ("topk:-0.5", "as in topk"), ("topk:0.2٤", "as in topk"),
        ("topk:2", "as in topk"), ("topq:0.5", "did you mean topk"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(rule: str, message: str) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=message):
        policy(rule)
    with pytest.raises((UsageError, UnknownNameError), match=message):
        EngineConfig(policy=rule)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("0.250", "0.25"),
        (".5", "0.5"),
        ("1.0", "1"),
        ("0.0001", "0.0001"),
        ("064p", "64p"),
        (".25+3p", "0.25+3p"),
        (".25+20p", "0.25+20p"),
    ],
)
def test_a_policy_has_one_name(rule: str, name: str) -> None:
    assert policy(f"topk:{rule}").name == f"topk:{name}"


def test_what_does_not_fit(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="enable_cache is off"):
        make_engine(enable_cache=False)
    for name in ("gemma2", "mistral"):
        with pytest.raises(UsageError, match="windows of their own"):
            make_engine(name)
