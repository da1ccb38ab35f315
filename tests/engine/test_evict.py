"""The policy evict: part of a prompt's entries is kept, and the answer has the bits of every other way to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tiny
from kvist.assemble import assemble
from kvist.cache.policy import policy
from kvist.cache.score import SCORES, Pass, Prompt
from kvist.cache.score.kvzip import KVzip
from kvist.config import EngineConfig
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.errors import RequestError, UnknownNameError, UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend
from kvist.kernels.reference import ReferenceBackend
from kvist.models.load import Model, load_model

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
INSTRUCTION = (7, 8, 9)
LENGTH = 420  # 419 entries, of which 256 are kept
PAGE_BYTES = 3 * 2 * 2 * 16 * 16 * 4  # of the tiny llama's float32 pages of 16
PAGES = 200
QUICK = "evict:0.5,by=knorm"
METHODS = [f"evict:0.5,by={by}" for by in SCORES]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> dict[str, Model]:
    """Llama; learned positions; windows; learned sinks."""
    found = {}
    for name in ("llama", "gpt2", "gemma3", "llama-odd"):
        folder = tiny.write_folder(replace(tiny.MODELS[name], positions=1024), tmp_path_factory.mktemp(name))
        found[name] = load_model(folder, backend)
    return found


@pytest.fixture
def make_engine(models: dict[str, Model], one_thread: CpuBackend, opened: Callable[[Engine], Engine]) -> MakeEngine:
    def make(rule: str = QUICK, name: str = "llama", on: Backend = one_thread, **options: Any) -> Engine:
        options = {"policy": rule, "kv_cache_memory_bytes": PAGES * PAGE_BYTES, "max_model_len": 600, **options}
        return opened(assemble(models[name], EngineConfig.from_options(options), on, instruction=INSTRUCTION))

    return make


def prompt(length: int = LENGTH, seed: int = 1) -> list[int]:
    return [(seed * 37 + i * i * 7 + i * (i // 9)) % 300 for i in range(length)]


def run(engine: Engine, ids: list[int], params: SamplingParams = GREEDY) -> tuple[list[int], int]:
    outputs = list(engine.stream(ids, params))
    return [output.token_id for output in outputs if output.token_id is not None], outputs[-1].metrics.cached_tokens


def answers(engine: Engine, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[list[int]]]:
    """Of prompts that run together: of each the tokens of each branch. The cache is proved sound after every step."""
    names = [engine.submit(ids, params) for ids in prompts]
    found: dict[str, dict[int, list[int]]] = {name: {} for name in names}
    while engine.has_work:
        for output in engine.step():
            assert output.token_id is not None
            found[output.request_id].setdefault(output.index, []).append(output.token_id)
        engine.manager.check_integrity()
    return [[tokens for _, tokens in sorted(found[name].items())] for name in names]


@pytest.mark.parametrize("rule", METHODS)
def test_the_bits_are_those_of_every_other_way(make_engine: MakeEngine, backend: CpuBackend, rule: str) -> None:
    ids = prompt()
    engine = make_engine(rule)
    expected, _ = run(engine, ids)
    assert run(engine, ids) == (expected, LENGTH - 1), "what is kept is found: only the last token is computed"
    assert run(make_engine(rule, max_num_batched_tokens=37, page_size=64), ids) == (expected, 0)
    assert run(make_engine(rule, on=backend, enable_prefix_caching=False), ids)[0] == expected
    assert run(make_engine(rule, enable_cache=False), ids, replace(GREEDY, max_tokens=3))[0] == expected[:3]
    plain = make_engine(rule)
    run(plain, [*ids[: LENGTH - 100], *prompt(120, 5)])
    assert run(plain, ids) == (expected, LENGTH - 100), "a part of the prompt comes from the cache, its queries do not"


@pytest.mark.parametrize("rule", METHODS)
def test_close_to_the_reference_and_far_from_full(make_engine: MakeEngine, rule: str) -> None:
    ids, rows = prompt(), []
    for one, options in ((rule, {}), (rule, {"on": ReferenceBackend()}), ("full", {})):
        engine = make_engine(one, **options)
        table = engine.manager.open()
        assert engine.manager.reserve(table, LENGTH - 1)
        engine.runner.forward([Piece(table, ids[:-1], 0, "none")])
        if engine.evictor is not None:
            table = engine.evictor.evict(table, ids)
            assert (table.computed, table.positions, len(table.pages)) == (256, LENGTH - 1, 256 // 16)
        assert engine.manager.reserve(table, 1)
        rows.append(engine.runner.forward([Piece(table, ids[-1:], LENGTH - 1, "last")])[0].copy())
        engine.manager.release(table)
    assert np.abs(rows[0] - rows[1]).max() < 1e-4
    assert np.abs(rows[0] - rows[2]).max() > 1e-3


def test_pages_are_let_go_of(make_engine: MakeEngine) -> None:
    engine = make_engine(enable_prefix_caching=False)
    engine.submit(prompt(), GREEDY)
    live = []
    while engine.has_work:
        engine.step()
        live.append(engine.manager.stats().live)
    assert max(live) == 27, "the prompt's own; the step that copies holds both, and gives them back"
    assert live[-2] == (256 + 1 + 24 + 15) // 16, "256 slots are left of 419"


@pytest.mark.parametrize(("rule", "pages"), [(QUICK, 50), ("evict:0.6,by=kvzip", 64)])
def test_alone_as_in_a_batch_that_is_preempted(make_engine: MakeEngine, rule: str, pages: int) -> None:
    prompts = [prompt(300, 2), prompt(310), prompt(100, 3), prompt(310), prompt(320, 4)]
    params = replace(GREEDY, max_tokens=150)
    expected = [run(make_engine(rule), ids, params)[0] for ids in prompts]
    roomy = make_engine(rule, kv_cache_memory_bytes=600 * PAGE_BYTES)
    assert answers(roomy, prompts, params) == [[tokens] for tokens in expected]
    assert roomy.scheduler.preemptions == 0
    tight = make_engine(rule, kv_cache_memory_bytes=pages * PAGE_BYTES)
    assert answers(tight, prompts, params) == [[tokens] for tokens in expected]
    assert tight.scheduler.preemptions > 0


@pytest.mark.parametrize("rule", [QUICK, "evict:0.5,by=kvzip"])
def test_branches_share_what_is_kept(make_engine: MakeEngine, rule: str) -> None:
    drawn = SamplingParams(temperature=1.0, seed=3, max_tokens=30, n=3, ignore_eos=True)
    expected = answers(make_engine(rule, enable_prefix_caching=False), [prompt()], drawn)
    assert len({tuple(branch) for branch in expected[0]}) == 3
    engine = make_engine(rule, max_num_batched_tokens=50)
    assert answers(engine, [prompt()], drawn) == expected
    alone = answers(engine, [prompt()], replace(drawn, n=1))
    assert alone[0][0] == expected[0][0]


def test_beams_and_drafts(make_engine: MakeEngine) -> None:
    beams = BeamSearchParams(beam_width=3, max_tokens=12, ignore_eos=True)
    found = []
    for options in ({}, {"max_num_batched_tokens": 40, "page_size": 32}, {"kv_cache_memory_bytes": 62 * PAGE_BYTES}):
        engine = make_engine(**options)
        search = engine.submit_beams(prompt(), beams)
        while engine.has_work:
            engine.step()
            engine.manager.check_integrity()
        found.append([(one.token_ids, one.cumulative_logprob) for one in search.finished])
    assert found[0] == found[1] == found[2]
    repeating = prompt(60) * 7
    expected, _ = run(make_engine(), repeating)
    drafting = make_engine(speculative_config={"method": "ngram", "adaptive": False})
    assert run(drafting, repeating)[0] == expected
    assert drafting.speculation is not None and drafting.speculation.drafted_tokens > 0


def test_log_probabilities_of_the_prompt_are_those_of_full(make_engine: MakeEngine) -> None:
    """All of a prompt is computed before anything is evicted."""
    params = replace(GREEDY, max_tokens=1, prompt_logprobs=0)
    found = [next(iter(make_engine(rule).stream(prompt(), params))).prompt_logprobs for rule in (QUICK, "full")]
    assert found[0] == found[1] and found[0] is not None and len(found[0]) == LENGTH - 1


def test_a_conversation_that_goes_on(make_engine: MakeEngine) -> None:
    """A longer prompt begins with the pages of the shorter one, not with what was kept of it."""
    engine = make_engine()
    said, _ = run(engine, prompt())
    longer = [*prompt(), *said, *prompt(40, 9)]
    expected, _ = run(make_engine(), longer)
    assert run(engine, longer) == (expected, (LENGTH - 1) // 16 * 16), "full pages"


def test_a_short_prompt_is_left_as_it_is(make_engine: MakeEngine) -> None:
    full, engine = make_engine("full"), make_engine()
    for length in (1, 2, 100, 257):
        assert run(engine, prompt(length)) == run(full, prompt(length))
    assert run(engine, prompt(400))[0] != run(full, prompt(400))[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8])
def test_a_request_may_be_cancelled_or_preempted_at_any_step(make_engine: MakeEngine, steps: int) -> None:
    engine = make_engine("evict:0.5,by=kvzip", max_num_batched_tokens=200)
    expected, _ = run(make_engine("evict:0.5,by=kvzip"), prompt())
    name = engine.submit(prompt(), GREEDY)
    for _ in range(steps):
        engine.step()
        engine.manager.check_integrity()
    engine.scheduler.preempt(engine.scheduler.running[0])
    engine.manager.check_integrity()
    assert engine.manager.stats().live == 0
    made = []
    while engine.has_work:
        made += [output.token_id for output in engine.step()]
    assert made == expected[-len(made) :]
    name = engine.submit(prompt(LENGTH, 2), GREEDY)
    for _ in range(steps):
        engine.step()
    engine.cancel(name)
    assert engine.manager.stats().live == 0
    assert run(engine, prompt(LENGTH, 2))[0] == run(make_engine("evict:0.5,by=kvzip"), prompt(LENGTH, 2))[0]


def test_what_is_kept_stays_whole(make_engine: MakeEngine) -> None:
    """A rollback behind it keeps it, one into it empties the table, which goes on as any other."""
    engine, ids = make_engine(), prompt()
    expected, _ = run(engine, ids)
    manager = engine.manager
    assert engine.evictor is not None
    kept = engine.evictor.kept(ids)
    assert kept is not None
    match = manager.match(kept.slot_tokens(ids + expected), kept=kept)
    table = manager.open(match)
    assert manager.rollback(table, 256) == 256 and table.positions == LENGTH - 1
    twin = manager.fork(table)
    manager.check_integrity()
    assert manager.rollback(table, 255) == 0 and table.positions == 0 and twin.positions == LENGTH - 1
    manager.check_integrity()
    assert manager.reserve(table, 40)
    engine.runner.forward([Piece(table, ids[:40], 0, "none")])
    manager.check_integrity()
    with manager.match(ids[:40]) as found:
        assert table.pages[:2] == list(found.pages), "its pages are the prompt's own again"
    manager.release(table)
    manager.release(twin)


def test_pages_of_a_prompt_are_those_of_full_and_what_is_kept_is_the_rules_own(make_engine: MakeEngine) -> None:
    one, two, full = make_engine(), make_engine("evict:0.6,by=knorm"), make_engine("full")
    assert one.manager.root(b"") == two.manager.root(b"") == full.manager.root(b"")
    kept = [engine.evictor.kept(prompt(900)) for engine in (one, two) if engine.evictor is not None]
    roots = {engine.manager.root(salt, each) for engine in (one,) for each in (*kept, None) for salt in (b"", b"x")}
    assert len(roots) == 6


def test_too_little_room_is_said_before_anything_runs(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_cache_memory_bytes=44 * PAGE_BYTES)
    with pytest.raises(RequestError, match="420 prompt tokens take 45 pages until entries are evicted"):
        engine.submit(prompt(), GREEDY)
    assert run(make_engine(kv_cache_memory_bytes=45 * PAGE_BYTES), prompt())[0] == run(make_engine(), prompt())[0]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("evict:", "in evict:0.5,by="), ("evict:1", "between 0 and 1"), ("evict:0", "between 0 and 1"),
        ("evict:0.5,by=", "in evict:0.5,by="), ("evict:0.5,by=kvzap", "did you mean kvzip"), ("evict:5%", "in evict:0.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(rule: str, message: str) -> None:
    with pytest.raises((UsageError, UnknownNameError), match=message):
        EngineConfig(policy=rule)


def test_there_is_one_way_to_write_it() -> None:
    assert policy("evict:.50").name == policy("evict:0.5,by=kvzip").name == "evict:0.5,by=kvzip"


def test_what_does_not_fit_the_model(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="layers of this model have windows"):
        make_engine(name="gemma3")
    with pytest.raises(UsageError, match="no learned positions"):
        make_engine("evict:0.5,by=kvzip", name="gpt2")
    for rule in (QUICK, "evict:0.5,by=snapkv", "evict:0.5,by=expected"):
        engine = make_engine(rule, name="gpt2", kv_cache_memory_bytes=4 << 20)
        assert run(engine, prompt()) == (
            run(make_engine(rule, name="gpt2", kv_cache_memory_bytes=4 << 20), prompt())[0],
            0,
        )
    odd = make_engine("evict:0.5,by=kvzip", name="llama-odd", kv_cache_memory_bytes=4 << 20)
    assert len(run(odd, prompt())[0]) == 24


def test_kvzip_goes_by_what_surprised_the_model_in_the_prompt(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Prompt] = []
    passes = KVzip.passes

    def noted(self: KVzip, prompt: Prompt) -> Iterator[Pass]:
        told.append(prompt)
        return passes(self, prompt)

    monkeypatch.setattr(KVzip, "passes", noted)
    run(make_engine("evict:0.5,by=kvzip", max_num_batched_tokens=50), prompt())
    params = replace(GREEDY, max_tokens=1, prompt_logprobs=0)
    said = next(iter(make_engine("full").stream(prompt(), params))).prompt_logprobs
    assert said is not None
    found = [-row[0].logprob for row in said[:-1]]  # the prompt's last token comes once its entries are evicted
    assert told[0].surprisals == pytest.approx(found, rel=1e-6) and told[0].instruction == INSTRUCTION


def test_what_rows_count_reaches_what_is_seen(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row half as much: half of what every position gets, to the bit; nothing at all: nothing."""
    passes, seen = KVzip.passes, []
    for share in (None, 0.5, 0.0):

        def counted(self: KVzip, prompt: Prompt, share: float | None = share) -> Iterator[Pass]:
            for one in passes(self, prompt):
                yield replace(one, counts=None if share is None else np.full(len(one.tokens), share, np.float32))

        monkeypatch.setattr(KVzip, "passes", counted)
        engine = make_engine("evict:0.5,by=kvzip", max_num_batched_tokens=50)
        run(engine, prompt())
        assert engine.evictor is not None and engine.evictor._watching is not None
        seen.append(np.stack(engine.evictor._watching.into))
    assert np.array_equal(seen[1], seen[0] / 2) and seen[0].any() and not seen[2].any()
