"""Logits of tokens that may not follow become minus infinity, in a copy of the row."""

from __future__ import annotations

import numpy as np

from kvist.engine.guide import Bits
from kvist.kernels.choosing import Changes, Floats


def masked(logits: Floats, mask: Bits, changes: Changes | None) -> tuple[Floats, Changes | None]:
    """The row (vocab,) with what may follow, and its changes.

    Ends that are held back are not where nothing else may follow: the guide goes before min_tokens.
    """
    allowed = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little").view(bool)
    out = np.full_like(logits, -np.inf)
    np.copyto(out, logits, where=allowed)
    if changes is not None and changes.held:
        allowed[changes.ids[: changes.held]] = False
        if not allowed.any():
            ids, values = changes.ids[changes.held :], changes.values[changes.held :]
            changes = changes._replace(ids=ids, values=values, held=0)
    return out, changes
