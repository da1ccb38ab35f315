"""Figures of a server as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ROWS = (
    ("first token, p50", "ttft_p50", 1e3, "ms"),
    ("first token, p99", "ttft_p99", 1e3, "ms"),
    ("between tokens, p50", "itl_p50", 1e3, "ms"),
    ("between tokens, p99", "itl_p99", 1e3, "ms"),
    ("per output token, p50", "tpot_p50", 1e3, "ms"),
    ("per output token, p99", "tpot_p99", 1e3, "ms"),
    ("whole answer, p50", "e2e_p50", 1e3, "ms"),
    ("whole answer, p99", "e2e_p99", 1e3, "ms"),
    ("output tokens", "output_tokens_per_s", 1, "/s"),
    ("all tokens", "total_tokens_per_s", 1, "/s"),
    ("requests", "requests_per_s", 1, "/s"),
    ("requests within the limits", "goodput_requests_per_s", 1, "/s"),
    ("share within the limits", "goodput_share", 100, "%"),
    ("prompt tokens cached", "hit_rate", 100, "%"),
    ("all of it", "seconds", 1, "s"),
    ("processor time of the client", "client_cpu_seconds", 1, "s"),
)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A table, then what it was measured with."""
    plan, passes, texts = found["plan"], (found["cold"], found["warm"]), found["texts"]
    yield f"{'':<29}{'cold':>12}{'warm':>12}"
    for label, key, scale, unit in ROWS:
        if any(one[key] is not None for one in passes):
            yield f"{label:<29}" + "".join(_cell(one[key], scale) for one in passes) + f" {unit}"
    for name, one in zip(("cold", "warm"), passes, strict=True):
        for error in one["errors"]:
            yield f"{name}: {error['count']} of {one['requests']} failed, {error['kind']}: {error['first']}"
    yield _equality(texts)
    if all(one["hit_rate"] is None for one in passes):
        yield "the server does not tell how many tokens it found cached (vLLM: --enable-prompt-tokens-details)"
    pace = f"{plan['concurrency']} at once" if plan["request_rate"] is None else f"{plan['request_rate']:g} a second"
    yield f"{plan['workload']}: {plan['requests']} requests, {pace}, {_sizes(plan)}, seed {plan['seed']}"
    client, version = found["client"], found["server_version"]
    named = "" if version is None else f" (version {version.get('version', version)})"
    yield f"{found['model']} at {found['url']}{named}; client: {client['machine']}, 1 thread, commit {client['commit']}"


def _cell(value: float | None, scale: float) -> str:
    return f"{'-' if value is None else format(value * scale, ',.2f'):>12}"


def _sizes(plan: dict[str, Any]) -> str:
    each = f"{plan['prompt_tokens']} tokens each and {plan['output_tokens']} to answer"
    if plan["workload"] == "prefix":
        return f"{plan['prefixes']} prefixes of {plan['prefix_tokens']} tokens, {each}"
    return f"{plan['turns']} turns, {each}" if plan["workload"] == "multi-turn" else f"about {each}"


def _equality(texts: dict[str, Any]) -> str:
    line = f"{texts['equal']} of {texts['compared']} warm texts equal the cold ones"
    if (at := texts["first_difference"]) is None:
        return line
    return f"{line}; request {at['request']} differs from character {at['position']} on: {at['cold']!r}, {at['warm']!r}"
