"""Find a prefix in the pages of all groups at once.

A prefix of m full pages can be used if each group holds those of its pages that a token behind the prefix sees: all of
them, or the last ones where a window is. ::

    pages of the prompt      0  1  2  3  4  5  6 | 7
    group 0, sees all        x  x  x  x  x  x  x         longest prefix: 7 pages
    group 1, window of 3     x  .  x  x  x  .  x         behind 7 pages it would see 4 5 6, behind 5 it sees 2 3 4:
                                                         5 pages are found
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from kvist.cache.group import PageGroup
from kvist.cache.prefix import TOKEN_BYTES, PrefixIndex, content_key, pack
from kvist.cache.table import GONE


@dataclass(frozen=True, slots=True)
class Found:
    """The keys of full pages, those pages of each group (or `GONE`), perhaps one more of each that agrees so far."""

    keys: tuple[bytes, ...]
    groups: tuple[tuple[int, ...], ...]
    partial: tuple[int, ...] | None = None
    slots: int = 0


def page_keys(root: bytes, tokens: Sequence[int], page_size: int) -> list[bytes]:
    """Content keys of the full pages of a prefix, whether they are there or not."""
    return list(accumulate(_chunks(tokens, page_size), content_key, initial=root))[1:]


def search(
    groups: Sequence[PageGroup], indices: Sequence[PrefixIndex], root: bytes, tokens: Sequence[int], whole: bool
) -> Found:
    """Find the longest prefix of `tokens` that all groups have. whole: with the pages that no later token sees."""
    first, size = indices[0], groups[0].layout.page_size
    if groups[0].window is None and len(groups) == 1:
        hit = first.lookup(root, tokens)
        return Found(hit.keys, (hit.pages,), *(((hit.partial[0],), hit.partial[1]) if hit.partial else ()))
    chunks = _chunks(tokens, size)
    keys = list(accumulate(chunks, content_key, initial=root))
    held = [_pages(index, keys, chunks) for index in indices]
    complete = [pages for group, pages in zip(groups, held, strict=True) if whole or group.window is None]
    count = min([len(chunks), *(pages.index(GONE) for pages in complete if GONE in pages)])

    def unseen(group: PageGroup) -> range:
        return range(0) if whole else group.unseen(count * size)

    while any(
        GONE in pages[: min(places.start, count)] + pages[places.stop : count]
        for places, pages in zip(map(unseen, groups), held, strict=True)
    ):
        count -= 1
    kept = (
        tuple(GONE if i in places else page for i, page in enumerate(pages[:count]))
        for places, pages in zip(map(unseen, groups), held, strict=True)
    )
    found = Found(tuple(keys[1 : count + 1]), tuple(kept))
    rest = pack(tokens[count * size : (count + 1) * size])
    near = first.nearest(keys[count], rest)
    if near is None or not near[0]:
        return found
    key = first.pages[near[1]].key
    if any(key not in index.nodes for index in indices):
        return found
    return Found(found.keys, found.groups, tuple(index.nodes[key].page for index in indices), near[0])


def _chunks(tokens: Sequence[int], page_size: int) -> list[bytes]:
    """The packed tokens of each full page."""
    packed, size = pack(tokens), page_size * TOKEN_BYTES
    return [packed[at : at + size] for at in range(0, len(packed) - size + 1, size)]


def _pages(index: PrefixIndex, keys: Sequence[bytes], chunks: Sequence[bytes]) -> list[int]:
    """The page of each chunk, `GONE` where there is none; as on every hit, tokens and parent are compared.

    keys: the root's, then one for each chunk.
    """
    nodes = [index.nodes.get(key) for key in keys[1:]]
    return [
        node.page if node is not None and (node.tokens, node.parent) == (chunk, parent) else GONE
        for node, chunk, parent in zip(nodes, chunks, keys, strict=False)
    ]
