"""`kvist eval`: what ways to keep the cache cost in quality, memory and time; a table, JSON, pictures."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvist.cli import flags
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.eval.method import Method
    from kvist.llm import LLM

MOST_SEQUENCES = 64

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
Speed = Annotated[
    int | None,
    typer.Option("--speed", min=50, max=1_000_000, metavar="N", help="Only time steps, at contexts up to N tokens."),
]
Sequences = Annotated[
    str | None,
    typer.Option(
        "--sequences", metavar="COUNTS", help="For --speed: sequences in a step, separated by commas. [default: 1,16]"
    ),
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
    speed: Speed = None,
    sequences: Sequences = None,
    choose: Choose = None,
    output: Output = None,
    kv_cache_skip_layers: flags.KvCacheSkipLayers = None,
    weights: flags.Weights = None,
    page_size: flags.PageSize = None,
    threads: flags.Threads = None,
    json: flags.Json = False,
) -> None:
    """Measure ways to keep the cache against uncached float32: quality, bytes and speed, on text and pass keys."""
    from kvist.cache.codec import CODECS
    from kvist.cli.terminal import Activity
    from kvist.eval.choose import Wish, compared
    from kvist.eval.evaluate import Evaluation
    from kvist.eval.method import USUAL, methods, names
    from kvist.eval.plan import FULL, QUICK
    from kvist.eval.plots import draw, require
    from kvist.eval.store import Store
    from kvist.eval.table import lines
    from kvist.models.hub import resolve

    usual = USUAL if choose is None else CODECS
    wanted = methods(usual if kv_cache_dtype is None else names(kv_cache_dtype), names(policy))
    wish = None if choose is None else Wish.parse(choose, output or Path("codecs.json"), wanted)
    counts = _check_instead(choose, output, policy, stream, plots, resume, speed, sequences)
    if plots is not None:
        require()
    path = resolve(model)
    options = flags.engine_options(
        kv_cache_skip_layers=kv_cache_skip_layers, weights=weights, page_size=page_size, threads=threads
    )
    with Store(resume) as store, _loaded(path, options) as llm:
        if stream is not None:
            _stream(llm, model, kv_cache_dtype or "f16", policy, stream, plots, json)
            return
        if kv_cache_dtype is None:
            wanted = _fitting(llm, wanted)
        if speed is not None:
            _speed(llm, model, wanted, speed, counts, json)
            return
        with Activity("choosing text", hours=True) as activity:
            plan = (QUICK if quick else FULL).asking(llm.engine.limits.max_model_len, tokens, documents, passkeys)
            given = llm, path, plan, store, activity.report
            wanted, told = (wanted, None) if wish is None else compared(*given, model, wish, quick=quick)
            found = {**Evaluation(llm, path, wanted, plan, store, activity.report).run(model).as_json(), "choice": told}
    _tell(found, lines(found), json, draw(found, plots) if plots is not None else ())


def _check_instead(
    choose: str | None, output: Path | None, policy: str, stream: int | None, plots: Path | None,
    resume: Path | None, speed: int | None, sequences: str | None,
) -> tuple[int, ...]:
    """Refuse what says nothing beside another option. Returns how many sequences to time."""
    if choose is None and output is not None:
        raise UsageError("--output is where --choose writes its choice: give that as well")
    if choose is not None and (stream is not None or policy != "full"):
        raise UsageError("--choose measures layers that see all positions: leave --stream and --policy out")
    if speed is not None and any(other is not None for other in (choose, stream, plots, resume)):
        raise UsageError("--speed only times steps: leave --choose, --stream, --plots and --resume out")
    if sequences is not None and speed is None:
        raise UsageError("--sequences is how many --speed times together: give that as well")
    counts = [int(count) if count.isdecimal() else 0 for count in (sequences or "1,16").split(",")]
    if not all(1 <= count <= MOST_SEQUENCES for count in counts):
        raise UsageError(f"--sequences {sequences}: give numbers from 1 to {MOST_SEQUENCES}, separated by commas: 1,16")
    return tuple(dict.fromkeys(counts))


def _loaded(path: Path, options: dict[str, Any]) -> LLM:
    """The model, with progress."""
    from kvist.cli.terminal import Activity
    from kvist.llm import LLM

    with Activity("loading the model") as activity:
        return LLM(path, progress=activity.report, **options)


def _fitting(llm: LLM, methods: Sequence[Method]) -> tuple[Method, ...]:
    """Of methods that nobody named those that go with the model and the page size."""
    from kvist.cache.codec import FLOATS
    from kvist.eval.sensitivity import usable

    fitting = {*FLOATS, *usable(llm)}
    return tuple(method for method in methods if fitting.issuperset(method.codecs))


def _speed(
    llm: LLM, model: str, methods: Sequence[Method], longest: int, counts: Sequence[int], json: bool
) -> None:
    """What a position of context costs a step, beside float16."""
    from kvist.cli.terminal import Activity
    from kvist.eval.steps import steps, steps_lines

    with Activity("timing steps", hours=True) as activity:
        found = steps(llm, model, methods[1:], longest, counts, activity.report)  # float32 has nothing to say here
    _tell(found, steps_lines(found), json, ())


def _stream(llm: LLM, model: str, codecs: str, policies: str, tokens: int, plots: Path | None, json: bool) -> None:
    """A text far longer than the context, in constant memory."""
    from kvist.cli.terminal import Activity
    from kvist.eval.method import Method, names
    from kvist.eval.plots import draw_stream
    from kvist.eval.stream import stream_lines, streams

    methods = [Method(codec, policy) for policy in names(policies) for codec in names(codecs)]
    with Activity("reading a stream", hours=True) as activity:
        found = streams(llm, model, methods, tokens, activity.report)
    _tell(found, stream_lines(found), json, draw_stream(found, plots) if plots is not None else ())


def _tell(found: dict[str, Any], lines: Iterable[str], json: bool, pictures: Iterable[Path]) -> None:
    """A report, as JSON or as lines, and where its pictures are."""
    for line in [json_module.dumps(found)] if json else lines:
        print(line)
    for file in pictures:
        typer.echo(f"wrote {file}", err=True)
