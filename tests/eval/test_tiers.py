"""What is asked of codecs and policies."""

from __future__ import annotations

from typing import Any

import pytest

from kvist.eval.tiers import verdict

GOOD: dict[str, Any] = {
    "bits_per_value": 4.5, "policy": "full", "perplexity_change": 0.019, "kld_mean": 0.015, "top1": 0.94,
    "passkey": 0.98,
}  # fmt: skip


def test_codecs_by_their_bits() -> None:
    assert verdict(GOOD) == {"name": "up to 4.5 bits", "reached": True, "missed": []}
    assert verdict({**GOOD, "bits_per_value": 4.51}) == {
        "name": "up to 5.5 bits", "reached": False, "missed": ["perplexity_change", "kld_mean", "top1", "passkey"],
    }  # fmt: skip
    assert verdict({**GOOD, "kld_mean": 0.0151, "passkey": None})["missed"] == ["kld_mean"]  # type: ignore[index]
    assert verdict({**GOOD, "perplexity_change": -0.5})["reached"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("policy", "bits", "name", "missed"),
    [
        ("topk:0.25", 16, "topk, a quarter", ["perplexity_change", "kld_mean", "top1"]),
        ("topk:0.5+3p", 32, "topk, a quarter", ["perplexity_change", "kld_mean", "top1"]),
        ("evict:0.5,by=knorm", 16, "evict, half", []),
        ("evict:0.8,by=h2o", 16, "evict, half", []),
    ],
)
def test_policies_by_what_they_read_or_keep(policy: str, bits: float, name: str, missed: list[str]) -> None:
    found = {**GOOD, "bits_per_value": bits, "policy": policy}
    assert verdict(found) == {"name": name, "reached": not missed, "missed": missed}
    worse = verdict({**found, "passkey": 0.94, "perplexity_change": 0.021})
    assert worse is not None and {"perplexity_change", "passkey"} <= set(worse["missed"])


@pytest.mark.parametrize(
    ("policy", "bits"),
    [("full", 16), ("window:64+4", 16), ("window:64+4", 4.5), ("topk:0.25", 8.5), ("topk:0.24", 16), ("topk:64p", 16),
     ("evict:0.49,by=knorm", 16)],
)  # fmt: skip
def test_nothing_is_asked_of_others(policy: str, bits: float) -> None:
    assert verdict({**GOOD, "bits_per_value": bits, "policy": policy}) is None
