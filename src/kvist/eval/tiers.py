"""What is asked of a codec of so many bits a number, and whether it keeps to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tier:
    """For codecs of at most so many bits a number: the most that may be lost, and the least that must be kept."""

    bits: float
    perplexity_change: float
    kld_mean: float
    top1: float
    passkey: float

    def missed(self, found: Mapping[str, Any]) -> list[str]:
        """The measures in which a method's report falls short. Pass keys that nobody asked for are none."""
        short = [name for name in ("perplexity_change", "kld_mean") if found[name] > getattr(self, name)]
        kept = {name: found[name] for name in ("top1", "passkey") if found[name] is not None}
        return short + [name for name, share in kept.items() if share < getattr(self, name)]


TIERS = (
    Tier(4.5, perplexity_change=0.02, kld_mean=0.015, top1=0.94, passkey=0.98),
    Tier(5.5, perplexity_change=0.005, kld_mean=0.005, top1=0.97, passkey=1.0),
    Tier(8.5, perplexity_change=0.001, kld_mean=0.001, top1=0.99, passkey=1.0),
)
"""The fewest bits first."""


def verdict(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tier of a method's report, and what it misses there; None for floats, and where tokens do not see all."""
    tier = next((tier for tier in TIERS if found["bits_per_value"] <= tier.bits), None)
    if tier is None or found["policy"] != "full":
        return None
    missed = tier.missed(found)
    return {"bits": tier.bits, "reached": not missed, "missed": missed}
