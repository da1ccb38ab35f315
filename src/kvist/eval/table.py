"""A report as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvist.eval.method import Method
from kvist.eval.tiers import TIERS

COLUMNS = (
    ("bits", 6), ("B/token", 9), ("held", 9), ("perplexity", 12), ("change, 95% interval", 28), ("KLD mean", 9),
    ("99.9%", 9), ("top-1", 8), ("if sure", 8), ("passkey", 8), ("step ms", 9), ("+us/1k", 8),
)  # fmt: skip
MEASURES = {"perplexity_change": "perplexity", "kld_mean": "KLD", "top1": "top-1", "passkey": "passkey"}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The table of a report's JSON, and what one has to know to read it."""
    width = 3 + max(len("reference"), *(len(_name(one)) for one in found["methods"]))
    reference, text, plan = found["reference"], found["text"], found["plan"]
    yield f"{'method':<{width}}" + "".join(f"{title:>{size}}" for title, size in COLUMNS)
    yield f"{'reference':<{width}}{'':>24}{reference['perplexity']:>12.4f}"
    for one in sorted(found["methods"], key=lambda one: -one["live_bytes_per_token"]):
        cells = zip(_cells(one), COLUMNS, strict=True)
        name = _name(one) + " *" * one["best_at_its_bytes"]
        yield f"{name:<{width}}" + "".join(f"{cell:>{size}}" for cell, (_, size) in cells)
    yield from _tiers(found["methods"])
    yield from [_chosen(found["choice"])] if found.get("choice") else []
    domains = dict.fromkeys(document["domain"] for document in text["documents"])
    yield (
        f"{found['model']}, {found['weights']} weights, {found['threads']} threads; {len(text['documents'])} "
        f"documents, {reference['positions']:,} positions of {', '.join(domains)} (text {text['digest'][:8]})"
    )
    yield "reference: float32, uncached; KLD: nats from it; if sure: top-1 where it is ahead by more than 0.5 nat"
    if any(one["positions"] < reference["positions"] for one in found["methods"]):
        yield "evict: a document's first half is computed and compressed, and its second half is measured"
    yield (
        "B/token: of full pages; held: of all pages that the documents had at their ends, by position; "
        "*: none that held as little has a smaller KLD"
    )
    if found["passkey_cells"]:
        lengths = ", ".join(map(str, plan["lengths"]))
        yield (
            f"passkey: of the {found['passkey_cells_kept']} of {found['passkey_cells']} keys that float32 finds in "
            f"texts of {lengths} tokens"
        )


def _tiers(methods: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each tier that a method belongs to: who keeps to it, and in what others fall short."""
    for tier in TIERS:
        own = [one for one in methods if one["tier"] is not None and one["tier"]["name"] == tier.name]
        told = (f"{_name(one)} {_short(one['tier']['missed'])}" for one in own)
        asked = [f"perplexity {tier.perplexity_change:+.1%}"]
        asked += [f"KLD {tier.kld_mean:g}"] if tier.kld_mean is not None else []
        asked += [f"top-1 {tier.top1:.0%}"] if tier.top1 is not None else []
        if own:
            yield f"{tier.name} ({', '.join(asked)}, passkey {tier.passkey:.0%}): {'; '.join(told)}"


def _chosen(told: dict[str, Any]) -> str:
    """What `choose.compared` told."""
    sides = (
        f"{side.upper()} {', '.join(f'{name} x{count}' for name, count in sorted(counts.items()))}"
        for side, counts in told["layers"].items()
    )
    return (
        f"chosen: {'; '.join(sides)}; {told['bits_per_value']:.3f} of {told['budget_bits']:g} bits, predicted KLD "
        f"{told['predicted_kld']:.2e} from {told['probe']} in each layer alone; use --kv-cache-dtype @{told['file']}"
    )


def _short(missed: list[str]) -> str:
    return f"misses {', '.join(MEASURES[name] for name in missed)}" if missed else "reached"


def _name(one: dict[str, Any]) -> str:
    return Method(one["codec"], one["policy"]).name


def _cells(one: dict[str, Any]) -> Iterator[str]:
    low, high = one["perplexity_change_interval"]
    yield f"{one['bits_per_value']:.4g}"
    yield f"{one['bytes_per_token']:,}"
    yield f"{one['live_bytes_per_token']:,.0f}"
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
