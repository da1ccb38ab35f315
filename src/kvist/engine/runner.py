"""The runner: one forward pass over pieces of sequences, after which the cache has advanced; over drafts, once they
are accepted. Nobody else advances it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.cache.manager import CacheManager
from kvist.cache.table import PageTable
from kvist.engine.batch import Piece, build_batch
from kvist.errors import CapacityError
from kvist.kernels.program import Executable, Floats


class Runner:
    """Runs steps over a manager's pages."""

    def __init__(self, executable: Executable, manager: CacheManager) -> None:
        self._executable, self._manager = executable, manager
        self.kv_projections = 0  # positions whose K and V were projected, since the start

    @property
    def executable(self) -> Executable:
        """What runs the steps."""
        return self._executable

    def forward(self, pieces: Sequence[Piece], scrap: PageTable | None = None) -> Floats:
        """Run the pieces; float32 logits (wanted rows, vocab) in order, valid until the next call.

        The pieces' pages must be reserved. Positions that were not computed before are committed, but for drafts.
        scrap: a table whose first page may be written where positions are run again (None: a page is taken for it).
        """
        again = any(piece.start < piece.table.positions for piece in pieces)
        taken = self._manager.open() if again and scrap is None else None
        try:
            if taken is not None and not self._manager.reserve(taken, 1):
                raise CapacityError(
                    "no page is left to run computed tokens again: raise kv_cache_memory_bytes by one page"
                )
            scrap = scrap or taken
            pages = [ids[0] for ids in scrap.groups] if scrap else [0] * len(self._manager.groups)
            batch = build_batch(pieces, self._manager.layout.page_size, pages)
            logits = self._executable.run(batch)
            for piece in pieces:
                self.kv_projections += len(piece.tokens)
                fresh = piece.tokens[max(0, piece.table.positions - piece.start) : len(piece.tokens) - piece.drafts]
                if fresh:
                    self._manager.commit(piece.table, fresh)
            return logits
        finally:
            if taken is not None:
                self._manager.release(taken)

    def likeliest(self) -> npt.NDArray[np.int64]:
        """Of each row of logits that `forward` gave last the largest, -1 where it is not known."""
        return self._executable.likeliest()

    def accept(self, table: PageTable, drafts: Sequence[int], count: int) -> None:
        """Commit the first `count` of the drafts that were run behind a table's computed tokens.

        The others were wrong: nothing of them stays, and pages that were reserved for them alone are let go.
        """
        if count:
            self._manager.commit(table, drafts[:count])
        if count < len(drafts):
            self._manager.rollback(table, table.computed)
