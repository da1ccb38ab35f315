"""`GET /live/page/...` and `GET /live/tree`: what is in the pages, for who asked for it.

Texts are given of pages under the caller's own plain salt only: a page counts as the caller's when the keys before it
lead to that salt's root.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from kvist.cache.ledger import PageLedger
from kvist.cache.manager import CacheManager
from kvist.cache.prefix import TOKEN_BYTES
from kvist.cache.table import ENTRY
from kvist.engine.checks import salt_bytes
from kvist.llm import LLM
from kvist.server.failures import ApiError
from kvist.server.live_tree import Cut, cut, grown
from kvist.server.service import Service
from kvist.text.tokenizer import Tokenizer


def routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)

    @router.get("/live/page/{group}/{page}")
    async def page(request: Request, group: int, page: int) -> dict[str, Any]:
        salt = salt_bytes(service.salt(request, None))
        return await service.worker.call(lambda llm: page_json(llm, salt, group, page))

    @router.get("/live/tree")
    async def tree(request: Request) -> dict[str, Any]:
        salt = salt_bytes(service.salt(request, None))
        taken: Cut = await service.worker.call(lambda llm: cut(llm, salt))
        broken = [record for record in service.worker.history.since(0) if record.salt == salt and record.broke]
        return await asyncio.to_thread(grown, taken, broken, service.llm.tokenizer)

    return router


def page_json(llm: LLM, salt: bytes, group: int, page: int) -> dict[str, Any]:
    """How a page stands, and its text if it is under this salt. `tokens` is None if it is another's, or nobody's."""
    manager = llm.engine.manager
    if not 0 <= group < len(manager.ledgers) or not 0 <= page < manager.ledgers[group].allocator.total:
        raise ApiError(404, "there is no such page")
    ledger = manager.ledgers[group]
    owners, node = ledger.allocator.refs[page], ledger.index.pages.get(page)
    found = _sealed(manager, ledger, salt, page) or _live(manager, group, salt, page)
    told: dict[str, Any] = {
        "group": group, "page": page, "owners": owners, "sealed": node is not None,
        "pinned": node is not None and node.key in manager.pins.held[group],
        "state": "live" if owners else "cached" if node is not None else "free",
        "start": None, "key": None, "tokens": None,
    }  # fmt: skip
    if found is not None:
        start, ids = found
        told |= {"start": start, "tokens": token_texts(llm.tokenizer, ids), "text": _text(llm.tokenizer, ids)}
        told["key"] = None if node is None else node.key.hex()
    return told


def token_texts(tokenizer: Tokenizer, ids: list[int]) -> list[dict[str, Any]]:
    """Each token with its own text; bytes that are no whole character become U+FFFD."""
    return [{"id": i, "text": _text(tokenizer, [i])} for i in ids]


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    known = [i for i in ids if i != ENTRY]
    return tokenizer.decode(known, skip_special=False, continues=True)


def _sealed(manager: CacheManager, ledger: PageLedger, salt: bytes, page: int) -> tuple[int, list[int]] | None:
    """Position and tokens of a published page, if the pages before it lead to this salt's root."""
    node = ledger.index.pages.get(page)
    if node is None:
        return None
    nodes, root, before = ledger.index.nodes, manager.root(salt), node
    while before.parent != root:
        if before.parent not in nodes:
            return None
        before = nodes[before.parent]
    start = node.depth * manager.layout.page_size
    packed = node.tokens
    return start, [
        int.from_bytes(packed[i : i + TOKEN_BYTES], "little", signed=True) for i in range(0, len(packed), TOKEN_BYTES)
    ]


def _live(manager: CacheManager, group: int, salt: bytes, page: int) -> tuple[int, list[int]] | None:
    """Position and tokens of a page that a table under this salt holds and has not filled."""
    size = manager.layout.page_size
    for table in manager.tables:
        if table.salt == salt and page in table.groups[group]:
            at = table.groups[group].index(page)
            return at * size + table.evicted, table.tokens[at * size : (at + 1) * size]
    return None
