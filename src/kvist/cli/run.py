"""`kvist run`: answer a prompt. The text goes to standard output as it comes, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvist.cli import flags, sampling
from kvist.cli.terminal import Activity, note
from kvist.engine.params import RequestMetrics, SamplingParams
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.llm import LLM
    from kvist.outputs import TextChunk

ENOUGH = 512  # tokens of an answer whose length nobody asked for

Prompt = Annotated[
    str | None, typer.Argument(help="What to answer; read from standard input if it is not given.", show_default=False)
]
System = Annotated[str | None, typer.Option("--system", help="A system message before the prompt.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the model's chat template.")]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", help=f"Longest answer in tokens; {ENOUGH} by default, if the context has room."),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end token.")]
Stats = Annotated[bool, typer.Option("--stats", help="Tell on standard error what the answer cost.")]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="The uncached baseline: compute all keys and values again at every step.")
]


def run(
    model: flags.Model,
    prompt: Prompt = None,
    system: System = None,
    raw: Raw = False,
    max_tokens: MaxTokens = None,
    ignore_eos: IgnoreEos = False,
    stats: Stats = False,
    json_: flags.Json = False,
    no_cache: NoCache = False,
    temperature: sampling.Temperature = 0.0,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 1.0,
    min_p: sampling.MinP = 0.0,
    typical_p: sampling.TypicalP = 1.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.0,
    presence_penalty: sampling.PresencePenalty = 0.0,
    frequency_penalty: sampling.FrequencyPenalty = 0.0,
    seed: flags.Seed = None,
    min_tokens: sampling.MinTokens = 0,
    stop: sampling.Stop = None,
    logprobs: sampling.Logprobs = None,
    max_model_len: flags.MaxModelLen = None,
    kv_cache_dtype: flags.KvCacheDtype = None,
    page_size: flags.PageSize = None,
    kv_cache_memory_bytes: flags.KvCacheMemory = None,
    max_num_seqs: flags.MaxNumSeqs = None,
    max_num_batched_tokens: flags.MaxBatchedTokens = None,
    enable_prefix_caching: flags.PrefixCaching = None,
    weights: flags.Weights = None,
    threads: flags.Threads = None,
    speculative_config: flags.Speculative = None,
) -> None:
    """Answer a prompt: the text on standard output as it comes, everything else on standard error."""
    _check_flags(raw, system, logprobs, json_)
    text = read_prompt(prompt)
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, seed=seed,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
        max_tokens=max(ENOUGH, min_tokens) if max_tokens is None else max_tokens, min_tokens=min_tokens,
        ignore_eos=ignore_eos, stop=stop or None, logprobs=logprobs,
    )  # fmt: skip
    options = flags.engine_options(
        max_model_len=max_model_len, kv_cache_dtype=kv_cache_dtype, page_size=page_size,
        kv_cache_memory_bytes=kv_cache_memory_bytes, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens, enable_prefix_caching=enable_prefix_caching,
        enable_cache=not no_cache, weights=weights, threads=threads, speculative_config=speculative_config,
    )  # fmt: skip
    with Activity("starting") as activity:
        from kvist.llm import LLM

        llm = LLM(model, progress=activity.report, **options)
    with llm:
        ids = prompt_ids(llm, text, system, raw)
        answer = Answer(llm, ids, fitted(params, llm, len(ids)) if max_tokens is None else params)
        answer.write(stream=not json_)
        if json_:
            print(json.dumps(answer.as_json(model), ensure_ascii=False))
        answer.tell(ended_short=max_tokens is None, stats=stats)


def _check_flags(raw: bool, system: str | None, logprobs: int | None, json_: bool) -> None:
    if raw and system is not None:
        raise UsageError("--raw leaves the chat template out, and with it --system: give one of them")
    if logprobs is not None and not json_:
        raise UsageError("--logprobs are part of the JSON: give --json as well")


def read_prompt(argument: str | None) -> str:
    """The prompt: the argument, or standard input without its last newline where that is no terminal."""
    if argument is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("a prompt is needed: `kvist run MODEL 'your question'`, or pipe it into standard input")
        try:
            argument = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not UTF-8 text ({error.reason} at byte {error.start}): convert it first"
            ) from error
    if not argument:
        raise UsageError("the prompt is empty: give at least one character")
    return argument


def prompt_ids(llm: LLM, text: str, system: str | None, raw: bool) -> list[int]:
    """Token ids of the prompt, in the model's chat template if it has one and nobody asked for a plain completion."""
    if llm.tokenizer.chat_template is None:
        if system is not None:
            raise UsageError("this model has no chat template, so --system has no place: put it into the prompt")
        raw = True
    if raw:
        return llm.tokenizer.encode(text)
    before = [] if system is None else [{"role": "system", "content": system}]
    return llm.chat_ids([*before, {"role": "user", "content": text}])


def fitted(params: SamplingParams, llm: LLM, prompt_tokens: int) -> SamplingParams:
    """`params` with no more tokens than the context has room for."""
    from dataclasses import replace

    most = max(params.min_tokens, 1)
    room = llm.engine.limits.max_model_len - prompt_tokens
    return replace(params, max_tokens=max(most, min(ENOUGH, room)))


class Answer:
    """One answer: written as it comes, kept for the report."""

    def __init__(self, llm: LLM, ids: list[int], params: SamplingParams) -> None:
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.logprobs: list[list[dict[str, Any]]] = []
        self.token_ids: list[int] = []
        self._llm, self._chunks = llm, llm.stream(ids, params)
        self._prompt_tokens = len(ids)
        self._text: list[str] = []
        self._metrics = RequestMetrics(len(ids))

    def write(self, *, stream: bool) -> None:
        """Run to the end; `stream` writes the text to standard output meanwhile.

        Ctrl-C ends the line and goes on up.
        """
        try:
            for chunk in self._with_spinner():
                self._take(chunk)
                if stream and chunk.text:
                    print(chunk.text, end="", flush=True)
        except KeyboardInterrupt:
            if stream:
                print(flush=True)
            raise
        if stream and not "".join(self._text).endswith("\n"):
            print(flush=True)

    def _with_spinner(self) -> Iterator[TextChunk]:
        """The chunks, with something to look at until the first one."""
        with Activity(f"reading the prompt ({self._prompt_tokens} tokens)") as activity:
            for chunk in self._chunks:
                activity.end()
                yield chunk

    def _take(self, chunk: TextChunk) -> None:
        self._metrics, self.finish_reason, self.stop_reason = chunk.metrics, chunk.finish_reason, chunk.stop_reason
        if chunk.logprobs is not None:
            self.logprobs.append([{"token_id": token, **asdict(one)} for token, one in chunk.logprobs.items()])
        self._text.append(chunk.text)
        if chunk.token_id is not None:
            self.token_ids.append(chunk.token_id)

    @property
    def _seconds(self) -> tuple[float, float]:
        """To the first token; from there to the end."""
        m = self._metrics
        first = m.first_token_time or m.arrival_time
        return first - m.arrival_time, (m.finished_time or first) - first

    @property
    def _tokens_per_s(self) -> float | None:
        """Of the tokens after the first; None where there are none."""
        seconds = self._seconds[1]
        return (len(self.token_ids) - 1) / seconds if len(self.token_ids) > 1 and seconds > 0 else None

    def tell(self, *, ended_short: bool, stats: bool) -> None:
        """Notes on standard error: that nobody had asked for so short an answer; what it cost."""
        if ended_short and self.finish_reason == "length":
            note(f"[stopped after {len(self.token_ids)} tokens: --max-tokens asks for more]")
        if stats:
            for line in self.statistics():
                note(line)

    def statistics(self) -> list[str]:
        """What the answer cost: tokens and seconds, projections and pages, and what came of drafts."""
        m, pages = self._metrics, self._llm.engine.manager.counters
        rate = "" if self._tokens_per_s is None else f" {self._tokens_per_s:.1f} tok/s"
        layers = self._llm.model.config.num_layers
        lines = [
            f"[prompt {m.prompt_tokens} tokens ({m.cached_tokens} cached) {self._seconds[0] * 1000:.0f} ms | "
            f"{m.generated_tokens} tokens{rate}]",
            f"[K/V projections: {m.kv_projections} positions x {layers} layers | reused: {m.cached_tokens} tokens | "
            f"pages: {pages.pages_allocated} allocated, {pages.pages_shared} shared, {pages.pages_freed} freed]",
        ]
        if self._llm.engine.speculation is not None:
            share = "" if m.acceptance_rate is None else f" ({m.acceptance_rate:.0%})"
            lines.append(f"[speculation: {m.drafted_tokens} tokens drafted, {m.accepted_tokens} accepted{share}]")
        return lines

    def as_json(self, model: str) -> dict[str, Any]:
        """The answer and what it cost, for programs."""
        m = self._metrics
        return {
            "model": model,
            "text": "".join(self._text),
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "logprobs": self.logprobs or None,
            "metrics": {
                "prompt_tokens": m.prompt_tokens,
                "cached_tokens": m.cached_tokens,
                "computed_tokens": m.computed_tokens,
                "generated_tokens": m.generated_tokens,
                "kv_projections": m.kv_projections,
                "preemptions": m.preemptions,
                "drafted_tokens": m.drafted_tokens,
                "accepted_tokens": m.accepted_tokens,
                "acceptance_rate": m.acceptance_rate,
                "time_to_first_token_seconds": self._seconds[0],
                "seconds": sum(self._seconds),
                "tokens_per_s": self._tokens_per_s,
            },
            "cache": asdict(self._llm.engine.manager.counters),
        }
