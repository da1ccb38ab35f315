"""Hypothesis drives the manager against a dictionary that keeps everything.

The model of a language model: K and V of a position are a hash of the salt and of all tokens up to it. So the exactness
contract holds for them, any wrong, stale or foreign page shows, and the dictionary needs no cache: it recomputes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kvist.cache import search
from kvist.cache.codec import FLOATS, AnyCodec, Packed, any_codec, codec
from kvist.cache.codec.packed import pack as pack_page
from kvist.cache.codec.packed import unpack
from kvist.cache.group import PageGroup, page_groups
from kvist.cache.layout import PAGE_SIZES, LayerSpec, PageLayout
from kvist.cache.ledger import PageLedger
from kvist.cache.manager import CacheManager
from kvist.cache.policy import Span
from kvist.cache.prefix import PrefixIndex, common_tokens, pack
from kvist.cache.room import lacking, loss, room
from kvist.cache.table import GONE, PageTable, PrefixMatch
from kvist.errors import InternalError

PLACES = ((0, 0), (1, 0), (1, 1))  # (layer, head) of the layout below
LAYERS = (LayerSpec(1, 16), LayerSpec(2, 16))

K, V = any_codec("int8"), any_codec("lm4")

salts = st.sampled_from([b"", b"tenant"])


@cache
def truth(salt: bytes, tokens: tuple[int, ...]) -> np.ndarray:
    """K and V of the last of `tokens` at PLACES: uint8 [place][K, V][16]; every codec stores such numbers exactly."""
    digest = hashlib.shake_128(salt + b"/" + struct.pack(f"<{len(tokens)}i", *tokens)).digest(len(PLACES) * 32)
    return np.frombuffer(digest, np.uint8).reshape(len(PLACES), 2, 16)


def _packed(codec: AnyCodec, numbers: np.ndarray, keys: bool) -> np.ndarray:
    """Numbers (page_size, 16) as a packed page has them."""
    assert isinstance(codec, Packed)
    return unpack(codec, *pack_page(codec, numbers, keys=keys), 16, keys=keys)


class CacheMachine(RuleBasedStateMachine):
    """Tables are kept with the salt and tokens they should hold; tokens come in runs, so that prefixes collide."""

    tables = Bundle("tables")
    matches = Bundle("matches")

    @initialize(
        page_size=st.sampled_from(PAGE_SIZES),
        num_pages=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]),
        name=st.sampled_from(FLOATS),
        caching=st.sampled_from([True, True, True, False]),
        spans=st.sampled_from([(None,), (None,), (None, 1), (None, 20), (None, 40), (None, 100), (90, 20), (33,)]),
        sinks=st.sampled_from([0, 0, 4, 20]),
        windowed=st.sampled_from([3, 4, 6, 10]),
        lossy=st.sampled_from([False, False, True]),
    )
    def begin(
        self, page_size: int, num_pages: int, name: str, caching: bool, spans: tuple[int | None, ...], sinks: int,
        windowed: int, lossy: bool,
    ) -> None:  # fmt: skip
        """spans: of the groups. In one group all layers are; of two, the second has layer 1, and `windowed` pages.

        lossy: all layers are packed; they see what the first group does, and the second has their exact pages.
        """
        self.size, self.lossy = page_size, lossy
        self.places = [PLACES] if len(spans) == 1 else [PLACES[:1], PLACES[1:]]
        self.totals = [num_pages, windowed][: len(spans)]
        layers = [LAYERS] if len(spans) == 1 else [(LAYERS[0], None), (None, LAYERS[1])]
        layouts = [PageLayout(specs, page_size, codec(name)) for specs in layers]
        groups = [PageGroup(*g, sinks if g[2] else 0) for g in zip(layouts, self.totals, spans, strict=True)]
        if lossy:
            template = PageLayout(tuple(replace(layer, k=K, v=V) for layer in LAYERS), page_size, codec(name))
            self.places, self.totals = [PLACES, PLACES], [num_pages, windowed]
            made = page_groups(template, [Span(spans[0])] * 2)
            groups = [replace(group, num_pages=count) for group, count in zip(made, self.totals, strict=True)]
        self.manager = CacheManager(
            groups,
            identity=b"test",
            enable_prefix_caching=caching,
        )
        self.open: dict[PageTable, tuple[bytes, list[int]]] = {}
        self.sealed: set[tuple[bytes, tuple[int, ...]]] = set()  # every prefix that ever filled its last page

    def run_of(self, shape: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens from (token, length) pairs; lengths are in quarters of a page, give or take one."""
        return [token for token, length in shape for _ in range(length // 3 * self.size // 4 + length % 3 - 1)]

    runs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 14)), min_size=1, max_size=3)

    # -- rules -------------------------------------------------------------------------------------------------------

    @rule(target=matches, shape=runs, salt=salts, spare=st.integers(0, 1), whole=st.booleans())
    def match(self, shape: Sequence[tuple[int, int]], salt: bytes, spare: int, whole: bool) -> PrefixMatch:
        return self.ask(salt, self.run_of(shape), spare, whole)

    @rule(target=matches, which=st.integers(0, 30), cut=st.integers(0, 300), shape=runs, other_salt=st.booleans())
    def match_what_was_sealed(
        self, which: int, cut: int, shape: Sequence[tuple[int, int]], other_salt: bool
    ) -> PrefixMatch:
        salt, tokens = self.variation(which, cut, shape)
        return self.ask(b"other" if other_salt else salt, tokens, 1)

    @rule(target=tables, which=st.integers(0, 30), cut=st.integers(0, 300), shape=runs)
    def serve(self, which: int, cut: int, shape: Sequence[tuple[int, int]]) -> PageTable:
        """What the engine does with a request: match, open, compute the rest."""
        salt, tokens = self.variation(which, cut, shape)
        table = self.open_match(self.ask(salt, tokens, 1))
        if self.manager.reserve(table, len(tokens) - table.computed):
            self.run_model(table, tokens[table.computed :])
        return table

    def variation(self, which: int, cut: int, shape: Sequence[tuple[int, int]]) -> tuple[bytes, list[int]]:
        """Something that was sealed once, up to a point, and something else from there on."""
        known = sorted(self.sealed) or [(b"", ())]
        salt, tokens = known[which % len(known)]
        return salt, [*tokens[: cut % (len(tokens) + 1)], *self.run_of(shape)]

    def ask(self, salt: bytes, tokens: list[int], spare: int, whole: bool = False) -> PrefixMatch:
        limit = max(len(tokens) - spare, 0)
        match = self.manager.match(tokens, salt=salt, limit=limit, whole=whole)
        assert not whole or all(GONE not in pages for pages in match.groups)
        assert list(match.tokens) == tokens[: match.cached]
        asked = pack(tokens[:limit])
        best = max((common_tokens(pack(known), asked) for s, known in self.sealed if s == salt), default=0)
        if self.manager.enable_prefix_caching and not self.manager.counters.pages_evicted:
            assert match.cached == best, "all that was ever sealed is found, to the token"
        assert match.cached <= best, "nothing is found that never was"
        return match

    @rule(match=consumes(matches))
    def give_up(self, match: PrefixMatch) -> None:
        match.release()

    @rule(target=tables, match=consumes(matches))
    def open_locked(self, match: PrefixMatch) -> PageTable:
        return self.open_match(match)

    def open_match(self, match: PrefixMatch) -> PageTable:
        room = all(ledger.allocator.can_allocate(1) for ledger in self.manager.ledgers)
        table = self.manager.open(match)
        assert table.computed == (match.cached if room else len(match.pages) * self.size)
        self.open[table] = match.salt, list(match.tokens[: table.computed])
        return table

    @rule(target=tables, salt=salts)
    def open_empty(self, salt: bytes) -> PageTable:
        table = self.manager.open(None, salt)
        self.open[table] = salt, []
        return table

    @rule(table=tables, shape=runs, steps=st.integers(1, 3))
    def extend(self, table: PageTable, shape: Sequence[tuple[int, int]], steps: int) -> None:
        if table not in self.open:
            return
        tokens = self.run_of(shape)
        before = self.state(table)
        new = table.computed + len(tokens) > table.reserved
        fits = not any(lacking(self.manager, table, len(tokens))), len(tokens) <= room(self.manager, table)
        reserved = self.manager.reserve(table, len(tokens))
        assert not new or fits == (reserved, reserved), "what is lacking and what there is room for is known before"
        if not reserved:
            assert self.state(table) == before
            self.check_that_it_does_not_fit(table, len(tokens))
            return
        step = -(-len(tokens) // steps)
        for at in range(0, len(tokens), step or 1):
            self.run_model(table, tokens[at : at + step])

    def state(self, table: PageTable) -> object:
        manager = self.manager
        orders = [ledger.allocator.eviction_order() for ledger in manager.ledgers]
        return [list(pages) for pages in table.groups], manager.stats(), manager.counters, orders

    def check_that_it_does_not_fit(self, table: PageTable, count: int) -> None:
        """A sequence alone can go on if the pool is as large as what its tokens see and the new ones."""
        if len(self.open) == 1 and not self.manager.matches:
            pages = self.manager.layout.pages_for(table.computed + count)
            gone = [pages.count(GONE) for pages in table.groups]
            assert any(pages - count > total for count, total in zip(gone, self.totals, strict=True))

    @rule(table=tables, more=st.integers(0, 40))
    def only_reserve(self, table: PageTable, more: int) -> None:
        if table in self.open:
            self.manager.reserve(table, more)

    @rule(target=tables, table=tables)
    def fork(self, table: PageTable) -> PageTable:
        if table not in self.open:
            return table
        live = self.manager.stats().live
        twin = self.manager.fork(table)
        assert self.manager.stats().live == live
        salt, tokens = self.open[table]
        self.open[twin] = salt, list(tokens)
        return twin

    @rule(table=tables, share=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
    def rollback(self, table: PageTable, share: float) -> None:
        if table in self.open:
            self.back_to(table, int(table.computed * share))

    def back_to(self, table: PageTable, length: int) -> None:
        """Roll back. It may go further, if what the next token sees is lost, but not without a window."""
        left = self.manager.rollback(table, length)
        assert left == table.computed <= length
        assert left == length or left % self.size == 0
        if all(group.window is None for group in self.manager.groups):
            assert left == length
        del self.open[table][1][left:]

    @rule(table=tables, back=st.integers(1, 40), same=st.booleans())
    def redo(self, table: PageTable, back: int, same: bool) -> None:
        """Go back and compute again, the same tokens or the opposite ones."""
        if table not in self.open:
            return
        held = list(self.open[table][1])
        self.back_to(table, max(table.computed - back, 0))
        undone = held[table.computed :]
        if self.manager.reserve(table, len(undone)):
            self.run_model(table, undone if same else [1 - token for token in undone])
        else:
            self.check_that_it_does_not_fit(table, len(undone))

    @rule(table=consumes(tables), wanted=st.integers(0, 6))
    def release(self, table: PageTable, wanted: int) -> None:
        """As a preemption does: what was said to be lost is what is not there any more, if others take the room."""
        before, lacks = self.available(), table in self.open and wanted
        too_few, lost = loss(self.manager, table, [wanted] * len(before)) if lacks else (False, 0)
        tokens = list(table.tokens)
        self.manager.release(table)
        if lacks:
            assert too_few == any(after - was < wanted for after, was in zip(self.available(), before, strict=True))
            assert lost <= len(tokens)
        self.open.pop(table, None)

    def available(self) -> list[int]:
        return [ledger.allocator.available for ledger in self.manager.ledgers]

    @rule()
    def flush(self) -> None:
        self.manager.flush()
        assert self.manager.stats().cached == 0

    # -- the model, and what must hold -------------------------------------------------------------------------------

    def run_model(self, table: PageTable, tokens: Sequence[int]) -> None:
        salt, held = self.open[table]
        for token in tokens:
            held.append(token)
            i, slot = divmod(len(held) - 1, self.size)
            numbers = iter(truth(salt, tuple(held)).astype(np.float32))
            written = list(zip(self.manager.ledgers, table.groups, self.places, strict=True))[self.lossy :]
            for ledger, pages, places in written:
                for layer, head in places:
                    k, v = next(numbers)
                    ledger.pool.write(pages[i], layer, head, slice(slot, slot + 1), k[None], v[None])
            if len(held) % self.size == 0:
                self.sealed.add((salt, tuple(held)))
                if self.lossy and i:  # page 0 is always read exactly
                    self.pack(*(group[i] for group in table.groups))
        self.manager.commit(table, tokens)
        for group, pages in zip(self.manager.groups, table.groups, strict=True):
            passed = max(0, len(held) - (group.window or 1 << 30) + 1) // self.size
            assert {*pages[-(-group.sinks // self.size) : passed]} <= {GONE}, (
                "what no later token sees is let go of at once"
            )

    def pack(self, sealed: int, exact: int) -> None:
        pools = [ledger.pool for ledger in self.manager.ledgers]
        for layer, head in PLACES:
            pools[0].pack(sealed, layer, head, *pools[1].read(exact, layer, head))

    @invariant()
    def the_cache_is_sound(self) -> None:
        if hasattr(self, "manager"):
            self.manager.check_integrity()
            assert self.manager.tables == self.open.keys()

    @invariant()
    def every_position_of_every_table_reads_as_computed(self) -> None:
        for table, (salt, tokens) in getattr(self, "open", {}).items():
            assert table.tokens == tokens
            expected = [truth(salt, tuple(tokens[: n + 1])) for n in range(len(tokens))]
            for ledger, pages, places in zip(self.manager.ledgers, table.groups, self.places, strict=True):
                seen = max(0, len(tokens) - (ledger.group.window or 1 << 30) + 1) // self.size
                first = -(-ledger.group.sinks // self.size)
                for i in range(self.manager.layout.pages_for(len(tokens))):
                    if first <= i < seen:
                        continue
                    part = np.stack(expected[i * self.size : (i + 1) * self.size])
                    packed = self.lossy and ledger is self.manager.ledgers[0]
                    if packed and (not i or len(part) < self.size):
                        continue
                    for layer, head in places:
                        k, v = ledger.pool.read(pages[i], layer, head, slice(0, len(part)))
                        numbers = part[:, PLACES.index((layer, head))].astype(np.float32)
                        own = [numbers[:, 0], numbers[:, 1]]
                        if packed:
                            own = [_packed(codec, x, codec is K) for codec, x in zip((K, V), own, strict=True)]
                        assert np.array_equal(k, own[0]), (table, i)
                        assert np.array_equal(v, own[1]), (table, i)

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for match in list(self.manager.matches):
            match.release()
        for table in list(self.open):
            self.manager.release(table)
        self.manager.check_integrity()
        assert self.manager.stats().live == 0
        self.manager.flush()
        self.manager.check_integrity()
        assert self.manager.stats().free == self.manager.stats().total
        assert all(len(ledger.index) == 0 for ledger in self.manager.ledgers)
        self.manager.close()


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def test_the_manager_agrees_with_a_dictionary() -> None:
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=250,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=QUIET,
            phases=[Phase.generate],  # a failure is short enough to read, and shrinking one takes minutes
        ),
    )


def no_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageLedger, "is_writable", lambda ledger, page: True)


def copies_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageLedger, "copy", lambda ledger, source, request: ledger.allocate(request))


def matches_one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    find = search.search

    def wrong(groups: Sequence[PageGroup], indices: Sequence[PrefixIndex], root: bytes, tokens: Sequence[int],
              whole: bool) -> search.Found:  # fmt: skip
        found = find(groups, indices, root, tokens, whole)
        end = len(found.keys) * groups[0].layout.page_size + found.slots
        return replace(found, slots=found.slots + 1) if found.partial and end < len(tokens) else found

    patch.setattr("kvist.cache.manager.search", wrong)


def ignores_the_salt(patch: pytest.MonkeyPatch) -> None:
    root = CacheManager.root
    patch.setattr(CacheManager, "root", lambda manager, salt, kept=None: root(manager, b"", kept))


def keeps_evicted_pages_in_the_index(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PageLedger, "forget", lambda ledger, page: None)


def releases_head_first(patch: pytest.MonkeyPatch) -> None:
    def wrong(manager: CacheManager, table: PageTable) -> None:
        for page in table.pages:
            manager.ledgers[0].drop(page, None)
        manager.tables.discard(table)
        table.pages.clear()

    patch.setattr(CacheManager, "release", wrong)


def forgets_to_end_reservations(patch: pytest.MonkeyPatch) -> None:
    fork = CacheManager.fork

    def wrong(manager: CacheManager, table: PageTable) -> PageTable:
        reserved = table.reserved
        twin = fork(manager, table)
        table.reserved = reserved
        return twin

    patch.setattr(CacheManager, "fork", wrong)


def lets_go_a_page_too_early(patch: pytest.MonkeyPatch) -> None:
    first_seen = PageGroup.first_seen
    patch.setattr(PageGroup, "first_seen", lambda group, position: first_seen(group, position + 4))


def takes_nothing_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("kvist.cache.manager.take_back", lambda ledgers, table, length: length)


@pytest.mark.parametrize(
    "sabotage",
    [
        lets_go_a_page_too_early,
        takes_nothing_back,
        no_copy_on_write,
        copies_nothing,
        matches_one_token_too_many,
        ignores_the_salt,
        keeps_evicted_pages_in_the_index,
        releases_head_first,
        forgets_to_end_reservations,
    ],
)
def test_the_machine_notices(sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has teeth: each of these defects is found."""
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, InternalError, KeyError, IndexError)):
        run_state_machine_as_test(
            CacheMachine,
            settings=settings(
                max_examples=250,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=QUIET,
            ),
        )
