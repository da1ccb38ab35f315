"""The mean key of each layer: what a file of codecs takes from all keys of a layer, so that less is left to round.

Softmax does not mind what is taken from all keys alike. Keys have a mean that is much of what they are, but a rotary
embedding turns it with the position: pairs that turn fast have none, slow ones nearly all of it. So keys are turned
back, their mean taken, and that one turned by what all positions of a text would turn it, on average::

    key at p = turn(p) k      mean before turning = mean of turn(-p) key      mean key = mean of turn(0..n-1) of that

The longer the texts, the fewer pairs keep theirs: `POSITIONS` is in the middle of what is usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvist.cache.pool import floats_of
from kvist.eval.force import Reading
from kvist.eval.method import Method
from kvist.eval.text import Document
from kvist.kernels.program import Floats, Rotary
from kvist.layers import takes_means
from kvist.llm import LLM
from kvist.models.rotary import local_rotary_tables, rotary_tables

Doubles = npt.NDArray[np.float64]

POSITIONS = 4096
"""Of the texts that a mean is made for."""

SKIPPED = 4
"""Positions at the beginning whose keys are like no others (Xiao et al. 2024)."""


def key_means(llm: LLM, layers: Sequence[int], texts: Sequence[Document]) -> dict[int, Floats]:
    """The mean key of layers, float32 (KV heads x stored head size,), over full pages of some texts.

    None of a model that takes none, or where no text fills a page.
    """
    config = llm.model.config
    if not takes_means(config):
        return {}
    totals, count = _totals(llm, _tables(llm, layers, max(text.positions for text in texts)), texts)
    if not count:
        return {}
    positions = min(POSITIONS, config.max_positions)
    tables = _tables(llm, layers, positions)
    return {
        layer: turned(total / count, tables[layer], positions).reshape(-1).astype(np.float32)
        for layer, total in totals.items()
    }


def _tables(llm: LLM, layers: Sequence[int], positions: int) -> dict[int, Rotary | None]:
    """The angles of layers in an engine for so many positions: some embeddings go by their number."""
    config = llm.model.config
    plain, local = rotary_tables(config, positions, llm.model.rope_divisors), local_rotary_tables(config, positions)
    return {layer: plain if local is None or config.window(layer) is None else local for layer in layers}


def turned(mean: Doubles, rotary: Rotary | None, positions: int) -> Doubles:
    """What a key (..., head size) is on average, if it is turned by each of so many positions."""
    if rotary is None:
        return mean
    cos, sin = (table[:positions].mean(0, dtype=np.float64) for table in (rotary.cos, rotary.sin))
    return _turn(mean, cos, sin)


def turned_back(keys: Floats, rotary: Rotary | None, first: int) -> Doubles:
    """Keys (positions, head size) from position `first` on as they were before they were turned."""
    if rotary is None:
        return keys.astype(np.float64)
    cos, sin = (table[first : first + len(keys)].astype(np.float64) for table in (rotary.cos, rotary.sin))
    size = cos * cos + sin * sin  # 1, but for embeddings that make keys longer
    return _turn(keys.astype(np.float64), cos / size, -sin / size)


def _turn(x: Doubles, cos: Doubles, sin: Doubles) -> Doubles:
    half, out = cos.shape[-1], x.copy()
    a, b = x[..., :half], x[..., half : 2 * half]
    out[..., :half], out[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
    return out


def _totals(
    llm: LLM, own: Mapping[int, Rotary | None], texts: Sequence[Document]
) -> tuple[dict[int, Doubles], int]:  # fmt: skip
    """The sum of each layer's keys (KV heads, head size), turned back, over full pages of the texts; of how many."""
    config, size = llm.model.config, llm.config.page_size
    totals = {layer: np.zeros((config.num_kv_heads, config.stored_head_dim)) for layer in own}
    sizes = {"max_num_seqs": size, "max_num_batched_tokens": size, "enable_prefix_caching": False}
    count, longest = 0, max(text.positions for text in texts)
    with Method(llm.model.float_type).engine(llm, **sizes, max_model_len=longest) as engine:
        pools = [ledger.pool for ledger in engine.manager.ledgers]
        for text in texts:
            reading = Reading(engine, [text])
            for first in range(0, text.positions // size * size, size):
                reading.run([0], first, first + size)
                (table,) = engine.manager.tables
                for layer, rotary in own.items():
                    group, pool = floats_of(pools, layer)
                    for head, total in enumerate(totals[layer]):
                        keys = pool.read(table.groups[group][first // size], layer, head)[0]
                        total += turned_back(keys, rotary, first)[SKIPPED if first == 0 else 0 :].sum(0)
                count += size - (SKIPPED if first == 0 else 0)
            reading.close(0)
    return totals, count
