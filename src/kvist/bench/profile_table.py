"""A profile as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from kvist.bench.profile import Profiled, rate
from kvist.kernels.traffic import Traffic

TITLE = (
    f"{'operation':<34}{'count':>6}{'ms':>10}{'of step':>9}{'waits ms':>10}"
    f"{'MB':>10}{'GB/s':>8}{'MFLOP':>11}{'GFLOP/s':>9}  share of"
)
PARTS = {
    "schedule": "tokens, pages",
    "batch": "build, commit",
    "launch": "tables, threads",
    "sample": "and tell who asked",
}


def lines(found: Profiled) -> Iterator[str]:
    """The table, the operation that takes longest first."""
    if not found.runs:
        yield f"{found.name}: {found.note}"
        return
    yield (
        f"{found.name}: {found.note}, {found.seconds * 1e3:.3f} ms (mean of the middle third of {found.runs}); "
        f"this machine reads {found.read / 1e9:.1f} GB/s and computes {found.fma / 1e9:.0f} GFLOP/s"
    )
    yield TITLE
    total, count = Traffic(), 0.0
    for each in sorted(found.operations, key=lambda operation: -operation.seconds):
        share = f"{each.roofline_share:5.0%} {each.bound}" if each.traffic.bytes else ""
        numbers = _numbers(each.traffic, each.seconds)
        yield _row(each.label, each.count, each.seconds, each.share, each.waited, numbers) + f"  {share}"
        total, count = total + each.traffic, count + each.count
    kernels = sum(each.seconds for each in found.operations)
    host = sum(found.host.values())
    yield _row("all operations", count, kernels, kernels / found.seconds, None, _numbers(total, kernels))
    yield _row("waiting", None, found.waiting, found.waiting / found.seconds, None, "")
    yield _row("host", None, host, host / found.seconds, None, "")
    for part, spent in found.host.items():
        yield _row(f"  {part} ({PARTS[part]})", None, spent, spent / found.seconds, None, "")
    yield _row(
        "step" if found.name.startswith("decode") else "prompt",
        None,
        found.seconds,
        1.0,
        None,
        _numbers(total, found.seconds),
    )


def _numbers(traffic: Traffic, seconds: float) -> str:
    if not traffic.bytes:
        return ""
    moved, computed = rate(traffic.bytes, seconds), rate(traffic.operations, seconds)
    return f"{traffic.bytes / 1e6:>10.3f}{moved:>8.1f}{traffic.operations / 1e6:>11.2f}{computed:>9.1f}"


def _row(label: str, count: float | None, seconds: float, share: float, waited: float | None, numbers: str) -> str:
    times = "" if count is None else f"{count:g}"
    waits = "" if waited is None else f"{waited * 1e3:.3f}"
    return f"{label:<34}{times:>6}{seconds * 1e3:>10.3f}{share:>9.1%}{waits:>10}{numbers}".rstrip()
