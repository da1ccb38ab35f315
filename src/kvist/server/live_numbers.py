"""`GET /live/kv`: K and V of the sequence that began last, as they lie in its pages, a column for a token."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request

from kvist.cache.pool import floats_of, sealed_of
from kvist.cache.table import GONE, PageTable
from kvist.engine.checks import salt_bytes
from kvist.engine.sequence import Sequence
from kvist.llm import LLM
from kvist.server.failures import ApiError
from kvist.server.service import Service

PAGES = 4  # the last ones, the one that fills included


@dataclass(frozen=True, slots=True)
class Columns:
    """K and V of some positions of one head, float32 [positions][head_dim], and the tokens that stand there."""

    request: str
    index: int
    start: int
    tokens: list[int]
    k: NDArray[np.float32]
    v: NDArray[np.float32]


def routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)

    @router.get("/live/kv")
    async def kv(request: Request, layer: int = 0, head: int = 0) -> dict[str, Any]:
        """{"columns": null} where no sequence of the caller's runs."""
        config, salt = service.llm.model.config, salt_bytes(service.salt(request, None))
        if not (0 <= layer < config.num_layers and 0 <= head < config.num_kv_heads):
            raise ApiError(404, "there is no such layer or head")
        columns: Columns | None = await service.worker.call(lambda llm: newest(llm, salt, layer, head))
        return {"columns": None if columns is None else _json(service.llm, columns)}

    return router


def newest(llm: LLM, salt: bytes, layer: int, head: int) -> Columns | None:
    """The last columns of the sequence under a salt that began last; None if there is none."""
    manager = llm.engine.manager
    pools = [ledger.pool for ledger in manager.ledgers]
    running = [s for s in llm.engine.scheduler.running if s.salt == salt and s.table is not None and s.computed]
    if not running:
        return None
    sequence: Sequence = max(running, key=lambda s: (s.turn[1], -s.index))
    table = sequence.table
    assert table is not None
    size = manager.layout.page_size
    first = max(manager.layout.pages_for(table.computed) - PAGES, 0)
    parts = []
    for at in range(first, manager.layout.pages_for(table.computed)):
        slots = slice(0, min(size, table.computed - at * size))
        number, pool = _place(pools, layer, table, at, slots.stop == size)
        page = table.groups[number][at]
        dims = pool.layout.spec(layer).head_dim
        blank = np.zeros((slots.stop, dims), np.float32)
        parts.append((blank, blank) if page == GONE else pool.read(page, layer, head, slots))
    k, v = (np.concatenate(side) for side in zip(*parts, strict=True))
    tokens = table.tokens[first * size :]
    return Columns(sequence.request_id, sequence.index, first * size + table.evicted, tokens, k, v)


def _place(pools: list[Any], layer: int, table: PageTable, at: int, full: bool) -> tuple[int, Any]:
    """The pool that a page of a layer is read from: of a packed one that is full where it was packed to."""
    sealed = sealed_of(pools, layer)
    if full and sealed is not None and table.groups[sealed[0]][at] != GONE:
        return sealed
    return floats_of(pools, layer)


def _json(llm: LLM, columns: Columns) -> dict[str, Any]:
    dims = llm.model.config.head_dim  # the stored ones may be padded with zeros
    texts = [llm.tokenizer.decode([i], skip_special=False, continues=True) if i >= 0 else "" for i in columns.tokens]
    return {
        "request": columns.request, "index": columns.index, "start": columns.start, "tokens": texts, "dims": dims,
        "k": _bytes(columns.k[:, :dims]), "v": _bytes(columns.v[:, :dims]),
    }  # fmt: skip


def _bytes(numbers: NDArray[np.float32]) -> dict[str, Any]:
    """Numbers as int8 of a scale, which all but the largest hundredth fit."""
    scale = float(np.quantile(np.abs(numbers), 0.99)) or 1.0
    whole = np.clip(numbers * (127 / scale), -127, 127).astype(np.int8)
    return {"scale": scale, "data": b64encode(whole.tobytes()).decode()}
