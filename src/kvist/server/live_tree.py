"""The prefix tree as people can look at it: runs of pages without a branch are one twig, and only so many twigs.

::

    root ─── twig 0 (3 pages) ─┬─ twig 1 (1 page)
                               └─ twig 2 (5 pages) ─── a sequence that runs
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kvist.cache.prefix import TOKEN_BYTES, Node, common_tokens, content_key, pack
from kvist.llm import LLM
from kvist.server.history import Record
from kvist.text.tokenizer import Tokenizer

MOST_TWIGS = 2000
MOST_BREAKS = 32
LONGEST = 400  # characters of a twig's text
LIVE = 1 << 40  # later than anything that is cached


@dataclass(frozen=True, slots=True)
class Tip:
    """A sequence that runs: the key of its last full page, and its tokens behind that."""

    request: str
    index: int
    key: bytes
    rest: list[int]


@dataclass(frozen=True, slots=True)
class Cut:
    """What is read in the engine's thread, all at one moment. Nodes never change, so the rest is done elsewhere."""

    root: bytes
    nodes: dict[bytes, Node]
    owners: list[int]
    order: list[int]
    tips: list[Tip]
    page_size: int


def cut(llm: LLM, salt: bytes) -> Cut:
    """The published pages of the group that sees most, and what runs under a salt."""
    manager = llm.engine.manager
    ledger = manager.ledgers[0]
    tips = [
        Tip(s.request_id, s.index, s.table.keys[-1], s.tokens[len(s.table.keys) * size - size :])
        for size in (manager.layout.page_size,)
        for s in llm.engine.scheduler.running
        if s.salt == salt and s.table is not None and s.table.keys and s.table.kept is None
    ]
    nodes = ledger.index.nodes.copy()
    return Cut(manager.root(salt), nodes, list(ledger.allocator.refs), ledger.allocator.eviction_order(), tips,
               manager.layout.page_size)  # fmt: skip


@dataclass(slots=True)
class _Twig:
    """A run of pages. weight: pages in it and behind it; used: when the latest of these was used last."""

    pages: list[Node]
    parent: int | None
    weight: int
    used: int
    same: int = 0
    children: int = 0
    number: int = field(default=-1)


def grown(taken: Cut, broken: list[Record], tokenizer: Tokenizer) -> dict[str, Any]:
    """The tree under the root: the twigs that were used last first, parents always before their children."""
    children = _children(taken.nodes.values())
    weights, used = _measured(taken, children)
    twigs: list[_Twig] = []
    places: dict[bytes, tuple[int, int]] = {}  # a page's key -> its twig, and its place in it
    heap: list[tuple[int, int, bytes, int | None]] = []

    def push(parent_key: bytes, parent: int | None) -> None:
        for node in children.get(parent_key, ()):
            heapq.heappush(heap, (-used[node.key], -weights[node.key], node.key, parent))

    push(taken.root, None)
    while heap and len(twigs) < MOST_TWIGS:
        _, _, key, parent = heapq.heappop(heap)
        run = _run(taken.nodes[key], children)
        number = len(twigs)
        same = _same(run[0], children[run[0].parent])
        twigs.append(_Twig(run, parent, weights[key], used[key], same, len(children.get(run[-1].key, ())), number))
        places.update({node.key: (number, place) for place, node in enumerate(run)})
        push(run[-1].key, number)
    shown = sum(len(twig.pages) for twig in twigs)
    every = sum(weights[node.key] for node in children.get(taken.root, ()))
    return {
        "page_size": taken.page_size,
        "pages": every,
        "left_out": {"twigs": len(heap), "pages": every - shown},
        "twigs": [_twig_json(twig, taken, tokenizer) for twig in twigs],
        "tips": [_tip_json(tip, taken, places, tokenizer) for tip in taken.tips],
        "breaks": _breaks(taken, children, places, broken),
    }


def _children(nodes: Iterable[Node]) -> dict[bytes, list[Node]]:
    found: dict[bytes, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.parent, []).append(node)
    for family in found.values():
        family.sort(key=lambda node: node.tokens)
    return found


def _measured(taken: Cut, children: dict[bytes, list[Node]]) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Of each page under the root how many there are from it on, and when the latest of these was used."""
    when = {page: place for place, page in enumerate(taken.order)}
    weights: dict[bytes, int] = {}
    used: dict[bytes, int] = {}
    line = list(children.get(taken.root, ()))
    for node in line:  # grows: parents first
        line.extend(children.get(node.key, ()))
    for node in reversed(line):
        below = children.get(node.key, ())
        weights[node.key] = 1 + sum(weights[child.key] for child in below)
        own = LIVE if taken.owners[node.page] else when.get(node.page, 0)
        used[node.key] = max([own, *(used[child.key] for child in below)])
    return weights, used


def _run(node: Node, children: dict[bytes, list[Node]]) -> list[Node]:
    """A page and those behind it, up to where the tree branches or ends."""
    run = [node]
    while len(below := children.get(run[-1].key, [])) == 1:
        run.append(below[0])
    return run


def _same(node: Node, family: list[Node]) -> int:
    """Tokens that a page has in common with the one beside it that is most like it."""
    at = bisect_left(family, node.tokens, key=lambda other: other.tokens)
    beside = family[max(at - 1, 0) : at] + family[at + 1 : at + 2]
    return max((common_tokens(node.tokens, other.tokens) for other in beside), default=0)


def _tokens(node: Node) -> list[int]:
    data = node.tokens
    return [int.from_bytes(data[i : i + TOKEN_BYTES], "little", signed=True) for i in range(0, len(data), TOKEN_BYTES)]


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special=False, continues=True)


def _twig_json(twig: _Twig, taken: Cut, tokenizer: Tokenizer) -> dict[str, Any]:
    first = _tokens(twig.pages[0])
    same, rest = _text(tokenizer, first[: twig.same]), ""
    for place, node in enumerate(twig.pages):
        rest += _text(tokenizer, first[twig.same :] if not place else _tokens(node))
        if len(rest) > LONGEST:
            break
    owners = [taken.owners[node.page] for node in twig.pages]
    return {
        "id": twig.number, "key": twig.pages[0].key.hex()[:24], "parent": twig.parent,
        "same": same, "text": rest[:LONGEST], "cut": len(rest) > LONGEST,
        "pages": [node.page for node in twig.pages[:512]], "count": len(twig.pages), "live": sum(map(bool, owners)),
        "owners": max(owners), "weight": twig.weight, "children": twig.children, "depth": twig.pages[0].depth,
    }  # fmt: skip


def _tip_json(tip: Tip, taken: Cut, places: dict[bytes, tuple[int, int]], tokenizer: Tokenizer) -> dict[str, Any]:
    """A sequence at its twig (None: at the root; -1: that twig is left out)."""
    place = places.get(tip.key)
    twig = None if tip.key == taken.root else -1 if place is None else place[0]
    return {"request": tip.request, "index": tip.index, "twig": twig, "text": _text(tokenizer, tip.rest)[-LONGEST:]}


def _breaks(
    taken: Cut, children: dict[bytes, list[Node]], places: dict[bytes, tuple[int, int]], broken: list[Record]
) -> list[dict[str, Any]]:
    """Where the prefixes of requests ended, the latest first, as far as the pages are still there."""
    found = []
    for record in reversed(broken):
        difference = record.reuse.first_difference
        assert difference is not None
        at, slot = divmod(difference.position, taken.page_size)
        parent = taken.root
        for page in range(at):
            parent = content_key(parent, pack(record.broke[page * taken.page_size : (page + 1) * taken.page_size]))
        agreed = pack(record.broke[at * taken.page_size : difference.position])
        other = pack([difference.cached_token])
        node = next((n for n in children.get(parent, ()) if n.tokens.startswith(agreed + other)), None)
        if node is not None and node.key in places:
            twig, place = places[node.key]
            found.append({"request": record.request, "twig": twig, "page": place, "slot": slot})
        if len(found) == MOST_BREAKS:
            break
    return found
