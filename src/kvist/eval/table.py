"""A report as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvist.eval.method import Method

COLUMNS = (
    ("bits", 6), ("B/token", 9), ("perplexity", 12), ("change, 95% interval", 28), ("KLD mean", 10), ("99.9%", 10),
    ("top-1", 9), ("if sure", 9), ("passkey", 9), ("step ms", 9), ("+us/1k", 8),
)  # fmt: skip


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The table of a report's JSON, and what one has to know to read it."""
    width = 2 + max(len("reference"), *(len(_name(one)) for one in found["methods"]))
    reference, text, plan = found["reference"], found["text"], found["plan"]
    yield f"{'method':<{width}}" + "".join(f"{title:>{size}}" for title, size in COLUMNS)
    yield f"{'reference':<{width}}{'':>15}{reference['perplexity']:>12.4f}"
    for one in found["methods"]:
        cells = zip(_cells(one), COLUMNS, strict=True)
        yield f"{_name(one):<{width}}" + "".join(f"{cell:>{size}}" for cell, (_, size) in cells)
    domains = dict.fromkeys(document["domain"] for document in text["documents"])
    yield (
        f"{found['model']}, {found['weights']} weights, {found['threads']} threads; {len(text['documents'])} "
        f"documents, {reference['positions']:,} positions of {', '.join(domains)} (text {text['digest'][:8]})"
    )
    yield "reference: float32, uncached; KLD: nats from it; if sure: top-1 where it is ahead by more than 0.5 nat"
    if any(one["positions"] < reference["positions"] for one in found["methods"]):
        yield "evict: a document's first half is computed and compressed, and its second half is measured"
    if found["passkey_cells"]:
        lengths = ", ".join(map(str, plan["lengths"]))
        yield (
            f"passkey: of the {found['passkey_cells_kept']} of {found['passkey_cells']} keys that float32 finds in "
            f"texts of {lengths} tokens"
        )


def _name(one: dict[str, Any]) -> str:
    return Method(one["codec"], one["policy"]).name


def _cells(one: dict[str, Any]) -> Iterator[str]:
    low, high = one["perplexity_change_interval"]
    yield f"{one['bits_per_value']:.4g}"
    yield f"{one['bytes_per_token']:,}"
    yield f"{one['perplexity']:.4f}"
    yield f"{_percent(one['perplexity_change'])} [{_percent(low)}, {_percent(high)}]"
    yield f"{one['kld_mean']:.2e}" if one["kld_mean"] else "0"
    yield f"{one['kld_p999']:.2e}" if one["kld_p999"] else "0"
    yield f"{one['top1']:.2%}"
    yield _or_dash(one["top1_sure"], ".2%")
    yield _or_dash(one["passkey"], ".1%")
    yield _or_dash(one["step_ms_intercept"], ".2f")
    yield _or_dash(one["step_us_per_1k_tokens"], ".0f")


def _percent(share: float) -> str:
    if not share:
        return "0"
    return f"{share:+.3%}" if abs(share) < 0.1 else f"{share:+.1%}"


def _or_dash(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)
