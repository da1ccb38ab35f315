"""A model that is a hash of what it is given to read, so that any wrong, stale or foreign page shows.

What a page holds of a position is one number, made from the token that was run there and its position; it lies in the
pool's own memory, so that copies are real copies. Logits of a position are a hash of all the numbers up to it, read
through the page ids that the step was told. They are thus a pure function of the tokens: the exactness contract, in
integers.

Layers with windows are groups of their own: of theirs a position reads only what its window sees.

It also refuses what no kernel could refuse: rows that are not where their positions are, pages that are written while
others read them or after they were sealed, and positions that are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.cache.group import PageGroup
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.manager import CacheManager
from kvist.cache.pool import PagePool
from kvist.cache.table import GONE
from kvist.engine.admission import EngineLimits
from kvist.engine.engine import Engine
from kvist.engine.runner import Runner
from kvist.engine.speculative.ngram import NgramProposer
from kvist.engine.speculative.speculator import Speculator
from kvist.events import EventChannel
from kvist.kernels.program import BatchMetadata, Floats, SequenceRows
from kvist.kernels.reference_choosing import ReferenceChooser

VOCAB = 48
EOS = 0
LONGEST = 512

_drawn = np.random.RandomState(20).randint(1, 1 << 62, (3, max(VOCAB, LONGEST))).astype(np.uint64)
TOKENS, PLACES, COLUMNS = (row | np.uint64(1) for row in _drawn)


class HashingModel:
    """An `Executable` over a manager's pool."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager
        self.rows: list[int] = []  # of each step
        self._likeliest: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def run(self, batch: BatchMetadata) -> Floats:
        size, manager = self._manager.layout.page_size, self._manager
        for g, ledger in enumerate(manager.ledgers):
            numbers = _numbers_of(ledger.pool)
            owners = {page: table for table in manager.tables for page in table.groups[g][table.computed // size :]}
            for one in batch.sequences:
                rows = slice(one.first, one.first + one.count)
                positions = batch.positions[rows]
                assert positions.tolist() == list(range(one.position, one.position + one.count)), "one is left out"
                pages, slots = batch.row_pages[g, rows], positions % size
                assert (pages == one.pages[g, positions // size]).all(), "a row is not where its position is"
                for page in set(pages.tolist()):
                    assert ledger.is_writable(page), f"page {page} is written while others may read it"
                    assert owners[page].groups[g] == one.pages[g].tolist(), f"page {page} is not the sequence's own"
                numbers[pages, slots] = TOKENS[batch.tokens[rows]] * PLACES[positions]
        self.rows.append(len(batch.tokens))
        found = [self._logits(one, batch.sampled_rows) for one in batch.sequences]
        logits: Floats = np.concatenate(found) if found else np.empty((0, VOCAB), np.float32)
        assert len(logits) == len(batch.sampled_rows)
        self._likeliest = logits.argmax(1) if len(logits) else np.empty(0, np.int64)
        return logits

    @property
    def chooser(self) -> ReferenceChooser:
        return ReferenceChooser()

    def likeliest(self) -> npt.NDArray[np.int64]:
        return self._likeliest

    def _logits(self, one: SequenceRows, sampled: npt.NDArray[np.int32]) -> Floats:
        size, first, end = self._manager.layout.page_size, one.first, one.position + one.count
        wanted = sampled[(sampled >= first) & (sampled < first + one.count)] - first + one.position
        seen = np.zeros(len(wanted), np.uint64)
        for ledger, pages in zip(self._manager.ledgers, one.pages, strict=True):
            numbers = _numbers_of(ledger.pool)
            begin = ledger.group.first_seen(one.position)
            assert (pages[begin : -(-end // size)] != GONE).all(), "a page that is read was let go of"
            read = np.where(
                pages[: -(-end // size), None] == GONE, np.uint64(0), numbers[pages[: -(-end // size)], :size]
            )
            read = read.reshape(-1)[:end]
            mixed = (read ^ (read >> np.uint64(29))) * PLACES[::-1][:end]  # each at its place: order counts
            sums = np.concatenate([[np.uint64(0)], np.cumsum(mixed, dtype=np.uint64)])
            oldest = np.maximum(wanted + 1 - (ledger.group.window or end), 0)
            seen = seen * COLUMNS[-1] + sums[wanted + 1] - sums[oldest]
        hashed = (seen[:, None] ^ (seen[:, None] >> np.uint64(31))) * COLUMNS[None, :VOCAB]
        return ((hashed >> np.uint64(44)).astype(np.float32) / np.float32(1 << 17)).astype(np.float32)  # 0 to 8


def _numbers_of(pool: PagePool) -> npt.NDArray[np.uint64]:
    """View what the pages hold, uint64 [page][...]; the first page_size of each are used. The only layer has one head."""
    return pool.heads(0).view(np.uint64).reshape(pool.layout.extents(pool.num_pages) * pool.layout.extent_pages, -1)


def hashing_engine(
    pages: int,
    *,
    windows: Sequence[int] = (),
    page_size: int = 16,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    enable_prefix_caching: bool = True,
    drafts: int = 0,
    **options: float,
) -> Engine:
    """An engine over such a model, with the real scheduler and manager.

    windows: of further groups of layers. They have as few pages as can be: what one sequence needs in a step.
    """
    layout = PageLayout((LayerSpec(1, 16),), page_size, codec("f32"))
    fewest = [min(pages, layout.pages_for(window + max_num_batched_tokens) + 1) for window in windows]
    others = [PageGroup(layout, count, window) for window, count in zip(windows, fewest, strict=True)]
    manager = CacheManager(
        [PageGroup(layout, pages), *others],
        identity=b"hash",
        enable_prefix_caching=enable_prefix_caching,
        **options,  # type: ignore[arg-type]
    )
    limits = EngineLimits(
        VOCAB, min(LONGEST, pages * page_size), max_num_seqs, max_num_batched_tokens, frozenset([EOS])
    )
    speculation = Speculator(NgramProposer(3, 1), drafts, adaptive=False) if drafts else None
    return Engine(Runner(HashingModel(manager), manager), manager, limits, EventChannel(), speculation)
