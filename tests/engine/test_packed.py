"""Packed pages in an engine: every codec, every policy, every way to the same bits; close to the reference backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from kvist.assemble import assemble
from kvist.cache.codec import PACKED, Packed, any_codec
from kvist.cache.codec.choice import write_codecs
from kvist.cache.table import GONE
from kvist.config import EngineConfig
from kvist.engine.batch import Piece
from kvist.engine.engine import Engine
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Backend
from kvist.kernels.reference import ReferenceBackend
from kvist.models.load import Model, load_model
from kvist.verify.record import Bench
from kvist.verify.scenarios import SCENARIOS
from kvist.verify.verify import make_prompt

MakeEngine = Callable[..., Engine]
SLIDING = "window:70+4"
PAIRS = ("k=int5,v=int4", "k=int8,v=f32", "k=f32,v=lm4")
LENGTHS = (1, 15, 16, 33, 64, 100, 150)
MEANS = json.dumps({"layers": [{"k": "int4", "v": "int4"}] * 3})[:-1] + ', "key_means": ?}'
SLOW = {"speculative (draft) = plain"}  # a draft model's own pages are floats


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, backend: CpuBackend) -> dict[str, Model]:
    found = {}
    for name in ("llama", "llama-odd", "gemma3", "gpt2"):
        folder = tmp_path_factory.mktemp(name)
        found[name] = load_model(tiny.write_folder(replace(tiny.MODELS[name], positions=512), folder), backend)
    return found


@pytest.fixture
def make_engine(models: dict[str, Model], one_thread: CpuBackend, opened: Callable[[Engine], Engine]) -> MakeEngine:
    def make(codec: str = "int4", name: str = "llama", on: Backend = one_thread, **options: Any) -> Engine:
        config = EngineConfig(**{"kv_cache_dtype": codec, "kv_cache_memory_bytes": 8 << 20, **options})
        return opened(assemble(models[name], config, on))

    return make


def read(engine: Engine, ids: Sequence[int], chunk: int = 512) -> np.ndarray:
    """Logits of every position, `chunk` of them a step."""
    table, rows = engine.manager.open(), []
    for start in range(0, len(ids), chunk):
        piece = list(ids[start : start + chunk])
        assert engine.manager.reserve(table, len(piece))
        rows.append(engine.runner.forward([Piece(table, piece, start, "all")]).copy())
    engine.manager.release(table)
    return np.concatenate(rows)


@pytest.mark.parametrize("codec", [*PACKED, *PAIRS])
@pytest.mark.parametrize(
    ("page_size", "rule"), [(16, "full"), (16, SLIDING), (64, "full"), (64, SLIDING), (128, "full")]
)
def test_every_way_gives_the_same_bits(
    codec: str, page_size: int, rule: str, models: dict[str, Model], backend: CpuBackend, one_thread: CpuBackend
) -> None:
    """The scenarios of `kvist verify`: uncached, chunks, batches, hits, forks, rollbacks, preemption, drafts."""
    if codec.startswith("kivi") and page_size < 64:
        return
    config = EngineConfig(
        kv_cache_dtype=codec, kv_cache_memory_bytes=32 << 20, page_size=page_size, policy=rule, max_num_seqs=16
    )
    prompts = [make_prompt(length, 300) for length in LENGTHS]
    bench = Bench(models["llama"], backend, one_thread, config, prompts, [prompts[1], prompts[-1]], 24)
    assert bench.lossy
    expected = bench.alone(prompts)
    for scenario in SCENARIOS:
        if scenario.page_size == 0 and scenario.name not in SLOW:
            found = scenario.run(bench, expected)
            assert found.logits > 0 and found.bits == 0, scenario.name


def close(logits: np.ndarray, truth: np.ndarray, *, by_channel: bool = False) -> bool:
    """Equal but for codes, and weights, that fall to the other side of a border, each seen by few.

    by_channel: kernels round a query page by page, the reference does not.
    """
    apart, size = np.abs(logits - truth), np.abs(truth).max()
    largest, mean = (2e-2, 5e-4) if by_channel else (5e-3, 1e-4)
    return bool(apart.max() < largest * size and apart.mean() < mean * size)


@pytest.mark.parametrize("codec", [*PACKED, *PAIRS])
@pytest.mark.parametrize("rule", ["full", "window:40+4"])
def test_kernels_agree_with_the_reference(codec: str, rule: str, make_engine: MakeEngine) -> None:
    size = pages_for(codec)
    rule = rule.replace("40", "70") if size == 64 else rule
    ids = make_prompt(2 * size + 37, 300)
    fast = read(make_engine(codec, page_size=size, policy=rule), ids)
    slow = read(make_engine(codec, on=ReferenceBackend(), page_size=size, policy=rule), ids, 50)
    assert close(fast, slow, by_channel=codec.startswith(("kivi", "k=kivi")))


@pytest.mark.parametrize("codec", PACKED)
def test_only_pages_between_the_first_and_the_own_are_lossy(codec: str, make_engine: MakeEngine) -> None:
    size = pages_for(codec)
    ids = make_prompt(3 * size, 300)
    exact, lossy = (read(make_engine(name, page_size=size), ids) for name in ("f32", codec))
    if not turned(codec):
        assert np.array_equal(exact[: 2 * size], lossy[: 2 * size]), "page 0 is exact, and so is a token's own"
    else:  # turned heads round otherwise
        assert np.abs(exact[: 2 * size] - lossy[: 2 * size]).max() < 1e-5 * np.abs(exact).max()
    apart = np.abs(exact[2 * size :] - lossy[2 * size :]).max(1)
    assert (apart > 1e-4 * np.abs(exact).max()).all(), "page 1 is packed for all of page 2"


def test_a_page_is_packed_once_and_read_as_packed(make_engine: MakeEngine) -> None:
    """Damage to the sealed page shows from the next page but one on; the exact one is gone by then."""
    engine, ids = make_engine("int4", enable_prefix_caching=False), make_prompt(64, 300)
    manager, table = engine.manager, engine.manager.open()
    sealed, exact = (manager.ledgers[i].pool for i in range(2))
    assert [group.exact for group in manager.groups] == [False, True]
    fresh = read(engine, ids)
    for position, token in enumerate(ids):
        if position == 40:
            assert table.groups[1][:3] == [table.groups[1][0], GONE, table.groups[1][2]]
            before = [part.copy() for part in sealed.parts(table.groups[0][1])]
        if position == 48:
            now = sealed.parts(table.groups[0][1])
            assert all(np.array_equal(a, b) for a, b in zip(now, before, strict=True))
            for part in sealed.parts(table.groups[0][0]):
                part[...] = 0xA5  # never read
            for part in now:
                part ^= 0x11
        assert manager.reserve(table, 1)
        row = engine.runner.forward([Piece(table, [token], position, "last")])[0]
        assert np.array_equal(row, fresh[position]) == (position < 48)
    assert exact.num_pages <= sealed.num_pages
    manager.release(table)


@pytest.mark.parametrize("back", [63, 50, 48, 47, 33, 20, 5])
def test_a_rollback_into_a_packed_page_takes_the_exact_one_back_or_computes_it_again(
    back: int, make_engine: MakeEngine
) -> None:
    ids = make_prompt(64, 300)
    other = [*ids[:back], *make_prompt(40, 300)]
    fresh = read(make_engine("int4", enable_prefix_caching=False), other)
    for caching in (True, False):
        engine = make_engine("int4", enable_prefix_caching=caching)
        table = engine.manager.open()
        assert engine.manager.reserve(table, len(ids))
        engine.runner.forward([Piece(table, list(ids), 0, "last")])
        left = engine.manager.rollback(table, back)
        # what is published is taken back; else it is page 0, or the beginning of a page, that is left
        assert left == back if caching or back < 16 or back % 16 == 0 else left == back // 16 * 16
        assert engine.manager.reserve(table, len(other) - left)
        rows = engine.runner.forward([Piece(table, other[left:], left, "all")])
        assert np.array_equal(rows, fresh[left:])
        engine.manager.release(table)


def test_exact_pages_are_the_first_to_go(make_engine: MakeEngine) -> None:
    """All but page 0 and the last: what every later token needs outlives what serves rollbacks alone."""
    engine = make_engine("int4", kv_cache_memory_bytes=1 << 20)
    for seed in range(3):
        list(engine.stream(make_prompt(100 + seed, 300), SamplingParams(max_tokens=2, ignore_eos=True)))
    ledger = engine.manager.ledgers[1]
    order = ledger.allocator.eviction_order()
    depths = [ledger.index.pages[page].depth for page in order]
    first = [depth for depth in depths if depth == 0]
    assert len(first) == 3 and 0 not in depths[: len(depths) - 2 * len(first)]


def test_what_is_lossy_is_named_in_the_requests_report(make_engine: MakeEngine) -> None:
    def named(codec: str, **options: Any) -> tuple[str, bool]:
        engine = make_engine(codec, **options)
        metrics = list(engine.stream([1, 2, 3], SamplingParams(max_tokens=1)))[-1].metrics
        return metrics.kv_cache_dtype, metrics.lossy

    assert named("auto") == ("f32", False) and named("bf16") == ("bf16", False)
    assert named("int4") == ("int4", True) and named("k=int8,v=lm4") == ("k=int8,v=lm4", True)
    assert named("int4", kv_cache_skip_layers=(0, -1)) == ("int4 (f32 in layers 0,-1)", True)
    assert named("int4", kv_cache_skip_layers=(0, 1, 2)) == ("f32", False)


def test_layers_with_small_windows_and_those_that_are_skipped_stay_floats(make_engine: MakeEngine) -> None:
    windows = make_engine("int8", "gemma3")
    for engine in (windows, make_engine("int4", kv_cache_skip_layers=(0, -1))):
        packed = {i for g in engine.manager.groups for i, spec in enumerate(g.layout.layers) if spec and spec.packed}
        config = engine.manager.layout
        small = {layer for layer in range(len(config.layers)) if layer not in packed}
        assert packed and small
        assert np.isfinite(read(engine, make_prompt(200, 300))).all()
    assert packed == {1}


def test_a_long_text_fits_where_layers_are_skipped(make_engine: MakeEngine) -> None:
    """Sealed pages are as many as those of the layers that stay floats, though these come first."""
    engine = make_engine(
        "int4", kv_cache_skip_layers=(0,), max_num_seqs=1, max_num_batched_tokens=32, max_model_len=512
    )
    assert [group.exact for group in engine.manager.groups] == [False, False, True]
    assert engine.manager.groups[1].num_pages >= 32
    assert len(list(engine.stream(make_prompt(480, 300), SamplingParams(max_tokens=32, ignore_eos=True)))) == 32


def test_codecs_layer_by_layer_from_a_file(make_engine: MakeEngine, tmp_path: Path) -> None:
    file, ids = tmp_path / "codecs.json", make_prompt(80, 300)

    def given(*pairs: tuple[str, str]) -> str:
        file.write_text(json.dumps({"layers": [{"k": k, "v": v} for k, v in pairs]}))
        return f"@{file}"

    same = read(make_engine("k=int5,v=lm4"), ids)
    assert np.array_equal(read(make_engine(given(*[("int5", "lm4")] * 3)), ids), same)
    skipped = read(make_engine("k=int5,v=lm4", kv_cache_skip_layers=(1,)), ids)
    assert np.array_equal(read(make_engine(given(("int5", "lm4"), ("auto", "auto"), ("int5", "lm4"))), ids), skipped)
    mixed = make_engine(given(("int8", "auto"), ("lm3", "int4"), ("auto", "fp8")))
    assert np.array_equal(read(mixed, ids), read(mixed, ids, 7))
    slow = read(make_engine(f"@{file}", on=ReferenceBackend()), ids)
    assert close(read(mixed, ids), slow)


def with_means(path: Path, pairs: Sequence[tuple[str, str]], seed: int = 0, numbers: int = 32) -> str:
    """A file of codecs with mean keys of some size; the name of it."""
    random = np.random.default_rng(seed)
    write_codecs(path, pairs, {i: random.normal(size=numbers).astype(np.float32) for i in range(len(pairs))}, {})
    return f"@{path}"


MIXED = (("int5", "lm4"), ("int8", "auto"), ("lm3", "int4"))


@pytest.mark.parametrize(("page_size", "rule"), [(16, "full"), (64, "full"), (16, "window:70+0")])
def test_mean_keys_keep_every_bit_on_every_way(
    page_size: int, rule: str, models: dict[str, Model], backend: CpuBackend, one_thread: CpuBackend, tmp_path: Path
) -> None:
    dtype = with_means(tmp_path / "codecs.json", MIXED)
    config = EngineConfig(
        kv_cache_dtype=dtype, kv_cache_memory_bytes=32 << 20, page_size=page_size, policy=rule, max_num_seqs=16
    )
    prompts = [make_prompt(length, 300) for length in LENGTHS]
    bench = Bench(models["llama"], backend, one_thread, config, prompts, [prompts[1], prompts[-1]], 24)
    expected = bench.alone(prompts)
    for scenario in SCENARIOS:
        if scenario.page_size == 0 and scenario.name not in SLOW:
            found = scenario.run(bench, expected)
            assert found.logits > 0 and found.bits == 0, scenario.name


def test_what_all_keys_miss_changes_nothing_but_how_they_round(make_engine: MakeEngine, tmp_path: Path) -> None:
    file, ids = tmp_path / "codecs.json", make_prompt(120, 300)
    plain = read(make_engine(with_means(file, [("int8", "int8")] * 3, numbers=0)), ids)
    assert np.array_equal(plain, read(make_engine("int8"), ids)), "a file without mean keys"
    engine = make_engine(with_means(file, [("int8", "int8")] * 3))
    moved = read(engine, ids)
    assert 0 < np.abs(moved - plain).mean() < 2e-3 * np.abs(plain).max()
    assert np.array_equal(moved, read(engine, ids, 7))
    assert close(moved, read(make_engine(f"@{file}", on=ReferenceBackend()), ids, 50))
    again = make_engine(with_means(file, [("int8", "int8")] * 3, seed=1))
    assert not np.array_equal(read(again, ids), moved)
    keys = {made.manager.keys(ids)[0] for made in (engine, again, make_engine("int8"))}
    assert len(keys) == 3, "pages of other means are other pages"


def test_a_mean_near_the_keys_makes_codes_finer(make_engine: MakeEngine, tmp_path: Path) -> None:
    """A mean that is far from the keys makes their codes coarse; these keys' own is near 0."""
    ids, common = make_prompt(150, 300), 20 * np.random.default_rng(1).normal(size=32).astype(np.float32)
    away, truth = {}, read(make_engine("auto"), ids)
    for name, mean in (("far", common), ("near", 0 * common)):
        write_codecs(tmp_path / name, [("int4", "auto")] * 3, dict.fromkeys(range(3), mean), {})
        away[name] = np.abs(read(make_engine(f"@{tmp_path / name}"), ids) - truth).mean()
    assert 3 * away["near"] < away["far"]


@pytest.mark.parametrize(("name", "options"), [("gemma2", {}), ("gpt_oss", {}), ("llama", {"policy": SLIDING})])
def test_means_are_left_alone_where_a_softmax_would_mind(
    name: str, options: dict[str, Any], models: dict[str, Model], one_thread: CpuBackend, tmp_path: Path,
    opened: Callable[[Engine], Engine], backend: CpuBackend, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Where scores are capped, where learned sinks take part, and where sinks are looked at from elsewhere."""
    if name not in models:
        folder = tmp_path_factory.mktemp(name)
        models[name] = load_model(tiny.write_folder(replace(tiny.MODELS[name], positions=512), folder), backend)
    shape, ids = models[name].config, make_prompt(150, 300)
    pairs = [("int5", "int5")] * shape.num_layers
    dtype = with_means(tmp_path / "codecs.json", pairs, numbers=shape.num_kv_heads * shape.stored_head_dim)
    made = [
        opened(assemble(models[name], EngineConfig(kv_cache_dtype=d, kv_cache_memory_bytes=8 << 20, **options), one_thread))
        for d in (dtype, "int5")
    ]
    assert np.array_equal(*(read(engine, ids) for engine in made))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no codecs can be read from a file"),
        ("{", "no codecs can be read from a file: .*not valid JSON"),
        ("[]", "no codecs can be read"),
        ("{}", 'has no list "layers"'),
        ('{"layers": [{"k": "int4", "v": "int4"}]}', "codecs of 1 layers, and the model has 3"),
        ('{"layers": [{"k": "int4"}]}', "is no pair of codecs"),
        (MEANS.replace("?", '"AAAA"'), "must name one for each layer"),
        (MEANS.replace("?", "[]"), "must name one for each layer"),
        (MEANS.replace("?", '["AAA", null, null]'), "'AAA' is no mean key"),
        (MEANS.replace("?", '["AH4=", null, null]'), "'AH4=' is no mean key"),  # NaN
        (MEANS.replace("?", '[["AAA="], null, null]'), "is no mean key"),
        (MEANS.replace("?", '["AAA=", null, null]'), "layer 0 has 1 numbers, and this model's keys have 32"),
        ('{"layers": [{"k": "int4", "v": 4}]}', "is no pair of codecs"),
        ('{"layers": [{"k": "int4", "v": "nope"}, {"k": "int4", "v": "int4"}, {"k": "int4", "v": "int4"}]}', "'nope'"),
    ],
)
def test_broken_files_are_refused(text: str | None, message: str, make_engine: MakeEngine, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "broken.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        make_engine(f"@{tmp_path / 'broken.json'}")


def test_what_cannot_be_is_refused(make_engine: MakeEngine) -> None:
    for codec in ("kivi4", "kivi2", "k=kivi4,v=int8"):
        with pytest.raises(UsageError, match="page_size=64 or 128"):
            make_engine(codec, page_size=32)
    with pytest.raises(UsageError, match="sinks must lie in the first page"):
        make_engine("int4", policy="window:64+20")
    assert make_engine("int4", policy="window:64+20", page_size=32).limits.lossy
    for layer in (3, -4):
        with pytest.raises(UsageError, match=f"names layer {layer}, and the model has 3"):
            make_engine("int4", kv_cache_skip_layers=(layer,))
    for codec, message in (("int44", "did you mean int4"), ("k=int4,v=zz", "known are"), ("k=int4", "name K and V together"), ("k=f16,v=f32", "not mixed")):
        with pytest.raises(UsageError, match=message):
            make_engine(codec)
    with pytest.raises(UsageError, match="kv_cache_skip_layers"):
        make_engine("int4", kv_cache_skip_layers=("0",))


def test_rotation_needs_heads_of_a_power_of_two(models: dict[str, Model], one_thread: CpuBackend) -> None:
    config = replace(models["llama"].config, head_dim=40)
    assert config.stored_head_dim == 48
    for codec in ("int4", "int5", "lm4", "lm3"):
        with pytest.raises(UsageError, match=r"power of two.*48 numbers: choose int8 or fp8"):
            assemble(replace(models["llama"], config=config), EngineConfig(kv_cache_dtype=codec), one_thread)


@pytest.mark.parametrize("name", ["llama-odd", "gpt2", "gemma3"])
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_other_models(name: str, codec: str, make_engine: MakeEngine) -> None:
    """Padded heads, learned positions, soft caps and windows."""
    ids = make_prompt(75, 300)
    fast, slow = (make_engine(codec, name, **options) for options in ({}, {"on": ReferenceBackend()}))
    assert fast.limits.lossy
    once, expected = read(fast, ids), read(slow, ids)
    assert np.array_equal(read(fast, ids, 1), once)
    assert close(once, expected)


def pages_for(codec: str) -> int:
    """The smallest pages that a codec takes."""
    return 64 if codec.startswith("kivi") else 16


def turned(codec: str) -> bool:
    """Whether it rotates heads, exact ones as well."""
    found = any_codec(codec)
    return isinstance(found, Packed) and found.rotated
