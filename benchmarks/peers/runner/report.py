"""Medians and ratios, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from runner.engines import ENGINES, EngineSpec
from runner.measure import BUSY
from runner.results import Results
from runner.workloads import ROWS, Row


def values(results: Results, engine: str, row: Row) -> list[float]:
    """What an engine reached in a row, a value a round: tokens per second or seconds."""
    found = (row.value(measurement) for measurement in results.of(engine, row.case))
    return [value for value in found if value is not None]


def ratio(results: Results, spec: EngineSpec, row: Row) -> float | None:
    """How many times faster the engine's baseline is, median by median; None if one of them is missing."""
    own, base = values(results, spec.name, row), values(results, spec.baseline, row)
    if not own or not base:
        return None
    return median(base) / median(own) if row.faster_is_more else median(own) / median(base)


def shown(value: float, row: Row) -> str:
    """Three digits and a unit: tokens/s, s or ms."""
    if row.faster_is_more:
        return f"{value:.0f} tok/s" if value >= 100 else f"{value:.1f} tok/s"
    return f"{value:.2f} s" if value >= 0.5 else f"{value * 1e3:.0f} ms"


def measured(results: Results, baseline: str) -> list[EngineSpec]:
    """The engines with this baseline that were measured or tried, in the table's order."""
    tried = {m["engine"] for m in results.data["measurements"]} | set(results.data["failures"])
    return [spec for spec in ENGINES if spec.baseline == baseline and spec.name in tried]


def report(results: Results) -> str:
    """The tables, 16-bit and quantised weights apart, and what a reader must know to judge them."""
    settings = results.data["settings"]
    parts = [f"{settings['model']}, {settings['threads']} threads, {settings['machine']}"]
    if settings["quick"]:
        parts.append("**A quick run: one short round. Not for comparing.**")
    disturbed = [m for m in results.data["measurements"] if (m.get("others") or 0) > BUSY]
    if disturbed:
        worst = max(m["others"] for m in disturbed)
        parts.append(
            f"**Others used the machine in {len(disturbed)} of {len(results.data['measurements'])} measurements, up to "
            f"{worst:.1f} cores. It slows some engines down far more than others: measure on a quiet machine.**"
        )
    for baseline, heading in (("kvist", "16-bit weights"), ("kvist-q4_1", "Quantised weights")):
        engines = measured(results, baseline)
        if engines:
            parts += [f"## {heading}", table(results, engines), "Lowest to highest of the rounds:"]
            parts += [spread(results, engines)]
    parts += ["## Engines", abouts(results)]
    if results.data["failures"]:
        parts += ["## Not measured", failures(results)]
    return "\n\n".join(parts) + "\n"


def table(results: Results, engines: Sequence[EngineSpec]) -> str:
    """Medians; in brackets, how many times faster the baseline is."""

    def cell(spec: EngineSpec, row: Row) -> str:
        found = values(results, spec.name, row)
        if not found:
            return "-"
        times = ratio(results, spec, row)
        told = "" if times is None or spec.name == spec.baseline else f" ({times:.2f}x)"
        return shown(median(found), row) + told

    return _markdown(results, engines, cell)


def spread(results: Results, engines: Sequence[EngineSpec]) -> str:
    """The extremes of the same cells."""

    def cell(spec: EngineSpec, row: Row) -> str:
        found = values(results, spec.name, row)
        if not found:
            return "-"
        return shown(max(found), row) if len(found) == 1 else f"{shown(min(found), row)} to {shown(max(found), row)}"

    return _markdown(results, engines, cell)


def _markdown(results: Results, engines: Sequence[EngineSpec], cell: Any) -> str:
    rows = [row for row in ROWS if any(values(results, spec.name, row) for spec in engines)]
    lines = ["| work | " + " | ".join(spec.title for spec in engines) + " |", "|---|" + "---:|" * len(engines)]
    lines += [f"| {row.title} | " + " | ".join(cell(spec, row) for spec in engines) + " |" for row in rows]
    return "\n".join(lines)


def abouts(results: Results) -> str:
    """What each engine says of itself, and how often its first token was the one kvist chose."""
    lines = []
    for spec in ENGINES:
        about = results.data["engines"].get(spec.name)
        if about is None:
            continue
        told = ", ".join(f"{name} {value}" for name, value in about.items() if name != "build")
        same, compared = agreement(results, spec)
        agrees = f"; first token as {spec.baseline}'s in {same} of {compared}" if compared else ""
        lines.append(f"- {spec.title} (`{spec.name}`): {told}{agrees}")
    return "\n".join(lines)


def agreement(results: Results, spec: EngineSpec) -> tuple[int, int]:
    """In how many measurements the first token was the baseline's, of how many that both have.

    Engines round differently, so near ties fall differently; a wrong conversion would agree nearly never.
    """
    if spec.name == spec.baseline:
        return 0, 0
    mine = {(m["case"], m["round"]): m["tokens"][0] for m in results.data["measurements"] if m["engine"] == spec.name}
    base = {
        (m["case"], m["round"]): m["tokens"][0] for m in results.data["measurements"] if m["engine"] == spec.baseline
    }
    both = mine.keys() & base.keys()
    return sum(mine[key] == base[key] for key in both), len(both)


def failures(results: Results) -> str:
    """One line for each engine and reason."""
    lines = []
    for engine, cases in results.data["failures"].items():
        for reason in dict.fromkeys(cases.values()):
            which = [case for case, why in cases.items() if why == reason]
            lines.append(f"- `{engine}`, {', '.join(which)}: {reason}")
    return "\n".join(lines)
