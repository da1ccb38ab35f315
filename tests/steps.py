"""Run a loaded model over a small cache, step by step, without an engine: logits of positions, greedy tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvist.cache.codec import codec
from kvist.cache.group import page_groups
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.manager import CacheManager
from kvist.engine.batch import Piece
from kvist.engine.runner import Runner
from kvist.kernels.program import Backend, Limits
from kvist.models.decoder import build_program
from kvist.models.load import Model
from kvist.models.rotary import local_rotary_tables, rotary_tables

Logits = npt.NDArray[np.float32]


@contextmanager
def runner(
    model: Model, backend: Backend, kv: str = "f32", page_size: int = 16, positions: int = 256
) -> Iterator[tuple[Runner, CacheManager]]:
    """A runner with pages for `positions` tokens of one sequence (and one page to spare)."""
    config = model.config
    rotary = rotary_tables(config, min(positions, config.max_positions), model.rope_divisors)
    local = local_rotary_tables(config, min(positions, config.max_positions))
    program = build_program(config, model.matrices, model.vectors, rotary, local)
    layers = tuple(LayerSpec(config.num_kv_heads, config.stored_head_dim) for _ in range(config.num_layers))
    layout = PageLayout(layers, page_size, codec(kv))
    windows = [config.window(layer) for layer in range(config.num_layers)]
    pages = layout.pages_for(positions) + 1
    manager = CacheManager([replace(g, num_pages=pages) for g in page_groups(layout, windows)], identity=b"test")
    try:
        yield (
            Runner(
                backend.bind(program, [ledger.pool for ledger in manager.ledgers], Limits(positions, positions, 8)),
                manager,
            ),
            manager,
        )
    finally:
        manager.close()


def logits_of(
    model: Model, backend: Backend, tokens: Sequence[int], chunk: int | None = None, kv: str = "f32"
) -> Logits:
    """Logits of every position of `tokens`, computed `chunk` at a time (None: all at once), through fresh pages."""
    with runner(model, backend, kv, positions=len(tokens)) as (run, manager):
        table, rows = manager.open(), []
        chunk = chunk or len(tokens)
        for start in range(0, len(tokens), chunk):
            piece = list(tokens[start : start + chunk])
            assert manager.reserve(table, len(piece))
            rows.append(run.forward([Piece(table, piece, start, "all")]).copy())
        manager.release(table)
        return np.concatenate(rows)


def greedy(model: Model, backend: Backend, prompt: Sequence[int], count: int, kv: str = "f32") -> list[int]:
    """The `count` likeliest next tokens after `prompt`, one by one through the cache."""
    with runner(model, backend, kv, positions=len(prompt) + count) as (run, manager):
        table, tokens, new = manager.open(), list(prompt), list(prompt)
        for _ in range(count):
            assert manager.reserve(table, len(new))
            logits = run.forward([Piece(table, new, table.computed, "last")])
            new = [int(np.argmax(logits[0]))]
            tokens += new
        manager.release(table)
        return tokens[len(prompt) :]
