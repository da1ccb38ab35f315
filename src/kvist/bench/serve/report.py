"""Two passes -> figures. Times are seconds; percentiles are samples that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from kvist.bench.machine import commit, machine
from kvist.bench.percentile import percentile
from kvist.bench.serve.answer import Answer, Failure
from kvist.bench.serve.load import Pass
from kvist.bench.serve.server import Server
from kvist.bench.serve.work import Plan

CONTEXT = 16  # characters shown of two texts where they part


def as_json(url: str, server: Server, plan: Plan, nonce: str, cold: Pass, warm: Pass) -> dict[str, Any]:
    """The shape that programs read."""
    return {
        "url": url, "model": server.model, "server_version": server.version,
        "tokens_per_word": round(server.tokens_per_word, 4), "nonce": nonce,
        "plan": {**asdict(plan), "concurrency": plan.at_once},
        "client": {"machine": machine(), "threads": 1, "commit": commit()},
        "cold": figures(cold, plan), "warm": figures(warm, plan), "texts": compared(cold, warm),
    }  # fmt: skip


def figures(found: Pass, plan: Plan) -> dict[str, Any]:
    """All that is told of one pass."""
    all_found = [exchange.found for exchange in found.exchanges]
    answers = [each for each in all_found if isinstance(each, Answer)]
    prompt, made = (_sum(getattr(each, name) for each in answers) for name in ("prompt_tokens", "completion_tokens"))
    counted = [each for each in answers if each.cached_tokens is not None and each.prompt_tokens]
    asked, cached = (_sum(getattr(each, name) for each in counted) for name in ("prompt_tokens", "cached_tokens"))
    good = [each for each in answers if within(each, plan)]
    limited = plan.goodput_ttft is not None or plan.goodput_itl is not None
    return {
        "requests": len(all_found), "completed": len(answers), "errors": errors(all_found),
        "seconds": found.seconds, "client_cpu_seconds": found.cpu_seconds,
        **_percentiles("ttft", [each.ttft for each in answers]),
        **_percentiles("itl", [gap for each in answers for gap in each.gaps]),
        **_percentiles("tpot", [each.tpot for each in answers if each.tpot is not None]),
        **_percentiles("e2e", [each.seconds for each in answers]),
        "prompt_tokens": prompt, "completion_tokens": made, "cached_tokens": cached,
        "hit_rate": cached / asked if cached is not None and asked else None,
        "output_tokens_per_s": None if made is None else made / found.seconds,
        "total_tokens_per_s": None if made is None or prompt is None else (made + prompt) / found.seconds,
        "requests_per_s": len(answers) / found.seconds,
        "goodput_share": len(good) / len(all_found) if limited else None,
        "goodput_requests_per_s": len(good) / found.seconds if limited else None,
    }  # fmt: skip


def within(answer: Answer, plan: Plan) -> bool:
    """Whether the first text and every gap after it kept to the limits."""
    first, gap = plan.goodput_ttft, plan.goodput_itl
    return (first is None or answer.ttft <= first) and (gap is None or max(answer.gaps, default=0.0) <= gap)


def errors(found: Iterable[Answer | Failure]) -> list[dict[str, Any]]:
    """Each kind of failure, how often it was, and what the first one said."""
    kinds: dict[str, list[str]] = {}
    for each in found:
        if isinstance(each, Failure):
            kinds.setdefault(each.kind, []).append(each.detail)
    return [{"kind": kind, "count": len(details), "first": details[0]} for kind, details in kinds.items()]


def compared(cold: Pass, warm: Pass) -> dict[str, Any]:
    """How many warm texts equal the cold ones, of those that both passes have, and where the first pair parts."""
    pairs = [
        (i, before.found.reasoning + before.found.text, after.found.reasoning + after.found.text)
        for i, (before, after) in enumerate(zip(cold.exchanges, warm.exchanges, strict=True))
        if isinstance(before.found, Answer) and isinstance(after.found, Answer)
    ]
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    return {
        "compared": len(pairs), "equal": len(pairs) - len(differing),
        "first_difference": _difference(*differing[0]) if differing else None,
    }  # fmt: skip


def _difference(request: int, cold: str, warm: str) -> dict[str, Any]:
    shorter = min(len(cold), len(warm))
    at = next((i for i in range(shorter) if cold[i] != warm[i]), shorter)
    return {"request": request, "position": at, "cold": cold[at : at + CONTEXT], "warm": warm[at : at + CONTEXT]}


def _sum(counts: Iterable[int | None]) -> int | None:
    """None where any is unknown, or there is none."""
    known = list(counts)
    return sum(count for count in known if count is not None) if known and None not in known else None


def _percentiles(name: str, samples: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_p{percent}": percentile(samples, percent) if samples else None for percent in (50, 99)}
