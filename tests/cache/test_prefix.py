from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvist.cache import prefix
from kvist.cache.prefix import Hit, PrefixIndex, common_tokens, content_key, pack, root_key
from kvist.errors import InternalError, UsageError

SIZE = 4  # the index does not mind pages smaller than a block
ROOT = root_key(b"model", b"")
alphabet = st.integers(0, 2)


def put(index: PrefixIndex, pages: dict[int, list[int]], root: bytes = ROOT) -> None:
    """Publish a chain: page id -> its tokens, in order."""
    parent = root
    for depth, (page, tokens) in enumerate(pages.items()):
        node = index.insert(parent, tokens, page, depth)
        assert node is not None
        parent = node.key


def test_keys_are_the_documented_hashes() -> None:
    root = hashlib.sha256(hashlib.sha256(b"model").digest() + b"salt").digest()
    assert root_key(b"model", b"salt") == root
    assert content_key(root, pack([1, -2])) == hashlib.sha256(root + struct.pack("<ii", 1, -2)).digest()
    assert root_key(b"mod", b"el") != root_key(b"model", b"")


def test_tokens_that_are_no_32_bit_integers_are_refused() -> None:
    with pytest.raises(UsageError, match="32 bits"):
        pack([2**31])


@given(st.lists(st.integers(-(2**31), 2**31 - 1) | alphabet), st.lists(alphabet), st.lists(alphabet))
def test_common_tokens_counts_the_common_prefix(head: list[int], a: list[int], b: list[int]) -> None:
    a, b = head + a, head + b
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_tokens(pack(a), pack(b)) == expected


def test_full_pages_then_part_of_one_more() -> None:
    index = PrefixIndex(SIZE)
    put(index, {7: [1, 2, 3, 4], 5: [5, 6, 7, 8], 9: [9, 9, 9, 9]})
    assert index.lookup(ROOT, [1, 2, 3, 4, 5, 6, 7, 8]).pages == (7, 5)
    assert index.lookup(ROOT, [1, 2, 3, 4, 5, 6, 0, 8, 9]) == Hit((index.pages[7].key,), (7,), (5, 2))
    assert index.lookup(ROOT, [1, 2, 3, 4, 5, 6, 7]).partial == (5, 3)
    assert index.lookup(ROOT, [1, 2]).partial == (7, 2)
    assert index.lookup(ROOT, [2, 2]) == index.lookup(ROOT, []) == Hit()
    assert index.lookup(root_key(b"model", b"other"), [1, 2, 3, 4]) == Hit()


@given(
    st.lists(st.lists(alphabet, min_size=SIZE, max_size=SIZE), max_size=20, unique_by=tuple),
    st.lists(alphabet, max_size=SIZE),
)
def test_the_partial_match_is_the_longest_of_all_children(children: list[list[int]], asked: list[int]) -> None:
    index = PrefixIndex(SIZE)
    for page, tokens in enumerate(children):
        index.insert(ROOT, tokens, page, 0)
    hit = index.lookup(ROOT, asked)
    best = max((common_tokens(pack(asked), pack(child)) for child in children), default=0)
    found = SIZE if hit.pages else hit.partial[1] if hit.partial else 0
    assert found == best
    if hit.partial:
        page, slots = hit.partial
        assert children[page][:slots] == asked[:slots]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 15)), max_size=40))
def test_insert_and_remove_leave_an_index_in_order(history: list[tuple[bool, int]]) -> None:
    index, known = PrefixIndex(2), dict[tuple[int, ...], int]()
    for n, (insert, bits) in enumerate(history):
        tokens = (bits & 3, bits >> 2)
        if insert:
            node = index.insert(ROOT, tokens, n, 0)
            assert node is not None
            assert node.page == known.setdefault(tokens, n)
        elif tokens in known:
            index.remove(known.pop(tokens))
        assert index.problems() == []
        assert {page: struct.unpack("<ii", node.tokens) for page, node in index.pages.items()} == {
            page: tokens for tokens, page in known.items()
        }
    assert len(index) == len(known)


def test_the_first_page_of_a_content_stays_published() -> None:
    index = PrefixIndex(SIZE)
    put(index, {1: [1, 2, 3, 4]})
    node = index.insert(ROOT, [1, 2, 3, 4], 2, 0)
    assert node is not None
    assert node.page == 1
    assert 2 not in index
    with pytest.raises(InternalError, match="published already"):
        index.insert(ROOT, [4, 3, 2, 1], 1, 0)


def test_a_hash_collision_of_tokens_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never trust the hash alone: here it does not see a page's last token."""
    monkeypatch.setattr(prefix, "content_key", lambda parent, tokens: content_key(parent, tokens[:-4]))
    index = PrefixIndex(SIZE)
    put(index, {1: [1, 2, 3, 4]})
    assert index.lookup(ROOT, [1, 2, 3, 5]) == Hit(partial=(1, 3))
    assert index.insert(ROOT, [1, 2, 3, 5], 2, 0) is None
    assert index.problems() == []


def test_a_hash_collision_of_parents_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the hash does not see the parent: another tenant's page has the same key."""
    monkeypatch.setattr(prefix, "content_key", lambda parent, tokens: content_key(b"", tokens))
    index = PrefixIndex(SIZE)
    put(index, {1: [1, 2, 3, 4]})
    other = root_key(b"model", b"other tenant")
    assert index.lookup(other, [1, 2, 3, 4]) == Hit()
    assert index.insert(other, [1, 2, 3, 4], 2, 0) is None
