"""`kvist bench`: the workloads, where a step's time goes, or kernels alone; as a table, or as JSON."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvist.cli import flags
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.cli.terminal import Activity
    from kvist.config import SpeculativeConfig
    from kvist.llm import LLM


INSTEAD = "Instead"
"""The panel of flags that measure something else than speed."""

Workloads = Annotated[
    list[str] | None, typer.Argument(metavar="[WORKLOAD]...", help="Only these; all by default.", show_default=False)
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Where a step's time goes, by operation.", rich_help_panel=INSTEAD)
]
Kernels = Annotated[
    bool, typer.Option("--kernels", help="Each kernel alone, over shapes and contexts.", rich_help_panel=INSTEAD)
]
Quality = Annotated[
    bool,
    typer.Option("--quality", help="What each type of weights costs in quality.", rich_help_panel=INSTEAD),
]
Types = Annotated[
    str | None,
    typer.Option("--types", help="For --kernels, --quality: types of weights. [default: all]", rich_help_panel=INSTEAD),
]
Rows = Annotated[str, typer.Option("--rows", help="For --kernels: rows of a matmul.", rich_help_panel=INSTEAD)]
Sampling = Annotated[
    bool,
    typer.Option("--sampling", help="What choosing costs in a step of 64 sequences.", rich_help_panel=INSTEAD),
]
Uncached = Annotated[
    bool,
    typer.Option("--uncached", help="The same answers with and without the cache, by length.", rich_help_panel=INSTEAD),
]
Lengths = Annotated[str, typer.Option("--lengths", help="For --uncached: numbers of tokens.", rich_help_panel=INSTEAD)]


def bench(
    model: flags.Model,
    workloads: Workloads = None,
    profile: Profile = False,
    kernels: Kernels = False,
    types: Types = None,
    rows: Rows = "1,2,4,8,16,64,512",
    quality: Quality = False,
    sampling: Sampling = False,
    uncached: Uncached = False,
    lengths: Lengths = "10,30,100,300,1000",
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=100, help="Repetitions of each workload; medians count.")
    ] = 3,
    weights: flags.Weights = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    kv_cache_skip_layers: flags.KvCacheSkipLayers = None,
    policy: flags.Policy = None,
    page_size: flags.PageSize = None,
    kv_cache_memory_bytes: flags.KvCacheMemory = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = None,
    threads: flags.Threads = None,
    speculative_config: flags.Speculative = None,
    json: flags.Json = False,
) -> None:
    """Measure tokens per second, and the share of this machine's limits. `kvist bench serve` measures a server."""
    from kvist.cli.terminal import Activity
    from kvist.llm import LLM

    if profile + kernels + quality + sampling + uncached > 1:
        raise UsageError(
            "--profile, --kernels, --quality, --sampling and --uncached are measurements of their own: give one"
        )
    other = kernels or quality or sampling or uncached
    names, weight_types = _names(workloads or [], profile, other), _types(types, quality)
    drafting = _drafting(speculative_config, profile or other)
    row_counts = flags.whole_numbers(rows, "rows")
    counts = flags.whole_numbers(lengths, "lengths")
    options = flags.engine_options(
        weights=weights, kv_cache_dtype=kv_cache_dtype, kv_cache_skip_layers=kv_cache_skip_layers, policy=policy,
        page_size=page_size, threads=threads, kv_cache_memory_bytes=kv_cache_memory_bytes,
        max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip
    if quality:
        with Activity("loading the model") as activity:
            _quality(model, weight_types, options, activity, json)
        return
    with Activity("loading the model") as activity:
        llm = LLM(model, progress=activity.report, prefault=True, **options)
    with llm, Activity("measuring") as activity:
        if uncached:
            _savings(llm, counts, activity, json)
        elif profile:
            _profile(llm, model, names, activity, json)
        elif sampling:
            _sampling(llm, model, activity, json)
        elif kernels:
            _kernels(llm, model, weight_types, row_counts, activity, json)
        else:
            _workloads(llm, model, names, repeats, drafting, activity, json)


def _names(given: list[str], profile: bool, none: bool) -> tuple[str, ...]:
    """The workloads asked for, checked before a model is loaded."""
    if none and given:
        raise UsageError(f"workload {given[0]} goes with --profile or alone, not with another measurement")
    if profile:
        from kvist.bench.profile import check_names

        return check_names(given)
    from kvist.bench.bench import check_names as check

    return check(given)


def _types(given: str | None, quality: bool) -> tuple[str, ...]:
    names = [name.strip() for name in given.split(",")] if given is not None else []
    if quality:
        from kvist.bench.quality import check_types as check

        return check(names)
    from kvist.bench.kernels import check_types

    return check_types(names)


def _quality(model: str, types: tuple[str, ...], options: dict[str, Any], activity: Activity, as_json: bool) -> None:
    from kvist.bench.quality import qualities

    found = []
    if not as_json:
        activity.line(f"{'weights':<9}{'MB':>8}{'perplexity':>13}{'divergence':>13}{'same likeliest token':>23}")
    for one in qualities(model, types, lambda name: activity.report(name, 0, 0), **options):
        found.append(one.as_json())
        if not as_json:
            size, same = f"{one.weights_bytes / 1e6:.0f}", f"{one.agreement:.2%}"
            activity.line(f"{one.weights:<9}{size:>8}{one.perplexity:>13.4f}{one.divergence:>13.3g}{same:>23}")
    if as_json:
        print(json_module.dumps({"model": model, "quality": found}))
    else:
        activity.line(f"divergence: from float32 weights, nats a token, mean over {found[0]['tokens']} tokens of prose")


def _profile(llm: LLM, model: str, names: tuple[str, ...], activity: Activity, as_json: bool) -> None:
    from kvist.bench.profile import profile
    from kvist.bench.profile_table import lines
    from kvist.bench.roofline import Roofline, cost_of

    found = []
    roofline = Roofline(llm.backend.team, cost_of(llm.model, llm.engine).step_bytes)
    for one in profile(llm, roofline, names, lambda name: activity.report(name, 0, 0)):
        found.append(one.as_json())
        for line in [] if as_json else [*lines(one), ""]:
            activity.line(line)
    if as_json:
        print(json_module.dumps({**_circumstances(llm, model), "profiles": found}))
        return
    _tell(llm, model, activity)


def _kernels(llm: LLM, model: str, types: tuple[str, ...], rows: list[int], activity: Activity, as_json: bool) -> None:
    from kvist.bench.kernel_table import TITLE, line
    from kvist.bench.kernels import kernels

    found = []
    roofline, cases = kernels(llm, types, rows, lambda name: activity.report(name, 0, 0))
    if not as_json:
        activity.line(TITLE)
    for case in cases:
        found.append(case.as_json())
        if not as_json:
            activity.line(line(case))
    limits = roofline.as_json()
    if as_json:
        print(json_module.dumps({**_circumstances(llm, model), "roofline": limits, "kernels": found}))
        return
    activity.line(
        f"this machine reads {limits['read_gb_s']} GB/s and computes {limits['fma_gflops']} GFLOP/s; random weights "
        "and pages; from memory: every copy has its own, and the caches are emptied between runs"
    )
    _tell(llm, model, activity)


def _sampling(llm: LLM, model: str, activity: Activity, as_json: bool) -> None:
    from kvist.bench.sampling import choosings

    found = []
    if not as_json:
        activity.line(f"{'choosing by':<44}{'ms':>8}{'of a step of':>14}{'share':>8}")
    for one in choosings(llm, lambda name: activity.report(name, 0, 0)):
        found.append(one.as_json())
        if not as_json:
            activity.line(f"{one.way:<44}{one.choosing * 1e3:>8.2f}{one.step * 1e3:>11.1f} ms{one.share:>8.1%}")
    if as_json:
        print(json_module.dumps({**_circumstances(llm, model), "sampling": found}))
        return
    _tell(llm, model, activity)


def _circumstances(llm: LLM, model: str) -> dict[str, Any]:
    from kvist.bench.machine import commit

    return {
        "model": model, "threads": llm.backend.threads, "commit": commit(), "weights": llm.model.weights,
        "kv_cache_dtype": llm.engine.limits.kv_cache_dtype,
    }  # fmt: skip


def _tell(llm: LLM, model: str, activity: Activity) -> None:
    it = _circumstances(llm, model)
    held = f"{it['weights']} weights, {it['kv_cache_dtype']} cache"
    activity.line(f"{model}, {held}, {it['threads']} threads, commit {it['commit']}")


def _drafting(given: str | None, none: bool) -> SpeculativeConfig | None:
    """What the workloads of speculation draft with, checked before a model is loaded."""
    from kvist.config import SpeculativeConfig

    if given is not None and none:
        raise UsageError("--speculative-config goes with the workloads, not with other measurements")
    return None if given is None else SpeculativeConfig.from_options(flags.speculative_options(given))


def _workloads(
    llm: LLM,
    model: str,
    names: tuple[str, ...],
    repeats: int,
    drafting: SpeculativeConfig | None,
    activity: Activity,
    as_json: bool,
) -> None:
    from kvist.bench.bench import bench as measure

    report, results = measure(
        llm, model, names=names, repeats=repeats, drafting=drafting, starting=lambda name: activity.report(name, 0, 0)
    )
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
