"""The table as a picture: one panel a row, one bar an engine. SVG that follows the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median

from runner.report import measured, values
from runner.results import Results
from runner.workloads import CASES, ROWS, Row

WIDTH, MARGIN, COLUMNS = 960, 24, 2
NAMES, NUMBERS = 132, 64  # pixels for the engines' names and for the numbers behind the bars
HEAD, BAR, GAP = 46, 14, 7

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #22211f; }
.title { font-weight: 600; font-size: 13px; }
.strong { font-weight: 600; }
.soft { fill: #66645e; font-size: 11px; }
.paper { fill: #fcfcfb; }
.own { fill: #2a78d6; }
.peer { fill: #bdbab1; }
line { stroke: #d6d3cb; }
@media (prefers-color-scheme: dark) {
  text { fill: #f1efe9; }
  .soft { fill: #a9a69d; }
  .paper { fill: #1a1a19; }
  .own { fill: #4a94ea; }
  .peer { fill: #5e5c56; }
  line { stroke: #45443f; }
}
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One row of the table: (engine's title, value, whether it is kvist) from top to bottom."""

    title: str
    unit: str
    bars: tuple[tuple[str, float, bool], ...]


def picture(results: Results, folder: Path) -> None:
    """Write `peers.svg` (16-bit weights) and `peers-quantised.svg`, each where there is something to compare."""
    for baseline, name in (("kvist", "peers.svg"), ("kvist-q4_1", "peers-quantised.svg")):
        panels = panels_of(results, baseline)
        if panels:
            (folder / name).write_text(drawing(panels))


def panels_of(results: Results, baseline: str) -> list[Panel]:
    """The rows that at least two engines have."""
    panels = []
    for row in ROWS:
        unit, convert = _speed(row)
        bars = []
        for spec in measured(results, baseline):
            found = values(results, spec.name, row)
            if found:
                bars.append((spec.title, convert(median(found)), spec.name == baseline))
        if len(bars) > 1:
            panels.append(Panel(row.title, unit, tuple(bars)))
    return panels


def _speed(row: Row) -> tuple[str, Callable[[float], float]]:
    """Every panel but the first token's shows a speed, so that a longer bar is the better one."""
    if row.faster_is_more:
        return "tokens/s", lambda rate: rate
    if row.quantity == "again":
        return "ms, shorter is better", lambda seconds: seconds * 1e3
    tokens = next(case.context for case in CASES if case.name == row.case)
    return "tokens/s", lambda seconds: tokens / seconds


def drawing(panels: list[Panel]) -> str:
    """The panels in columns, each line of panels as high as its highest one."""
    lines = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    parts, y = [], MARGIN
    width = (WIDTH - MARGIN * (COLUMNS + 1)) // COLUMNS
    for line in lines:
        for column, panel in enumerate(line):
            parts.append(_panel(panel, MARGIN + column * (width + MARGIN), y, width))
        y += HEAD + max(len(panel.bars) for panel in line) * (BAR + GAP) + MARGIN // 2
    label = "Speed of kvist and its peers, one panel a workload"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + MARGIN // 2}" '
        f'viewBox="0 0 {WIDTH} {y + MARGIN // 2}" role="img" aria-label="{label}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" rx="8" class="paper"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(panel: Panel, x: int, y: int, width: int) -> str:
    longest = max(value for _, value, _ in panel.bars)
    room = width - NAMES - NUMBERS
    parts = [
        f'<text class="title" x="{x}" y="{y + 14}">{escape(panel.title)}</text>',
        f'<text class="soft" x="{x}" y="{y + 30}">{escape(panel.unit)}</text>',
    ]
    for i, (name, value, own) in enumerate(panel.bars):
        top, length = y + HEAD + i * (BAR + GAP) - 8, max(value / longest * room, 1)
        strong = ' class="strong"' if own else ""
        parts += [
            f'<text{strong} x="{x}" y="{top + 11}">{escape(name)}</text>',
            f'<rect class="{"own" if own else "peer"}" x="{x + NAMES}" y="{top}" width="{length:.1f}" '
            f'height="{BAR}" rx="2"/>',
            f'<text{strong} x="{x + NAMES + length + 6:.1f}" y="{top + 11}">{_digits(value)}</text>',
        ]
    bottom = y + HEAD + len(panel.bars) * (BAR + GAP) - 11
    parts.append(f'<line x1="{x + NAMES - 0.5}" x2="{x + NAMES - 0.5}" y1="{y + HEAD - 12}" y2="{bottom}"/>')
    return "\n".join(parts)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
