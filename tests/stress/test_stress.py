"""Thousands of random requests through the real scheduler and manager, each answer bit for bit its lone one.

The numbers of seeds are chosen for about a minute together; `make soak SECONDS=600` goes on with other seeds for as
long as one likes. A failure names its seed: `python tests/soak.py --seed N` runs it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import tiny
from kvist.cache import search
from kvist.cache.group import PageGroup
from kvist.cache.ledger import PageLedger
from kvist.cache.manager import CacheManager
from kvist.cache.prefix import Hit, PrefixIndex
from kvist.cache.table import PageTable
from kvist.engine import batch
from kvist.engine.runner import Runner
from kvist.engine.scheduler import Scheduler
from kvist.engine.sequence import Sequence as Tokens
from kvist.errors import InternalError
from kvist.kernels.cpu.backend import CpuBackend
from kvist.models.load import load_model
from stress.hashing import VOCAB, hashing_engine
from stress.real import real_engines
from stress.simulation import Simulation


def test_a_model_that_hashes_what_it_reads() -> None:
    made = [Simulation(seed, hashing_engine, VOCAB, 110) for seed in range(36)]
    engines = [one.run() for one in made]
    assert sum(one.compared for one in made) > 3000
    assert sum(one.cancelled for one in made) > 100
    assert sum(one.pinned for one in made) > 100
    assert sum(engine.scheduler.preemptions for engine in engines) > 300


@pytest.mark.parametrize("windows", [(1,), (20,), (40,), (100, 20)])
def test_layers_with_windows_in_as_few_pages_as_can_be(windows: tuple[int, ...]) -> None:
    make_engine = partial(hashing_engine, windows=windows)
    made = [Simulation(seed, make_engine, VOCAB, 110) for seed in range(6)]
    engines = [one.run() for one in made]
    assert sum(one.compared for one in made) > 450
    assert sum(engine.scheduler.preemptions for engine in engines) > 20
    assert sum(ledger.counters.pages_evicted for engine in engines for ledger in engine.manager.ledgers[1:]) > 100


def test_the_tiny_real_model(tmp_path: Path, backend: CpuBackend, one_thread: CpuBackend) -> None:
    model = load_model(tiny.write_folder(replace(tiny.MODELS["llama"], positions=512), tmp_path), backend)
    make_engine = real_engines(model, one_thread)
    made = [Simulation(seed, make_engine, model.config.vocab_size, 60) for seed in range(1000, 1008)]
    engines = [one.run() for one in made]
    assert sum(one.compared for one in made) > 350
    assert sum(engine.scheduler.preemptions for engine in engines) > 20


def test_a_seed_says_everything() -> None:
    one, two = (Simulation(3, hashing_engine, VOCAB, 40) for _ in range(2))
    one.run(), two.run()
    assert (one.steps, one.compared, one.cancelled) == (two.steps, two.compared, two.cancelled)


# --- the simulation has teeth
# --------------------------------------------------------------------------------------------------------------------


def no_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageLedger, "is_writable", lambda ledger, page: True)


def copies_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageLedger, "copy", lambda ledger, source, request: ledger.allocate(request))


def finds_one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    lookup = PrefixIndex.lookup

    def wrong(index: PrefixIndex, root: bytes, tokens: Sequence[int]) -> Hit:
        hit = lookup(index, root, tokens)
        if hit.partial is None or len(hit.pages) * 16 + hit.partial[1] >= len(tokens):
            return hit
        return Hit(hit.keys, hit.pages, (hit.partial[0], hit.partial[1] + 1))

    patch.setattr(PrefixIndex, "lookup", wrong)


def keeps_evicted_pages_in_the_index(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageLedger, "forget", lambda ledger, page: None)


def seals_pages_that_are_not_full(patch: pytest.MonkeyPatch) -> None:
    """Drafts that were refused stay in the table as if they had been right."""
    accept = Runner.accept

    def wrong(runner: Runner, table: PageTable, drafts: Sequence[int], count: int) -> None:
        accept(runner, table, drafts, min(count + 1, len(drafts)))

    patch.setattr(Runner, "accept", wrong)


def reads_the_page_before(patch: pytest.MonkeyPatch) -> None:
    """Every fiftieth step runs a row over a table whose first two pages are exchanged."""
    build, steps = batch.build_batch, iter(range(1 << 30))

    def wrong(pieces: Sequence[batch.Piece], page_size: int, scrap: Sequence[int]) -> object:
        made = build(pieces, page_size, scrap)
        last = made.sequences[-1]
        if next(steps) % 50 == 0 and last.pages.shape[1] > 2:
            last.pages[0, :2] = last.pages[0, 1::-1].copy()
        return made

    patch.setattr("kvist.engine.runner.build_batch", wrong)


def preempts_without_letting_go(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler.preempt

    def wrong(scheduler: Scheduler, sequence: Tokens) -> None:
        table = sequence.table
        preempt(scheduler, sequence)
        sequence.table = table

    patch.setattr(Scheduler, "preempt", wrong)


def unpins_twice(patch: pytest.MonkeyPatch) -> None:
    unpin = CacheManager.unpin

    def wrong(manager: CacheManager, name: str) -> int:
        pages = list(manager.pins.held[0].values())
        count = unpin(manager, name)
        for page in pages[:count]:
            manager.ledgers[0].drop(page, name)
        return count

    patch.setattr(CacheManager, "unpin", wrong)


def prompts_come_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("kvist.engine.scheduler._before", lambda sequence: sequence.uncomputed < 2)


@pytest.mark.parametrize(
    "sabotage",
    [
        no_copy_on_write,
        copies_nothing,
        finds_one_token_too_many,
        keeps_evicted_pages_in_the_index,
        seals_pages_that_are_not_full,
        reads_the_page_before,
        preempts_without_letting_go,
        unpins_twice,
        prompts_come_first,
    ],
)
def test_it_notices(sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch)
    monkeypatch.setattr(CacheManager, "close", lambda manager: None)  # broken caches are left as they are
    with pytest.raises((AssertionError, InternalError, KeyError, ValueError)) as error:
        for seed in range(36):
            Simulation(seed, hashing_engine, VOCAB, 110).run()
    assert "simulation seed=" in str(error.value.__notes__)


def lets_go_a_page_too_early(patch: pytest.MonkeyPatch) -> None:
    first_seen = PageGroup.first_seen
    patch.setattr(PageGroup, "first_seen", lambda group, position: first_seen(group, position + 16))


def finds_a_prefix_without_its_window(patch: pytest.MonkeyPatch) -> None:
    find = search.search

    def wrong(groups: Sequence[PageGroup], *arguments: object) -> search.Found:
        return find([replace(group, window=1 if group.window else None) for group in groups], *arguments)  # type: ignore[arg-type]

    patch.setattr("kvist.cache.manager.search", wrong)


@pytest.mark.parametrize("sabotage", [lets_go_a_page_too_early, finds_a_prefix_without_its_window])
def test_it_notices_with_windows(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    monkeypatch.setattr(CacheManager, "close", lambda manager: None)
    with pytest.raises((AssertionError, InternalError, KeyError, ValueError)) as error:
        for seed in range(12):
            Simulation(seed, partial(hashing_engine, windows=(40,)), VOCAB, 110).run()
    assert "simulation seed=" in str(error.value.__notes__)
    monkeypatch.setattr("kvist.cache.manager.check_integrity", lambda manager: None)  # it is left as it is
