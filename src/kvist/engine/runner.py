"""The runner: one forward pass over pieces of sequences, after which the cache has advanced.

Nobody else advances it.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvist.cache.manager import CacheManager
from kvist.engine.batch import Piece, build_batch
from kvist.errors import CapacityError
from kvist.kernels.program import Executable, Floats


class Runner:
    """Runs steps over a manager's pages."""

    def __init__(self, executable: Executable, manager: CacheManager) -> None:
        self._executable, self._manager = executable, manager
        self.kv_projections = 0  # positions whose K and V were projected, since the start

    def forward(self, pieces: Sequence[Piece]) -> Floats:
        """Run the pieces; float32 logits (wanted rows, vocab) in order, valid until the next call.

        The pieces' pages must be reserved. Positions that were not computed before are committed.
        """
        again = any(piece.start < piece.table.computed for piece in pieces)
        scrap = self._manager.open() if again else None
        try:
            if scrap is not None and not self._manager.reserve(scrap, 1):
                raise CapacityError(
                    "no page is left to run computed tokens again: raise kv_cache_memory_bytes by one page"
                )
            batch = build_batch(pieces, self._manager.layout.page_size, scrap.pages[0] if scrap else 0)
            logits = self._executable.run(batch)
            for piece in pieces:
                self.kv_projections += len(piece.tokens)
                fresh = piece.tokens[max(0, piece.table.computed - piece.start) :]
                if fresh:
                    self._manager.commit(piece.table, fresh)
            return logits
        finally:
            if scrap is not None:
                self._manager.release(scrap)
