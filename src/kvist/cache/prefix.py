"""The prefix index: finds the sealed pages of a token prefix by content.

A page's **content key** chains all that its numbers depend on::

    root key = SHA-256(SHA-256(identity) + salt)              identity: model, layout, codec; salt: the tenant's
    page key = SHA-256(parent's key + token ids, int32 LE)    parent: the page before, or the root

    root ─ [the cat sat on] ─┬─ [the mat . And] ─ ...         A key names a path from the root, so equal keys
                             └─ [the mat , but] ─ ...         mean equal prefixes. It is still not trusted:
                                                              tokens and parent are compared on every hit.

The children of a page lie sorted by their tokens. The one with the longest common prefix with any asked tokens is a
neighbour of the place where those would be inserted, so that a partial match costs O(log children).
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from kvist.errors import InternalError, UsageError

TOKEN_BYTES = 4


def pack(tokens: Sequence[int]) -> bytes:
    """Token ids as int32, little-endian: the form in which they are hashed, kept and compared."""
    try:
        return struct.pack(f"<{len(tokens)}i", *tokens)
    except struct.error:
        raise UsageError("a token id is not an integer of 32 bits") from None


def root_key(identity: bytes, salt: bytes) -> bytes:
    """Key that a prefix without any page has."""
    return hashlib.sha256(hashlib.sha256(identity).digest() + salt).digest()


def content_key(parent: bytes, tokens: bytes) -> bytes:
    """Key of a page with these packed `tokens` after the page or root with key `parent`."""
    return hashlib.sha256(parent + tokens).digest()


def common_tokens(a: bytes, b: bytes) -> int:
    """Length, in tokens, of the longest common prefix of two packed runs."""
    shorter = min(len(a), len(b))
    # Read as one little-endian number each, the first difference is the lowest bit in which they differ.
    difference = int.from_bytes(a[:shorter], "little") ^ int.from_bytes(b[:shorter], "little")
    if not difference:
        return shorter // TOKEN_BYTES
    return ((difference & -difference).bit_length() - 1) // (8 * TOKEN_BYTES)


@dataclass(frozen=True, slots=True)
class Node:
    """A published page: `tokens` are its own, packed; `depth` counts the pages before it in its prefix."""

    key: bytes
    parent: bytes
    tokens: bytes
    page: int
    depth: int


@dataclass(frozen=True, slots=True)
class Hit:
    """What a lookup found: the full pages with their keys, and perhaps (page, slots) of one more that agrees so far."""

    keys: tuple[bytes, ...] = ()
    pages: tuple[int, ...] = ()
    partial: tuple[int, int] | None = None


class PrefixIndex:
    """Maps content keys to pages. It holds no references: the manager removes a page before its content is lost.

    gaps: a page may be here without the pages before it in its prefix.
    """

    def __init__(self, page_size: int, gaps: bool = False) -> None:
        self.nodes: dict[bytes, Node] = {}  # by key
        self.pages: dict[int, Node] = {}  # the same, by page
        self.children: dict[bytes, list[tuple[bytes, int]]] = {}  # parent's key -> (tokens, page), sorted
        self._page_bytes = page_size * TOKEN_BYTES
        self._gaps = gaps

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, page: int) -> bool:
        return page in self.pages

    def lookup(self, root: bytes, tokens: Sequence[int]) -> Hit:
        """Find the longest published prefix of `tokens`: full pages first, then part of one more."""
        asked, size = pack(tokens), self._page_bytes
        keys: list[bytes] = []
        pages: list[int] = []
        parent, at = root, 0
        while len(asked) - at >= size:
            chunk = asked[at : at + size]
            key = content_key(parent, chunk)
            node = self.nodes.get(key)
            if node is None or node.tokens != chunk or node.parent != parent:
                break
            keys.append(key)
            pages.append(node.page)
            parent, at = key, at + size
        return Hit(tuple(keys), tuple(pages), self._closest(parent, asked[at : at + size]))

    def insert(self, parent: bytes, tokens: Sequence[int], page: int, depth: int) -> Node | None:
        """Publish a sealed page and return the node that stands for its content.

        That is the new node, or the one that was published before with the same content and another page, or None
        if the key is taken by other content (a SHA-256 collision): then the page, and any after it, stay unpublished.
        """
        packed = pack(tokens)
        key = content_key(parent, packed)
        known = self.nodes.get(key)
        if known is not None:
            return known if known.tokens == packed and known.parent == parent else None
        if page in self.pages:
            raise InternalError(f"page {page} is published already, with other content")
        node = Node(key, parent, packed, page, depth)
        self.nodes[key] = self.pages[page] = node
        insort(self.children.setdefault(parent, []), (packed, page))
        return node

    def remove(self, page: int) -> None:
        """Forget a published page."""
        node = self.pages.pop(page)
        del self.nodes[node.key]
        siblings = self.children[node.parent]
        del siblings[bisect_left(siblings, (node.tokens, page))]
        if not siblings:
            del self.children[node.parent]

    def problems(self) -> list[str]:
        """List what contradicts itself in here; empty when all is well."""
        found = []
        if {node.page: node for node in self.nodes.values()} != self.pages:
            found.append("the index by key and the index by page differ")
        for key, node in self.nodes.items():
            if key != node.key or content_key(node.parent, node.tokens) != key or len(node.tokens) != self._page_bytes:
                found.append(f"page {node.page} is not what its key says")
            parent = self.nodes.get(node.parent)
            if (parent is not None or not self._gaps) and node.depth != (parent.depth + 1 if parent else 0):
                found.append(f"page {node.page} at depth {node.depth} lost its parent")
        families: dict[bytes, list[tuple[bytes, int]]] = {}
        for node in self.nodes.values():
            families.setdefault(node.parent, []).append((node.tokens, node.page))
        if {parent: sorted(family) for parent, family in families.items()} != self.children:
            found.append("children do not agree with their parents")
        return found

    def nearest(self, parent: bytes, rest: bytes) -> tuple[int, int] | None:
        """Find the child of `parent` that shares most tokens with `rest`; the lower in order if two share as many.

        Returns (tokens shared, its page), or None where there is no child or nothing is asked.
        """
        siblings = self.children.get(parent)
        if not siblings or not rest:
            return None
        at = bisect_left(siblings, (rest, -1))
        return max(
            ((common_tokens(tokens, rest), page) for tokens, page in siblings[max(at - 1, 0) : at + 1]),
            key=lambda found: found[0],
        )

    def _closest(self, parent: bytes, rest: bytes) -> tuple[int, int] | None:
        """The nearest child as (page, slots), if it shares any."""
        found = self.nearest(parent, rest)
        return (found[1], found[0]) if found and found[0] else None
