"""Why so many tokens of a request were found in the cache, and not more: the truth, and only the tenant's own.

A request asks for a prefix under its salt. What it is told follows from what was published and evicted under that salt
alone: never that another tenant holds the same tokens, nor which, since that would let a tenant probe, token by token,
what others ask. So `salt` says that nothing is cached under this salt at all, whatever others hold: it is the same
answer whether they hold the prefix or not. (That pages are evicted at all may be due to others: the pool is shared.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from kvist.cache.prefix import TOKEN_BYTES, content_key, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvist.cache.ledger import PageLedger
    from kvist.cache.table import PrefixMatch

Reason = Literal["full", "partial", "evicted", "never seen", "salt", "off"]


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first place where a prompt differs from what is cached under its salt.

    The token that is cached there (of the page that agrees furthest), the one that was asked for, and their texts,
    which who knows the tokenizer fills in.
    """

    position: int
    cached_token: int
    asked_token: int
    cached_text: str | None = None
    asked_text: str | None = None


@dataclass(frozen=True, slots=True)
class ReuseReport:
    """What of a request's prompt came from the cache when it started, in tokens: computed + cached = the prompt.

    cached: by source; so far there is one, "memory". reason: why it was not more. "full": all that could be, which is
    all full pages, and never the last token, whose logits are needed. "evicted": the next page was cached once, and had
    to make room. "partial": it differs from here on, nothing longer was cached, or no page was left to copy a part of
    one into; the first difference if there is one. "never seen": no cached page begins as it does. "salt": nothing at
    all is cached under its salt. "off": it was not looked up, since caching is switched off or its first token's logits
    are wanted.
    """

    computed: int
    cached: Mapping[str, int]
    reason: Reason
    first_difference: FirstDifference | None = None


class KeyMemory:
    """The content keys of pages that were evicted last, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes) -> None:
        """Remember a key; the oldest is forgotten where there are too many."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._capacity:
            self._keys.popitem(last=False)

    def discard(self, key: bytes) -> None:
        """Forget a key: its page is there again."""
        self._keys.pop(key, None)


@dataclass(frozen=True, slots=True)
class Break:
    """Where and why a match ended, as seen while it was locked: `report` says what became of it."""

    asked: int
    found: int
    complete: bool  # no full page of what was looked up is missing
    reason: Reason
    first_difference: FirstDifference | None = None
    evicted: int = 0  # tokens before those whose entries a policy has evicted; the other counts are without them

    def report(self, cached: int) -> ReuseReport:
        """The report of a request that could use so many cached tokens: all, or without those that take a copy."""
        reason = self.reason
        if cached and reason == "never seen":
            reason = "full" if self.complete and cached == self.found else "partial"
        found = {"memory": cached + self.evicted if cached else 0}
        return ReuseReport(self.asked - cached, found, reason, self.first_difference if cached else None)


def explain(
    ledgers: Sequence[PageLedger], match: PrefixMatch, tokens: Sequence[int], limit: int, page_size: int
) -> Break:
    """Why a match of `tokens`, of which up to `limit` were looked up, found no more. The match must be locked."""
    if match.kept is None:
        return _explain(ledgers, match, tokens, limit, page_size)
    found = _explain(ledgers, match, match.kept.slot_tokens(tokens), limit - match.evicted, page_size)
    there = found.first_difference
    return replace(
        found,
        evicted=match.evicted,
        first_difference=there and replace(there, position=there.position + match.evicted),
    )


def _explain(
    ledgers: Sequence[PageLedger], match: PrefixMatch, tokens: Sequence[int], limit: int, page_size: int
) -> Break:
    """The same, all counted in slots."""
    asked, found, index = len(tokens), match.cached, ledgers[0].index
    if not match.keys or limit < 1:
        return Break(asked, 0, False, "off")
    parent, start = match.keys[-1], len(match.pages) * page_size
    difference = None
    rest = pack(tokens[start : min(start + page_size, limit)])
    near = index.nearest(parent, rest)
    if near is not None and near[0] * TOKEN_BYTES < len(rest):
        slots, page = near
        held = index.pages[page].tokens[slots * TOKEN_BYTES : (slots + 1) * TOKEN_BYTES]
        position = start + slots
        difference = FirstDifference(position, int.from_bytes(held, "little", signed=True), tokens[position])
    following = tokens[start : start + page_size]
    if found < limit and len(following) == page_size:
        key = content_key(parent, pack(following))
        # a page that one group has was cached, so what another lacks was evicted there
        if any(key in ledger.evicted or key in ledger.index.nodes for ledger in ledgers):
            return Break(asked, found, False, "evicted", difference)
    complete = found == limit or (limit - found < page_size and difference is None)
    fresh = match.salt and not match.pages and near is None
    return Break(asked, found, complete, "salt" if fresh else "never seen", difference)
