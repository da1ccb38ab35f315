"""A report as pictures: quality against bytes, and divergence against position. Needs matplotlib (`kvist[eval]`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kvist.errors import UsageError
from kvist.eval.method import Method

NAMES = ("quality.svg", "position.svg")

STYLE = {
    "figure.figsize": (9, 4.5), "figure.constrained_layout.use": True, "font.size": 10, "axes.grid": True,
    "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "kvist",
}  # fmt: skip


def require() -> Any:
    """matplotlib, drawing into files. Raises UsageError where it is not installed."""
    try:
        matplotlib = import_module("matplotlib")
        matplotlib.use("svg")
        return import_module("matplotlib.pyplot")
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'kvist[eval]', or leave --plots out") from error


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write the pictures of a report's JSON into a folder, which is made; the files."""
    pyplot = require()
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in NAMES]
    with pyplot.rc_context(STYLE):
        for file, picture in zip(files, (_quality, _position), strict=True):
            figure = pyplot.figure()
            picture(found, figure)
            figure.savefig(file, metadata={"Date": None})
            pyplot.close(figure)
    return files


def draw_stream(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write the picture of a stream's report: perplexity along the text, and the bytes that are held."""
    pyplot = require()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stream.svg"
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure()
        quality, memory = figure.subplots(1, 2, sharex=True)
        for one in found["methods"]:
            ends, name = [part["end"] for part in one["parts"]], _name(one)
            quality.plot(ends, [part["perplexity"] for part in one["parts"]], "o-", label=name)
            memory.plot(ends, [part["live_bytes"] / 1e6 for part in one["parts"]], "o-", label=name)
        fresh = found["methods"][0]["parts"]
        quality.plot([p["end"] for p in fresh], [p["fresh"] for p in fresh], "k--", linewidth=0.8, label="fresh")
        quality.set_yscale("log")
        quality.set_ylabel("perplexity of each part")
        memory.set_ylim(bottom=0)
        memory.set_ylabel("live pages (MB)")
        quality.legend()
        for axes in (quality, memory):
            axes.set_xlabel("tokens read")
        figure.suptitle(f"{found['model']}: a stream of {found['tokens']:,} tokens")
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)
    return [file]


def _quality(found: dict[str, Any], figure: Any) -> None:
    """Perplexity change, with its interval, and mean divergence, both against bytes of a position.

    What is exact has no place on a logarithmic axis.
    """
    change, divergence = figure.subplots(1, 2, sharex=True)
    for number, one in enumerate(found["methods"]):
        percent = 100 * one["perplexity_change"]
        reach = _reach(percent, [100 * bound for bound in one["perplexity_change_interval"]])
        size, look = one["live_bytes_per_token"] / 1000, {"fmt": "o", "capsize": 4, "color": f"C{number % 10}"}
        change.errorbar(size, percent, yerr=reach, label=_name(one), **look)
        if one["kld_mean"] > 0:
            divergence.errorbar(size, one["kld_mean"], yerr=_reach(one["kld_mean"], one["kld_mean_interval"]), **look)
    change.axhline(0, color="black", linewidth=0.8)
    change.set_ylabel("change of perplexity (%)")
    change.legend()
    divergence.set_yscale("log")
    divergence.set_ylabel("mean KL divergence from float32 (nats)")
    for axes in (change, divergence):
        axes.set_xlim(left=0)
        axes.set_xlabel("allocated bytes per token (kB)")
    figure.suptitle(f"{found['model']}: quality against memory, with 95% intervals")


def _reach(middle: float, interval: Sequence[float]) -> list[list[float]]:
    """An interval as matplotlib wants it: how far it goes down and up."""
    return [[max(middle - interval[0], 0)], [max(interval[1] - middle, 0)]]


def _position(found: dict[str, Any], figure: Any) -> None:
    """Mean divergence against position; what is exact has no place on a logarithmic axis."""
    axes = figure.subplots()
    for number, one in enumerate(found["methods"]):
        buckets = [bucket for bucket in one["by_position"] if bucket["kld_mean"] > 0]
        if buckets:
            middles = [(bucket["from"] + bucket["to"]) / 2 for bucket in buckets]
            divergences = [bucket["kld_mean"] for bucket in buckets]
            axes.plot(middles, divergences, "o-", color=f"C{number % 10}", label=_name(one))
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("position (tokens)")
    axes.set_ylabel("mean KL divergence from float32 (nats)")
    axes.set_title(f"{found['model']}: divergence against position")
    if axes.lines:
        axes.legend()


def _name(one: dict[str, Any]) -> str:
    return Method(one["codec"], one["policy"]).name
