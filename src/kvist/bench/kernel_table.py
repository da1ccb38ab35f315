"""Measured kernels as a table for people."""

from __future__ import annotations

from kvist.bench.kernels import Measured
from kvist.bench.profile import rate

TITLE = (
    f"{'kernel':<13}{'shape':<26}{'type':<6}{'rows':>5}{'context':>8}{'copies':>7}  {'from':<7}"
    f"{'us':>11}{'GB/s':>8}{'GFLOP/s':>9}  share of"
)


def line(each: Measured) -> str:
    """One case."""
    source, context = "memory" if each.cold else "cache", each.context or ""
    return (
        f"{each.kernel:<13}{each.shape:<26}{each.dtype:<6}{each.rows:>5}{context:>8}{each.copies:>7}  {source:<7}"
        f"{each.seconds * 1e6:>11.2f}{rate(each.traffic.bytes, each.seconds):>8.1f}"
        f"{rate(each.traffic.operations, each.seconds):>9.1f}  {each.roofline_share:5.0%} {each.bound}"
    )
