"""`kvist bench`: the workloads as a table, or as JSON."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from kvist.cli import flags

if TYPE_CHECKING:
    from kvist.cli.terminal import Activity
    from kvist.llm import LLM


def bench(
    model: flags.Model,
    uncached: Annotated[
        bool, typer.Option("--uncached", help="Instead: the same answers with and without the cache, by length.")
    ] = False,
    lengths: Annotated[
        str, typer.Option("--lengths", help="For --uncached: numbers of tokens.")
    ] = "10,30,100,300,1000",
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=100, help="Repetitions of each workload; medians count.")
    ] = 3,
    weights: flags.Weights = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    page_size: flags.PageSize = None,
    kv_cache_memory_bytes: flags.KvCacheMemory = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = None,
    threads: flags.Threads = None,
    json: flags.Json = False,
) -> None:
    """Measure tokens per second, and what share that is of the machine's limits, measured in the same run."""
    from kvist.cli.terminal import Activity
    from kvist.llm import LLM

    counts = flags.whole_numbers(lengths, "lengths")
    options = flags.engine_options(
        weights=weights, kv_cache_dtype=kv_cache_dtype, page_size=page_size, threads=threads,
        kv_cache_memory_bytes=kv_cache_memory_bytes, max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip
    with Activity("loading the model") as activity:
        llm = LLM(model, progress=activity.report, **options)
    with llm, Activity("measuring") as activity:
        if uncached:
            _savings(llm, counts, activity, json)
        else:
            _workloads(llm, model, repeats, activity, json)


def _workloads(llm: LLM, model: str, repeats: int, activity: Activity, as_json: bool) -> None:
    from kvist.bench.bench import bench as measure

    report, results = measure(llm, model, repeats=repeats, starting=lambda name: activity.report(name, 0, 0))
    if not as_json:
        activity.line(f"{'workload':<20}{'tokens/s':>10}{'ms':>11}  share of")
    for result in results:
        if as_json:
            continue
        if result.seconds is None:
            activity.line(f"{result.name:<20}{'-':>10}{'-':>11}  {result.note}")
            continue
        share = "" if result.roofline_share is None else f"{result.roofline_share:5.0%} {result.bound}"
        activity.line(
            f"{result.name:<20}{result.tokens_per_s:>10.1f}{result.seconds * 1e3:>11.2f}  {share}{result.note}"
        )
    found = report.as_json()
    if as_json:
        print(json_module.dumps(found))
        return
    limits, memory = found["roofline"], found["memory"]
    activity.line(
        f"{model}, {report.weights} weights, {report.kv_cache_dtype} cache, {report.threads} threads, "
        f"commit {found['commit']}: "
        f"this machine reads {limits['read_gb_s']} GB/s and computes {limits['fma_gflops']} GFLOP/s; "
        f"peak memory {memory['peak_rss_bytes'] / 1e6:.0f} MB (weights {memory['weights_bytes'] / 1e6:.0f} MB)"
    )


def _savings(llm: LLM, lengths: list[int], activity: Activity, as_json: bool) -> None:
    from kvist.bench.uncached import savings

    rows = []
    if not as_json:
        titles = f"{'projections without':>21}{'with':>8}{'ratio':>9}{'seconds without':>17}{'with':>9}{'ratio':>8}"
        activity.line(f"{'tokens':>7}{titles}")
    for row in savings(llm, lengths, lambda name: activity.report(name, 0, 0)):
        rows.append(row.as_json())
        if not as_json:
            activity.line(
                f"{row.tokens:>7}{row.uncached_projections:>21,}{row.cached_projections:>8,}{row.counted_ratio:>8.1f}x"
                f"{row.uncached_seconds:>17.2f}{row.cached_seconds:>9.3f}{row.measured_ratio:>7.1f}x"
            )
    if as_json:
        print(json_module.dumps({"savings": rows}))
