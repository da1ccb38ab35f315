"""A model that is a hash of what it is given to read, so that any wrong, stale or foreign page shows.

What a page holds of a position is one number, made from the token that was run there and its position; it lies in the
pool's own memory, so that copies are real copies. Logits of a position are a hash of all the numbers up to it, read
through the page ids that the step was told. They are thus a pure function of the tokens: the exactness contract, in
integers.

It also refuses what no kernel could refuse: rows that are not where their positions are, pages that are written while
others read them or after they were sealed, and positions that are left out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.manager import CacheManager
from kvist.engine.admission import EngineLimits
from kvist.engine.engine import Engine
from kvist.engine.runner import Runner
from kvist.engine.speculative.ngram import NgramProposer
from kvist.engine.speculative.speculator import Speculator
from kvist.events import EventChannel
from kvist.kernels.program import BatchMetadata, Floats
from kvist.kernels.reference_choosing import ReferenceChooser

VOCAB = 48
EOS = 0
LONGEST = 512

_numbers = np.random.RandomState(20).randint(1, 1 << 62, (3, max(VOCAB, LONGEST))).astype(np.uint64)
TOKENS, PLACES, COLUMNS = (row | np.uint64(1) for row in _numbers)


class HashingModel:
    """An `Executable` over a manager's pool."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager
        self.rows: list[int] = []  # of each step
        self._likeliest: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def run(self, batch: BatchMetadata) -> Floats:
        size, manager = self._manager.layout.page_size, self._manager
        numbers = manager.pool.data.view(np.uint64)  # [page][the first `size` of them are used]
        owners = {page: table for table in manager.tables for page in table.pages[table.computed // size :]}
        for one in batch.sequences:
            rows = slice(one.first, one.first + one.count)
            positions = batch.positions[rows]
            assert positions.tolist() == list(range(one.position, one.position + one.count)), "positions are left out"
            pages, slots = batch.row_pages[rows], positions % size
            assert (pages == one.pages[positions // size]).all(), "a row is not where its position is"
            for page in set(pages.tolist()):
                assert manager.ledger.is_writable(page), f"page {page} is written while others may read it"
                assert owners[page].pages == one.pages.tolist(), f"page {page} is not the sequence's own"
            numbers[pages, slots] = TOKENS[batch.tokens[rows]] * PLACES[positions]
        self.rows.append(len(batch.tokens))
        found = [self._logits(numbers, one, batch.sampled_rows) for one in batch.sequences]
        logits: Floats = np.concatenate(found) if found else np.empty((0, VOCAB), np.float32)
        assert len(logits) == len(batch.sampled_rows)
        self._likeliest = logits.argmax(1) if len(logits) else np.empty(0, np.int64)
        return logits

    @property
    def chooser(self) -> ReferenceChooser:
        return ReferenceChooser()

    def likeliest(self) -> npt.NDArray[np.int64]:
        return self._likeliest

    def _logits(self, numbers: npt.NDArray[np.uint64], one: object, sampled: npt.NDArray[np.int32]) -> Floats:
        size, first, count = self._manager.layout.page_size, one.first, one.count  # type: ignore[attr-defined]
        end = one.position + count  # type: ignore[attr-defined]
        read = numbers[one.pages[: -(-end // size)], :size].reshape(-1)[:end]  # type: ignore[attr-defined]
        mixed = (read ^ (read >> np.uint64(29))) * PLACES[::-1][:end]  # each at its place: order counts
        sums = np.cumsum(mixed, dtype=np.uint64)
        wanted = sampled[(sampled >= first) & (sampled < first + count)] - first + one.position  # type: ignore[attr-defined]
        hashed = (sums[wanted][:, None] ^ (sums[wanted][:, None] >> np.uint64(31))) * COLUMNS[None, :VOCAB]
        return ((hashed >> np.uint64(44)).astype(np.float32) / np.float32(1 << 17)).astype(np.float32)  # 0 to 8


def hashing_engine(
    pages: int,
    *,
    page_size: int = 16,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    enable_prefix_caching: bool = True,
    drafts: int = 0,
    **options: float,
) -> Engine:
    """An engine over such a model, with the real scheduler and manager."""
    layout = PageLayout((LayerSpec(1, 16),), page_size, codec("f32"))
    manager = CacheManager(
        layout,
        pages,
        identity=b"hash",
        enable_prefix_caching=enable_prefix_caching,
        **options,  # type: ignore[arg-type]
    )
    limits = EngineLimits(
        VOCAB, min(LONGEST, pages * page_size), max_num_seqs, max_num_batched_tokens, frozenset([EOS])
    )
    speculation = Speculator(NgramProposer(3, 1), drafts, adaptive=False) if drafts else None
    return Engine(Runner(HashingModel(manager), manager), manager, limits, EventChannel(), speculation)
