"""The shares of the machine's limits that kvist reaches in every family, by random models of like size.

python benchmarks/families/run.py [FAMILY ...] [--repeats 2] [--profile] [--out FILE] [--keep DIR]

Run it with a Python that has kvist and its test tools (the checkout's .venv). README.md beside this file says what is
measured and how.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from shapes import SHAPES

from kvist import LLM
from kvist.bench.bench import bench
from kvist.bench.machine import commit
from kvist.bench.profile import profile
from kvist.bench.profile_table import lines
from tiny import Tiny, tensors, write_folder

WORKLOADS = ("decode_1", "decode_16", "decode_64", "prefill_2048")
REFERENCE = next(iter(SHAPES))
SHORT = 0.95  # below this part of the reference's share a cell is marked


def say(what: str) -> None:
    """Progress, which is no result."""
    print(what, file=sys.stderr, flush=True)


def written(shape: Tiny, folder: Path) -> tuple[Path, int]:
    """The model's folder, its weights as float16, and how many parameters it has."""
    weights = {name: array.astype(np.float16) for name, array in tensors(shape).items()}
    return write_folder(shape, folder / shape.name, weights), sum(array.size for array in weights.values())


def measured(shape: Tiny, folder: Path, repeats: int, profiles: bool) -> dict[str, Any]:
    """One family's row."""
    say(f"{shape.name}: writing")
    path, parameters = written(shape, folder)
    with LLM(path, prefault=True) as llm:
        report, results = bench(
            llm, shape.name, names=WORKLOADS, repeats=repeats, starting=lambda name: say(f"{shape.name}: {name}")
        )
        for _ in results:
            pass
        row = report.as_json()
        row = {"family": shape.name, "parameters": parameters, "roofline": row["roofline"], "results": row["results"]}
        if profiles:
            say(f"{shape.name}: profiles")
            found = list(profile(llm, report.roofline, WORKLOADS))
            row["profiles"] = [one.as_json() for one in found]
            say("\n".join(line for one in found for line in [*lines(one), ""]))
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a family; "<" marks a share that is clearly below the reference's, where that is among the rows."""
    text = [f"{'family':<16}{'parameters':>12}" + "".join(f"{name:>16}" for name in WORKLOADS)]
    reference = {r["name"]: r["roofline_share"] for r in rows[0]["results"] if rows[0]["family"] == REFERENCE}
    for row in rows:
        cells = []
        for result in row["results"]:
            share = result["roofline_share"]
            mark = "<" if share < SHORT * reference.get(result["name"], 0) else " "
            cells.append(f"{share:>9.0%} {result['bound']:<5}{mark}")
        text.append(f"{row['family']:<16}{row['parameters'] / 1e6:>10.0f} M" + "".join(cells))
    return "\n".join(text)


def main(arguments: Sequence[str]) -> None:
    """Measure the families that are asked for, and print their table."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    asked.add_argument("families", nargs="*", metavar="FAMILY", help=f"only these: {', '.join(SHAPES)}")
    asked.add_argument("--repeats", type=int, default=2, help="of each workload; medians count")
    asked.add_argument("--profile", action="store_true", help="also where the time goes, on standard error")
    asked.add_argument("--out", type=Path, metavar="FILE", help="also all numbers, as JSON")
    asked.add_argument("--keep", type=Path, metavar="DIR", help="leave the models there, for `kvist bench DIR/FAMILY`")
    given = asked.parse_args(arguments)
    if unknown := set(given.families) - SHAPES.keys():
        asked.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(SHAPES)}")
    rows = []
    for name in given.families or SHAPES:
        with tempfile.TemporaryDirectory() if given.keep is None else nullcontext(given.keep) as folder:
            rows.append(measured(SHAPES[name], Path(folder), given.repeats, given.profile))
    print(table(rows))
    if given.out is not None:
        given.out.write_text(json.dumps({"commit": commit(), "families": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
