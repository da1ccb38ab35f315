"""What the measurements say, as a table for people and JSON for programs.

Everything is computed from what a store keeps, so a run that was stopped and resumed says the same as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kvist.eval.bootstrap import interval
from kvist.eval.method import FLOOR, REFERENCE, Method
from kvist.eval.scores import Scores
from kvist.eval.speed import Turns, figures
from kvist.eval.text import Document, digest
from kvist.eval.tiers import verdict

EDGES = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 1 << 30)
"""Where the buckets of positions begin."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of a method. scores: of each document. passkeys: of each cell. turns: of steps."""

    method: Method
    bytes_per_token: int
    values: int
    scores: Sequence[Scores]
    passkeys: Sequence[bool]
    turns: Turns

    @property
    def bits_per_value(self) -> float:
        """Bits that a number of K or V takes, with all that belongs to it."""
        return 8 * self.bytes_per_token / self.values

    def all(self, name: str) -> npt.NDArray[Any]:
        """One field of the scores, over all documents."""
        return np.concatenate([getattr(one, name) for one in self.scores])


@dataclass(frozen=True, slots=True)
class Report:
    """A run: what was measured on what. The first result is the reference's own method."""

    circumstances: dict[str, Any]
    documents: Sequence[Document]
    results: Sequence[Result]
    contexts: Sequence[int]

    def as_json(self) -> dict[str, Any]:
        """The shape that programs read."""
        truth = self.results[0].all("reference").astype(np.float64)
        floor = next((one.turns for one in self.results if one.method == FLOOR), None)
        return {
            **self.circumstances,
            "reference": {
                "codec": REFERENCE.codec, "policy": REFERENCE.policy, "cached": False, "positions": len(truth),
                "perplexity": float(np.exp(-truth.mean())),
            },
            "text": {
                "digest": digest(self.documents),
                "documents": [{"domain": d.domain, "name": d.name, "positions": d.positions} for d in self.documents],
            },
            "passkey_cells": len(self.results[0].passkeys),
            "passkey_cells_kept": sum(self.results[0].passkeys),
            "methods": compared(
                [{**self._quality(one), **figures(self.contexts, one.turns, floor)} for one in self.results]
            ),
        }  # fmt: skip

    def _quality(self, one: Result) -> dict[str, Any]:
        positions = [scores.positions for scores in one.scores]
        lost = [_lost(scores) for scores in one.scores]
        divergence = one.all("divergence")
        kept = [told for told, known in zip(one.passkeys, self.results[0].passkeys, strict=True) if known]
        return {
            "codec": one.method.codec, "policy": one.method.policy,
            "positions": sum(positions), "bits_per_value": one.bits_per_value, "bytes_per_token": one.bytes_per_token,
            "live_bytes_per_token": sum(scores.live_bytes for scores in one.scores)
            / sum(scores.first + scores.positions for scores in one.scores),
            "perplexity": float(np.exp(-one.all("own").astype(np.float64).mean())),
            "perplexity_change": float(np.expm1(sum(lost) / sum(positions))),
            "perplexity_change_interval": [float(np.expm1(bound)) for bound in interval(lost, positions)],
            "kld_mean": float(divergence.mean(dtype=np.float64)),
            "kld_mean_interval": list(interval(_sums(one.scores, "divergence"), positions)),
            "kld_median": float(np.median(divergence)),
            "kld_p999": float(np.quantile(divergence, 0.999)),
            "top1": float(one.all("same").mean()),
            "top1_interval": list(interval(_sums(one.scores, "same"), positions)),
            "top1_sure": float(one.all("same")[one.all("sure")].mean()) if one.all("sure").any() else None,
            "passkey": sum(kept) / len(kept) if kept else None,
            "by_domain": list(self._by_domain(one)),
            "by_position": list(by_position(one.scores)),
        }  # fmt: skip

    def _by_domain(self, one: Result) -> Iterator[dict[str, Any]]:
        for domain in dict.fromkeys(document.domain for document in self.documents):
            of = [scores for scores, d in zip(one.scores, self.documents, strict=True) if d.domain == domain]
            yield {"domain": domain, **_brief(of)}


def compared(methods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with each one's tier, and whether it is the best at its bytes.

    That is so where none that held as few bytes has a smaller divergence. All held the same documents and their tails.
    """
    for one in methods:
        rivals = [other for other in methods if other["live_bytes_per_token"] <= one["live_bytes_per_token"]]
        one["tier"] = verdict(one)
        one["best_at_its_bytes"] = all(other["kld_mean"] >= one["kld_mean"] for other in rivals)
    return methods


def by_position(scores: Sequence[Scores]) -> Iterator[dict[str, Any]]:
    """The measures of each bucket of positions that any document reaches."""
    for start, end in pairwise(EDGES):
        first, longest = min(one.first for one in scores), max(one.first + one.positions for one in scores)
        if start < longest and end > first:
            yield {"from": max(start, first), "to": min(end, longest), **_brief(scores, start, end)}


def _brief(scores: Sequence[Scores], start: int = 0, end: int = EDGES[-1]) -> dict[str, Any]:
    """The main measures over a span of each document's positions."""
    spans = [slice(max(0, start - one.first), max(0, end - one.first)) for one in scores]
    lost = np.concatenate([_losses(one)[span] for one, span in zip(scores, spans, strict=True)])
    divergence = np.concatenate([one.divergence[span] for one, span in zip(scores, spans, strict=True)])
    same = np.concatenate([one.same[span] for one, span in zip(scores, spans, strict=True)])
    return {
        "positions": len(lost), "perplexity_change": float(np.expm1(lost.mean())),
        "kld_mean": float(divergence.mean(dtype=np.float64)), "top1": float(same.mean()),
    }  # fmt: skip


def _losses(one: Scores) -> npt.NDArray[np.float64]:
    """Log-probability that each token lost."""
    return one.reference.astype(np.float64) - one.own


def _lost(one: Scores) -> float:
    return float(_losses(one).sum())


def _sums(scores: Sequence[Scores], name: str) -> list[float]:
    return [float(getattr(one, name).sum(dtype=np.float64)) for one in scores]
