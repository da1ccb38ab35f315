"""`kvist bench serve`: what a server's users see of it; a table, or JSON."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from kvist.cli import flags
from kvist.errors import UsageError

WORK, LIMITS = "Workload", "Goodput"


def _work(flag: str, help_: str, least: int = 1, most: int = 10_000_000) -> typer.models.OptionInfo:
    return typer.Option(flag, min=least, max=most, help=help_, rich_help_panel=WORK)  # type: ignore[no-any-return]


Url = Annotated[
    str, typer.Option("--url", help="Where the server is: http://host:port, with or without /v1.", show_default=False)
]
Model = Annotated[str | None, typer.Option("--model", help="The model's name there; the only one by default.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Sent as the bearer token.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that a request may take.")]
Workload = Annotated[
    str,
    typer.Option(
        "--workload",
        help="prefix: a few shared prefixes, many questions; multi-turn: chats that grow; random: nothing in common.",
        rich_help_panel=WORK,
    ),
]
Requests = Annotated[int, _work("--requests", "Requests of a pass; a turn is one.")]
Concurrency = Annotated[int | None, _work("--concurrency", "Requests, or chats, that are open at once. 8 by default.")]
RequestRate = Annotated[
    float | None,
    typer.Option("--request-rate", help="Instead: requests, or chats, a second, at random.", rich_help_panel=WORK),
]
PromptTokens = Annotated[int, _work("--prompt-tokens", "Tokens of each question, about.")]
OutputTokens = Annotated[int, _work("--output-tokens", "Tokens of each answer.")]
PrefixTokens = Annotated[
    int | None, _work("--prefix-tokens", "For prefix: tokens of a prefix, about. 1024 by default.")
]
Prefixes = Annotated[int | None, _work("--prefixes", "For prefix: how many. 4 by default.")]
Turns = Annotated[int | None, _work("--turns", "For multi-turn: questions of a user. 4 by default.")]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos/--no-ignore-eos", help="Ask for answers of full length.", rich_help_panel=WORK),
]
Seed = Annotated[int, typer.Option("--seed", help="Of texts and arrivals.", rich_help_panel=WORK)]
Ttft = Annotated[
    float | None,
    typer.Option("--goodput-ttft-ms", min=0, help="The first token in time.", rich_help_panel=LIMITS),
]
Itl = Annotated[
    float | None,
    typer.Option("--goodput-itl-ms", min=0, help="And every next one.", rich_help_panel=LIMITS),
]


def bench_serve(
    url: Url,
    model: Model = None,
    api_key: ApiKey = None,
    workload: Workload = "prefix",
    requests: Requests = 32,
    concurrency: Concurrency = None,
    request_rate: RequestRate = None,
    prompt_tokens: PromptTokens = 256,
    output_tokens: OutputTokens = 64,
    prefix_tokens: PrefixTokens = None,
    prefixes: Prefixes = None,
    turns: Turns = None,
    ignore_eos: IgnoreEos = True,
    seed: Seed = 0,
    goodput_ttft_ms: Ttft = None,
    goodput_itl_ms: Itl = None,
    timeout: Timeout = 600,
    json: flags.Json = False,
) -> None:
    """Measure a running OpenAI-compatible server: the same requests cold, then warm, and whether their texts agree."""
    from kvist.bench.serve.measure import measure
    from kvist.bench.serve.table import lines
    from kvist.bench.serve.work import Plan
    from kvist.cli.terminal import Activity

    plan = Plan(
        workload, requests, concurrency, request_rate, prompt_tokens, output_tokens, prefix_tokens or 1024,
        prefixes or 4, turns or 4, seed, ignore_eos, _seconds(goodput_ttft_ms), _seconds(goodput_itl_ms),
    )  # fmt: skip
    for flag, given, goes_with in (
        ("--prefix-tokens", prefix_tokens, "prefix"),
        ("--prefixes", prefixes, "prefix"),
        ("--turns", turns, "multi-turn"),
    ):
        if given is not None and workload != goes_with:
            raise UsageError(f"{flag} goes with --workload {goes_with}, not with {workload}")
    with Activity("asking the server") as activity:
        found = measure(url, plan, model, api_key, timeout, activity.report)
    if json:
        print(json_module.dumps(found))
        return
    for line in lines(found):
        activity.line(line)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
