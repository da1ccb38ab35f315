"""The command: what is asked for, then set up, measure, report."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from runner.engines import chosen
from runner.failure import PeerError
from runner.measure import measure
from runner.plot import picture
from runner.report import report
from runner.results import Results
from runner.setup import Setup, pulled
from runner.workloads import cases_of, chosen_rows

CHECKOUT = Path(__file__).parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvist" / "peers"


def main(given: list[str] | None = None) -> int:
    """Run; the exit status: 2 for a wrong argument, 0 also when a peer failed (the table says so)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engines are ended
    options = arguments(given)
    work = options.work.resolve()
    out = (options.out or work / ("results-quick" if options.quick else "results")).resolve()
    try:
        engines, rows = chosen(options.only), chosen_rows(options.rows, options.quick)
        model = options.model.resolve() if options.model else pulled(options.kvist, work / "logs")
        results = Results(out / "results.json", settings(options, model), fresh=options.fresh)
    except (ValueError, PeerError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    cases = cases_of(rows, options.quick)
    if options.fresh:
        results.forget({spec.name for spec in engines}, {case.name for case in cases})
    setup = Setup(model, options.kvist.resolve(), work, options.threads)
    setup.prepare(engines)
    try:
        measure(engines, cases, options.repeats or (1 if options.quick else 3), results, setup.start)
    finally:
        text = report(results)
        (out / "table.md").write_text(text)
        picture(results, out)
        print(text)
    return 0


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="run.py", description="The same work on kvist and its peers, interleaved.")
    parser.add_argument("--repeats", type=int, help="rounds; medians count (default 3, with --quick 1)")
    parser.add_argument("--only", metavar="ENGINES", help="comma-separated names of engines")
    parser.add_argument("--rows", metavar="ROWS", help="comma-separated names of rows")
    parser.add_argument("--quick", action="store_true", help="one round, a quarter of the tokens, no 8,000-token rows")
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores, of every engine (default 2)")
    parser.add_argument("--work", type=Path, default=CACHE, help="folder of environments and converted weights")
    parser.add_argument("--out", type=Path, help="folder of the results (default: results in the work folder)")
    parser.add_argument("--fresh", action="store_true", help="measure again what --only and --rows choose")
    parser.add_argument("--model", type=Path, help="GGUF file (default: smollm2, pulled if it is missing)")
    parser.add_argument("--kvist", type=Path, default=CHECKOUT, help="checkout of kvist to measure (default: this one)")
    return parser.parse_args(given)


def settings(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """What must be the same for measurements to be comparable."""
    return {"model": model.name, "threads": options.threads, "quick": options.quick, "machine": machine()}


def machine() -> str:
    """The processor, its cores and the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
