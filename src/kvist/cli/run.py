"""`kvist run`: answer a prompt, a file of prompts, or a person in a chat.

The answers go to standard output as they come, everything else to standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvist.cli import flags, sampling
from kvist.cli.answer import ENOUGH, Answer, Setting, fitted, prompt_ids
from kvist.cli.terminal import Activity, show
from kvist.engine.params import SamplingParams
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.llm import LLM

BATCH = "Batches"

Prompt = Annotated[
    str | None,
    typer.Argument(
        help="What to answer. If it is not given: standard input, or a chat if that is a terminal.", show_default=False
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help='Answer the lines of a file together: {"prompt": TEXT} or {"messages": [...]}, with "id", sampling '
        "parameters, priority, cache_salt and pin if you like, or a JSON string.",
        rich_help_panel=BATCH,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Where the answers to --file go, a line of JSON each, in its order; standard output by default. A run "
        "that was stopped goes on here where it was.",
        rich_help_panel=BATCH,
    ),
]
System = Annotated[str | None, typer.Option("--system", help="A system message before the prompt.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the model's chat template.")]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", help=f"Longest answer in tokens; {ENOUGH} by default, if the context has room."),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end token.")]
Priority = Annotated[
    int | None,
    typer.Option("--priority", help="Of the lines of --file that give none; lower runs first.", rich_help_panel=BATCH),
]
Pin = Annotated[
    bool,
    typer.Option(
        "--pin", help="Keep the system message in the cache, in a chat or for --file.", rich_help_panel="Reuse"
    ),
]
Stats = Annotated[bool, typer.Option("--stats", help="Tell on standard error what each answer cost.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="The uncached baseline: compute all keys and values again at every step.")
]


def run(
    model: flags.Model, prompt: Prompt = None, file: File = None, output: Output = None, system: System = None,
    raw: Raw = False, max_tokens: MaxTokens = None, ignore_eos: IgnoreEos = False, stats: Stats = False,
    json_: flags.Json = False, no_cache: NoCache = False, priority: Priority = None,
    temperature: sampling.Temperature = 0.0, top_k: sampling.TopK = 0, top_p: sampling.TopP = 1.0,
    min_p: sampling.MinP = 0.0, typical_p: sampling.TypicalP = 1.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.0, presence_penalty: sampling.PresencePenalty = 0.0,
    frequency_penalty: sampling.FrequencyPenalty = 0.0, seed: flags.Seed = None, min_tokens: sampling.MinTokens = 0,
    stop: sampling.Stop = None, logprobs: sampling.Logprobs = None,
    max_model_len: flags.MaxModelLen = None, kv_cache_dtype: flags.KvCacheDtype = None,
    kv_cache_skip_layers: flags.KvCacheSkipLayers = None, policy: flags.Policy = None,
    page_size: flags.PageSize = None, kv_cache_memory_bytes: flags.KvCacheMemory = None,
    max_num_seqs: flags.MaxNumSeqs = None, max_num_batched_tokens: flags.MaxBatchedTokens = None,
    enable_prefix_caching: flags.PrefixCaching = None, cache_salt: flags.CacheSalt = None, pin: Pin = False,
    max_pinned_share: flags.MaxPinnedShare = None, weights: flags.Weights = None, threads: flags.Threads = None,
    speculative_config: flags.Speculative = None,
) -> None:  # fmt: skip
    """Answer a prompt, a file of prompts, or, without either on a terminal, chat.

    Answers go to standard output as they come, everything else to standard error.
    """
    _check_flags(raw, system, logprobs, json_ or file is not None, prompt, file, output)
    _check_reuse(pin, system, priority, file)
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, seed=seed,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
        max_tokens=max(ENOUGH, min_tokens) if max_tokens is None else max_tokens, min_tokens=min_tokens,
        ignore_eos=ignore_eos, stop=stop or None, logprobs=logprobs,
    )  # fmt: skip
    options = flags.engine_options(
        max_model_len=max_model_len, kv_cache_dtype=kv_cache_dtype, kv_cache_skip_layers=kv_cache_skip_layers,
        policy=policy, page_size=page_size,
        kv_cache_memory_bytes=kv_cache_memory_bytes, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens, enable_prefix_caching=enable_prefix_caching,
        max_pinned_share=max_pinned_share, enable_cache=not no_cache, weights=weights, threads=threads,
        speculative_config=speculative_config,
    )  # fmt: skip
    setting = Setting(
        model, kv_cache_dtype, weights, params, fit=max_tokens is None, system=system, raw=raw,
        priority=priority or 0, cache_salt=cache_salt, pin=pin, policy=policy,
        kv_cache_skip_layers=options.get("kv_cache_skip_layers", ()),
    )  # fmt: skip
    if file is not None:
        from kvist.cli.batch import answer_file

        answer_file(file, output, setting, lambda: start(model, options), stats=stats)
    else:
        _answer(read_prompt(prompt), setting, options, json_=json_, stats=stats)


def _answer(text: str | None, setting: Setting, options: dict[str, Any], *, json_: bool, stats: bool) -> None:
    """Answer one prompt; without one, chat."""
    if text is None:
        if setting.raw or json_:
            raise UsageError(f"{'--raw' if setting.raw else '--json'} needs a prompt or --file: it is not for a chat")
        from kvist.cli.chat import chat

        chat(start(setting.model, options), setting, stats=stats)
        return
    if setting.pin:
        raise UsageError("--pin keeps the system message for what follows: it is for a chat or --file")
    with start(setting.model, options) as llm:
        ids = prompt_ids(llm, text, setting.system, setting.raw)
        params = fitted(setting.params, llm, len(ids)) if setting.fit else setting.params
        answer = Answer(llm, ids, params, setting.cache_salt)
        answer.write(stream=not json_)
        if json_:
            show(json.dumps(answer.as_json(setting.model), ensure_ascii=False), "\n")
        answer.tell(ended_short=setting.fit, stats=stats)


def start(model: str, options: dict[str, Any]) -> LLM:
    """The model, ready to answer, with something to look at meanwhile."""
    with Activity("starting") as activity:
        from kvist.llm import LLM

        return LLM(model, progress=activity.report, **options)


def _check_flags(
    raw: bool, system: str | None, logprobs: int | None, json_: bool, prompt: str | None, file: Path | None,
    output: Path | None,
) -> None:  # fmt: skip
    if raw and system is not None:
        raise UsageError("--raw leaves the chat template out, and with it --system: give one of them")
    if logprobs is not None and not json_:
        raise UsageError("--logprobs are part of the JSON: give --json as well")
    if prompt is not None and file is not None:
        raise UsageError("a prompt and --file are two things to answer: give one of them")
    if output is not None and file is None:
        raise UsageError("--output is for the answers to --file: give that as well, or redirect standard output")


def _check_reuse(pin: bool, system: str | None, priority: int | None, file: Path | None) -> None:
    if pin and system is None:
        raise UsageError("--pin keeps the system message in the cache: give --system as well")
    if priority is not None and file is None:
        raise UsageError("--priority is for requests that run together: give --file as well")


def read_prompt(argument: str | None) -> str | None:
    """The prompt: the argument, or standard input without its last newline; None where that is a terminal."""
    if argument is None:
        if sys.stdin is None:
            raise UsageError("a prompt is needed: `kvist run MODEL 'your question'`, or pipe it into standard input")
        if sys.stdin.isatty():
            return None
        try:
            argument = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not UTF-8 text ({error.reason} at byte {error.start}): convert it first"
            ) from error
    if not argument:
        raise UsageError("the prompt is empty: give at least one character")
    return argument
