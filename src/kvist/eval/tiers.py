"""What is asked of a codec of so many bits, and of a policy that reads or keeps so much; and who keeps to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvist.cache.policy import policy
from kvist.cache.policy.base import WHOLE
from kvist.cache.policy.evict import Evict
from kvist.cache.policy.topk import Topk


@dataclass(frozen=True, slots=True)
class Tier:
    """The most that may be lost, and the least that must be kept; None where nothing is asked."""

    name: str
    perplexity_change: float
    passkey: float
    kld_mean: float | None = None
    top1: float | None = None

    def missed(self, found: Mapping[str, Any]) -> list[str]:
        """The measures in which a method's report falls short. Pass keys that nobody asked for are none."""
        most = {"perplexity_change": self.perplexity_change, "kld_mean": self.kld_mean}
        least = {"top1": self.top1, "passkey": self.passkey}
        short = [name for name, bound in most.items() if bound is not None and found[name] > bound]
        return short + [
            name
            for name, bound in least.items()
            if bound is not None and found[name] is not None and found[name] < bound
        ]


BITS = {
    4.5: Tier("up to 4.5 bits", perplexity_change=0.02, kld_mean=0.015, top1=0.94, passkey=0.98),
    5.5: Tier("up to 5.5 bits", perplexity_change=0.005, kld_mean=0.005, top1=0.97, passkey=1.0),
    8.5: Tier("up to 8.5 bits", perplexity_change=0.001, kld_mean=0.001, top1=0.99, passkey=1.0),
}
"""Of codecs of at most so many bits a number, where a token sees all; the fewest first."""

QUARTER = Tier("topk, a quarter", perplexity_change=0.005, kld_mean=0.01, top1=0.96, passkey=0.98)
HALF = Tier("evict, half", perplexity_change=0.02, passkey=0.95)
"""Of policies that read a quarter of the pages or more, and that keep half of a prompt or more, over floats."""

TIERS = (*reversed(BITS.values()), QUARTER, HALF)


def verdict(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tier of a method's report, and what it misses there; None where nothing is asked of its kind."""
    tier = _tier(found["bits_per_value"], found["policy"])
    if tier is None:
        return None
    missed = tier.missed(found)
    return {"name": tier.name, "reached": not missed, "missed": missed}


def _tier(bits: float, name: str) -> Tier | None:
    own, rule = next((tier for most, tier in BITS.items() if bits <= most), None), policy(name)
    if name == "full":
        return own
    if own is not None:
        return None  # how much a codec and a policy may cost together nobody says
    if isinstance(rule, Topk) and 4 * rule.share >= WHOLE:
        return QUARTER
    return HALF if isinstance(rule, Evict) and rule.share >= 0.5 else None
