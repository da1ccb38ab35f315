"""Reports of reuse: how much, why not more, and never a word about another tenant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from kvist.cache.manager import CacheManager
from kvist.cache.report import FirstDifference, KeyMemory, ReuseReport

Make = Callable[..., CacheManager]


def serve(manager: CacheManager, tokens: Sequence[int], salt: bytes = b"") -> ReuseReport:
    """What an engine does with a prompt, without its engine."""
    limit = len(tokens) - 1
    match = manager.match(tokens, salt=salt, limit=limit)
    broke = manager.explain(match, tokens, limit)
    table = manager.open(match)
    report = broke.report(table.computed)
    rest = tokens[table.computed :]
    assert manager.reserve(table, len(rest))
    manager.commit(table, rest)
    manager.release(table)
    assert report.computed + sum(report.cached.values()) == len(tokens)
    return report


def run(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def test_why_a_prefix_was_found_so_far_and_no_further(make_manager: Make) -> None:
    manager = make_manager(num_pages=8)
    assert serve(manager, run(0, 40)) == ReuseReport(40, {"memory": 0}, "never seen")
    assert serve(manager, run(0, 32)) == ReuseReport(1, {"memory": 31}, "full")
    assert serve(manager, run(0, 40)) == ReuseReport(8, {"memory": 32}, "full")  # all that full pages hold
    assert serve(manager, run(0, 60)) == ReuseReport(28, {"memory": 32}, "partial")  # nothing differs: it ends here
    other = [*run(0, 21), 77, *run(0, 20)]
    assert serve(manager, other) == ReuseReport(21, {"memory": 21}, "partial", FirstDifference(21, 21, 77))
    at_an_edge = [*run(0, 16), -1 + 2**31, *run(0, 20)]
    report = serve(manager, at_an_edge)
    assert (report.cached["memory"], report.reason) == (16, "partial")
    assert report.first_difference == FirstDifference(16, 16, 2**31 - 1)
    assert serve(manager, [5, *run(1, 30)]) == ReuseReport(31, {"memory": 0}, "never seen")
    assert serve(manager, run(0, 10)) == ReuseReport(1, {"memory": 9}, "full")
    assert serve(manager, [5]) == ReuseReport(1, {"memory": 0}, "off")  # its only token's logits are needed


def test_what_was_evicted_is_called_so_until_it_is_back(make_manager: Make) -> None:
    manager = make_manager(num_pages=4)
    serve(manager, run(0, 48))
    serve(manager, run(100, 32))  # takes the free page and the last one of the first
    assert serve(manager, run(0, 48)) == ReuseReport(16, {"memory": 32}, "evicted")
    assert serve(manager, run(0, 48)) == ReuseReport(1, {"memory": 47}, "full")
    manager.flush()
    assert serve(manager, run(0, 48)).reason == "evicted"


def test_a_part_of_a_page_that_cannot_be_copied_is_not_called_cached(make_manager: Make) -> None:
    manager = make_manager(num_pages=3)
    serve(manager, run(0, 48))
    assert serve(manager, run(0, 48)) == ReuseReport(16, {"memory": 32}, "partial")


def test_without_prefix_caching_it_is_off(make_manager: Make) -> None:
    manager = make_manager(enable_prefix_caching=False)
    assert [serve(manager, run(0, 40)).reason for _ in range(2)] == ["off", "off"]


@pytest.mark.parametrize("others", [[], [run(0, 40)], [[*run(0, 20), 9, *run(0, 19)], run(0, 64)]])
def test_a_report_is_the_same_whatever_other_tenants_hold(make_manager: Make, others: list[list[int]]) -> None:
    """Non-interference: "mine" is told the same story whether or not others hold its very prefix."""
    manager = make_manager(num_pages=64)
    told = []
    for asked in (run(0, 40), [*run(0, 30), 7, 7], run(50, 20), run(0, 40)):
        for tokens in others:
            serve(manager, tokens)
            serve(manager, tokens, b"theirs")
        told.append(serve(manager, asked, b"mine"))
    assert told == [
        ReuseReport(40, {"memory": 0}, "salt"),
        ReuseReport(2, {"memory": 30}, "partial", FirstDifference(30, 30, 7)),
        ReuseReport(20, {"memory": 0}, "never seen"),
        ReuseReport(8, {"memory": 32}, "full"),
    ]


def test_the_memory_of_evicted_keys_is_bounded() -> None:
    memory = KeyMemory(2)
    for key in (b"a", b"b", b"a", b"c"):
        memory.add(key)
    assert (len(memory), b"a" in memory, b"b" in memory, b"c" in memory) == (2, True, False, True)
    memory.discard(b"a")
    memory.discard(b"never there")
    assert len(memory) == 1
