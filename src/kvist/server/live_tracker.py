"""What there is to tell about the engine: a snapshot, and from then on what has changed since it was asked last.

All of it runs in the engine's thread, between two steps, so that one telling is one moment. Events say which pages were
allocated, shared, sealed, evicted, freed and hit. That an owner let go of a page is no event: it is seen by comparing
the page tables with those of the last time.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from kvist.cache.ledger import PageLedger
from kvist.cache.table import GONE, PageTable
from kvist.engine.sequence import Sequence
from kvist.events import EventKind
from kvist.llm import LLM
from kvist.server.history import Record, RequestHistory

CAPACITY = 1 << 15  # events between two tellings; with more, everything is told anew
MOST_OWNERS, SEALED = 127, 128  # a page as a byte: its owners, and whether it is published
CHANGES = 20_000  # pages that a telling lists; with more, everything is told anew

_PAGES = frozenset(
    {
        EventKind.PAGE_ALLOCATED, EventKind.PAGE_SHARED, EventKind.PAGE_SEALED, EventKind.PAGE_EVICTED,
        EventKind.PAGE_FREED,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Telling:
    """What is told at one time. Sequences and requests with their salt: who sees which is not decided here."""

    body: dict[str, Any]
    sequences: list[tuple[bytes, dict[str, Any]]]
    requests: list[Record]


@dataclass(slots=True)
class _Known:
    """What viewers know of a sequence."""

    number: int
    told: tuple[Any, ...] = ()
    pages: list[list[int]] = field(default_factory=list)


class Tracker:
    """Listens from when it is made until `close`, for one or many viewers who are told the same."""

    def __init__(self, llm: LLM, history: RequestHistory, name: str) -> None:
        self._llm, self._history, self._name = llm, history, name
        self._ledgers = llm.engine.manager.ledgers
        self._events = llm.events.subscribe(CAPACITY)
        self._numbers = count(1)
        self._known: dict[Sequence, _Known] = {}
        self._tables: dict[PageTable, list[list[int]]] = {}
        self._pinned: list[dict[bytes, int]] = [{} for _ in self._ledgers]
        self._tokens = self._dropped = self._noted = 0

    def close(self) -> None:
        """Stop listening; from any thread."""
        self._events.close()

    def tell(self, *, whole: bool) -> tuple[Telling | None, Telling | None]:
        """What has changed (None: nothing, or too much), and where asked for, or needed, how everything stands."""
        changes = self._changes()
        lost = self._events.dropped != self._dropped
        self._dropped = self._events.dropped
        if changes is None or lost:
            return None, self._snapshot()
        delta = changes if changes.body["news"] else None
        return delta, self._snapshot() if whole else None

    def number(self, sequence: Sequence) -> int:
        """What a sequence is called in tellings; 0 before it was told."""
        known = self._known.get(sequence)
        return 0 if known is None else known.number

    # -- everything --------------------------------------------------------------------------------------------------

    def _snapshot(self) -> Telling:
        body = {
            "type": "snapshot",
            **self._standing(),
            "model": self._model(),
            "pages": [_states(ledger) for ledger in self._ledgers],
        }
        sequences = [(s.salt, self._sequence(s, known, True)) for s, known in self._known.items()]
        return Telling(body, sequences, self._history.since(0))

    def _model(self) -> dict[str, Any]:
        llm, manager = self._llm, self._llm.engine.manager
        config, limits = llm.model.config, llm.engine.limits
        return {
            "name": self._name, "layers": config.num_layers, "heads": config.num_heads,
            "kv_heads": config.num_kv_heads, "head_dim": config.head_dim, "max_model_len": limits.max_model_len,
            "max_num_seqs": limits.max_num_seqs, "page_size": manager.layout.page_size,
            "bytes_per_token": manager.bytes_per_token, "kv_cache_dtype": limits.kv_cache_dtype,
            "policy": limits.policy, "prefix_caching": manager.enable_prefix_caching,
        }  # fmt: skip

    def _standing(self) -> dict[str, Any]:
        manager = self._llm.engine.manager
        pools, counts = manager.stats().pools, manager.counters
        return {
            "time": time.monotonic(),
            "pools": [
                {
                    "total": pool.total, "free": pool.free, "cached": pool.cached, "live": pool.live,
                    "pinned": pool.pinned, "wasted": pool.wasted_slots, "page_bytes": pool.page_bytes,
                    "window": pool.window, "exact": group.exact,
                }
                for pool, group in zip(pools, manager.groups, strict=True)
            ],
            "touched": [ledger.allocator.touched for ledger in self._ledgers],
            "counters": {
                "queries": counts.prefix_queries, "hits": counts.prefix_hits, "tokens": self._tokens,
                "evicted": counts.pages_evicted, "copied": counts.pages_copied, "shared": counts.pages_shared,
            },
        }  # fmt: skip

    # -- what has changed --------------------------------------------------------------------------------------------

    def _changes(self) -> Telling | None:
        """All that is new; None if it is too much to list. Takes note of it, so it must be called for snapshots too."""
        dirty: list[dict[int, None]] = [{} for _ in self._ledgers]
        evicted: list[list[int]] = [[] for _ in self._ledgers]
        found = self._drain(dirty, evicted)
        hits = self._compare_tables(dirty, found)
        self._compare_pins(dirty)
        gone, told = self._compare_sequences()
        records = self._history.since(self._noted)
        self._noted = self._history.count
        if sum(map(len, dirty)) > CHANGES:
            return None
        pages = [_bytes(ledger, changed) for ledger, changed in zip(self._ledgers, dirty, strict=True)]
        body = {
            "type": "delta", **self._standing(), "pages": pages, "hits": hits, "gone": gone,
            "evicted": [[number, listed] for number, listed in enumerate(evicted) if listed],
            "news": bool(any(pages) or hits or gone or told or records),
        }  # fmt: skip
        return Telling(body, told, records)

    def _drain(self, dirty: list[dict[int, None]], evicted: list[list[int]]) -> dict[str, int]:
        """Note which pages events name; how many tokens each request found."""
        found: dict[str, int] = {}
        for event in self._events.drain():
            if event.kind in _PAGES:
                assert event.page is not None
                dirty[event.group][event.page] = None
                if event.kind is EventKind.PAGE_EVICTED:
                    evicted[event.group].append(event.page)
                elif isinstance(event.detail, int):
                    dirty[event.group][event.detail] = None  # what was copied was used
            elif event.kind is EventKind.REQUEST_TOKEN:
                self._tokens += 1
            elif event.kind is EventKind.PAGE_HIT and event.request is not None:
                found[event.request] = event.count
        return found

    def _compare_tables(self, dirty: list[dict[int, None]], found: dict[str, int]) -> list[list[Any]]:
        """Note which pages came to tables, or were let go of; the pages that requests found, group by group."""
        tables = self._llm.engine.manager.tables
        hits: list[list[Any]] = []
        for table in [table for table in self._tables if table not in tables]:
            for number, pages in enumerate(self._tables.pop(table)):
                dirty[number].update((page, None) for page in reversed(pages) if page != GONE)
        for table in tables:
            before = self._tables.get(table) or [[] for _ in table.groups]
            for number, pages in enumerate(table.groups):
                if pages != before[number]:
                    changed = set(pages) ^ set(before[number])
                    dirty[number].update((page, None) for page in pages if page in changed and page != GONE)
                    dirty[number].update((page, None) for page in before[number] if page in changed and page != GONE)
                    before[number] = list(pages)
            self._tables[table] = before
            if table.request in found:
                count = -(-found[table.request] // self._ledgers[0].group.layout.page_size)
                hits += ([n, [p for p in pages[:count] if p != GONE]] for n, pages in enumerate(table.groups))
        return hits

    def _compare_pins(self, dirty: list[dict[int, None]]) -> None:
        for number, held in enumerate(self._llm.engine.manager.pins.held):
            if held != self._pinned[number]:
                changed = held.keys() ^ self._pinned[number].keys()
                both = {**self._pinned[number], **held}
                dirty[number].update((both[key], None) for key in changed)
                self._pinned[number] = dict(held)

    def _compare_sequences(self) -> tuple[list[int], list[tuple[bytes, dict[str, Any]]]]:
        """The sequences that left, and those that are new or have changed."""
        scheduler = self._llm.engine.scheduler
        present = [*scheduler.running, *scheduler.waiting]
        here = set(present)
        gone = [self._known.pop(s).number for s in list(self._known) if s not in here]
        told = []
        for sequence in present:
            known = self._known.get(sequence)
            if known is None:
                known = self._known[sequence] = _Known(next(self._numbers))
            if (change := self._sequence(sequence, known, False)) is not None:
                told.append((sequence.salt, change))
        return gone, told

    def _sequence(self, sequence: Sequence, known: _Known, whole: bool) -> Any:
        """A sequence as it stands, of its pages only those that viewers do not know; None if they know all."""
        groups = [] if sequence.table is None else sequence.table.groups
        stands = (
            sequence.table is not None, sequence.generated, sequence.computed, tuple(map(len, groups)),
        )  # fmt: skip
        pages = known.pages if whole else [list(pages) for pages in groups]
        if not whole and stands == known.told and pages == known.pages:
            return None
        parts = [_part([] if whole or i >= len(known.pages) else known.pages[i], now) for i, now in enumerate(pages)]
        known.told, known.pages = stands, pages
        return {
            "id": known.number, "request": sequence.request_id, "index": sequence.index,
            "state": "waiting" if sequence.table is None else "running", "prompt": sequence.prompt_length,
            "generated": sequence.generated, "limit": sequence.limit, "computed": sequence.computed,
            "slots": 0 if sequence.table is None else sequence.table.computed, "pages": parts,
        }  # fmt: skip


def _part(before: list[int], now: list[int]) -> list[Any]:
    """[from, pages from there on]: what has to be told to who knows `before`."""
    same = len(before) if now[: len(before)] == before else 0
    return [same, now[same:]]


def _states(ledger: PageLedger) -> dict[str, Any]:
    """All pages that were ever used, as bytes, and the cached ones, the next to be evicted first."""
    touched = ledger.allocator.touched
    owners = np.minimum(np.array(ledger.allocator.refs[:touched], np.int64), MOST_OWNERS).astype(np.uint8)
    sealed = np.fromiter(ledger.index.pages, np.int64, len(ledger.index.pages))
    owners[sealed] |= SEALED
    order = np.array(ledger.allocator.eviction_order(), "<u4")
    return {
        "touched": touched,
        "states": b64encode(owners.tobytes()).decode(),
        "order": b64encode(order.tobytes()).decode(),
    }


def _bytes(ledger: PageLedger, pages: Iterable[int]) -> list[int]:
    """Page, byte, page, byte, ... in the order in which they changed."""
    refs, index = ledger.allocator.refs, ledger.index
    told: list[int] = []
    for page in pages:
        told += page, min(refs[page], MOST_OWNERS) | (SEALED if page in index else 0)
    return told
