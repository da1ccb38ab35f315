"""`kvist eval`: what ways to keep the cache cost in quality, memory and time; a table, JSON, pictures."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvist.cli import flags
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.llm import LLM

Codecs = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-dtype",
        help="Codecs to measure, or to choose from, separated by commas; k=int5,v=int4 for K and V apart. "
        "[default: one of 8.5, 5.5 and 4.5 bits; with --choose all that go with the model and the page size]",
        show_default=False,
    ),
]
Policies = Annotated[str, typer.Option("--policy", help="Policies to measure with each codec, separated by commas.")]
Quick = Annotated[
    bool, typer.Option("--quick/--full", help="Two minutes on two cores, or hours and longer texts and contexts.")
]
Tokens = Annotated[int | None, typer.Option("--tokens", min=1, help="Positions of a document at most.")]
Documents = Annotated[int | None, typer.Option("--documents", min=1, max=100_000, help="How many documents.")]
Passkeys = Annotated[
    int | None, typer.Option("--passkeys", min=0, max=1000, help="Pass keys of each length and depth; 0 for none.")
]
Plots = Annotated[Path | None, typer.Option("--plots", metavar="DIR", help="Draw pictures into this folder.")]
Stream = Annotated[
    int | None,
    typer.Option("--stream", min=1000, max=1_000_000, metavar="N", help="Read N tokens on end under --policy instead."),
]
Choose = Annotated[
    str | None,
    typer.Option(
        "--choose",
        metavar="BITS",
        help="Choose a codec for each layer's K and V: the best for 4.5bits a number, say.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where --choose writes its choice. [default: codecs.json]"),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="FILE", help="Keep results here, and measure only what is not there yet."),
]


def eval(
    model: flags.Model,
    kv_cache_dtype: Codecs = None,
    policy: Policies = "full",
    quick: Quick = True,
    tokens: Tokens = None,
    documents: Documents = None,
    passkeys: Passkeys = None,
    plots: Plots = None,
    resume: Resume = None,
    stream: Stream = None,
    choose: Choose = None,
    output: Output = None,
    kv_cache_skip_layers: flags.KvCacheSkipLayers = None,
    weights: flags.Weights = None,
    page_size: flags.PageSize = None,
    threads: flags.Threads = None,
    json: flags.Json = False,
) -> None:
    """Measure ways to keep the cache against uncached float32: quality, bytes and speed, on text and pass keys."""
    from kvist.cache.codec import CODECS, FLOATS
    from kvist.cli.terminal import Activity
    from kvist.eval.choose import Wish, compared
    from kvist.eval.evaluate import Evaluation
    from kvist.eval.method import USUAL, methods, names
    from kvist.eval.plan import FULL, QUICK
    from kvist.eval.plots import draw, require
    from kvist.eval.sensitivity import usable
    from kvist.eval.store import Store
    from kvist.eval.table import lines
    from kvist.llm import LLM
    from kvist.models.hub import resolve

    usual = USUAL if choose is None else CODECS
    wanted = methods(usual if kv_cache_dtype is None else names(kv_cache_dtype), names(policy))
    wish = None if choose is None else Wish.parse(choose, output or Path("codecs.json"), wanted)
    _check_choose(choose, output, policy, stream)
    if plots is not None:
        require()
    path = resolve(model)
    options = flags.engine_options(
        kv_cache_skip_layers=kv_cache_skip_layers, weights=weights, page_size=page_size, threads=threads
    )
    with Store(resume) as store:
        with Activity("loading the model") as activity:
            llm = LLM(path, progress=activity.report, **options)
        if stream is not None:
            with llm:
                _stream(llm, model, kv_cache_dtype or "f16", policy, stream, plots, json)
            return
        with llm, Activity("choosing text") as activity:
            longest = llm.engine.limits.max_model_len
            plan = (QUICK if quick else FULL).asking(longest, tokens, documents, passkeys)
            if kv_cache_dtype is None:
                fitting = {*FLOATS, *usable(llm)}
                wanted = tuple(method for method in wanted if fitting.issuperset(method.codecs))
            given = llm, path, plan, store, activity.report
            wanted, told = (wanted, None) if wish is None else compared(*given, model, wish, quick=quick)
            found = {**Evaluation(llm, path, wanted, plan, store, activity.report).run(model).as_json(), "choice": told}
    _tell(found, lines(found), json, draw(found, plots) if plots is not None else ())


def _check_choose(choose: str | None, output: Path | None, policy: str, stream: int | None) -> None:
    if choose is None and output is not None:
        raise UsageError("--output is where --choose writes its choice: give that as well")
    if choose is not None and (stream is not None or policy != "full"):
        raise UsageError("--choose measures layers that see all positions: leave --stream and --policy out")


def _stream(llm: LLM, model: str, codecs: str, policies: str, tokens: int, plots: Path | None, json: bool) -> None:
    """A text far longer than the context, in constant memory."""
    from kvist.cli.terminal import Activity
    from kvist.eval.method import Method, names
    from kvist.eval.plots import draw_stream
    from kvist.eval.stream import stream_lines, streams

    methods = [Method(codec, policy) for policy in names(policies) for codec in names(codecs)]
    with Activity("reading a stream") as activity:
        found = streams(llm, model, methods, tokens, activity.report)
    _tell(found, stream_lines(found), json, draw_stream(found, plots) if plots is not None else ())


def _tell(found: dict[str, Any], lines: Iterable[str], json: bool, pictures: Iterable[Path]) -> None:
    """A report, as JSON or as lines, and where its pictures are."""
    for line in [json_module.dumps(found)] if json else lines:
        print(line)
    for file in pictures:
        typer.echo(f"wrote {file}", err=True)
