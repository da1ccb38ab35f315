"""One answer to one prompt: written as it comes, then told what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from kvist.cli.terminal import Activity, note, show
from kvist.engine.checks import salt_bytes
from kvist.engine.params import RequestMetrics, SamplingParams
from kvist.errors import UsageError

if TYPE_CHECKING:
    from kvist.llm import LLM
    from kvist.outputs import TextChunk

ENOUGH = 512  # tokens of an answer whose length nobody asked for


@dataclass(frozen=True, slots=True)
class Setting:
    """What all requests of a run have in common, or begin with where a line of a file says nothing else.

    fit: answers whose length nobody asked for end with the context. pin: keep the system message's pages in the cache.
    """

    model: str
    kv_cache_dtype: str | None
    weights: str | None
    params: SamplingParams
    fit: bool = True
    system: str | None = None
    raw: bool = False
    priority: int = 0
    cache_salt: str | None = None
    pin: bool = False
    policy: str | None = None
    kv_cache_skip_layers: tuple[int, ...] = ()


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


def pin_system(llm: LLM, setting: Setting) -> None:
    """Keep the full pages that all conversations with this system message begin with, if that is asked for."""
    if not setting.pin:
        return
    one, other = (prompt_ids(llm, text, setting.system, setting.raw) for text in "ab")
    same = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
    llm.engine.manager.pin("system", same, salt=salt_bytes(setting.cache_salt))


def fitted(params: SamplingParams, llm: LLM, prompt_tokens: int) -> SamplingParams:
    """`params` with no more tokens than the context has room for."""
    most = max(params.min_tokens, 1)
    room = llm.engine.limits.max_model_len - prompt_tokens
    return replace(params, max_tokens=max(most, min(ENOUGH, room)))


class Answer:
    """One answer: written as it comes, kept for the report."""

    def __init__(self, llm: LLM, ids: list[int], params: SamplingParams, cache_salt: str | None = None) -> None:
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.logprobs: list[list[dict[str, Any]]] = []
        self.token_ids: list[int] = []
        self._llm, self._chunks = llm, llm.stream(ids, params, cache_salt=cache_salt)
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
                    show(chunk.text)
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

    def tell(self, *, ended_short: bool, stats: bool) -> None:
        """Notes on standard error: that nobody had asked for so short an answer; what it cost."""
        if ended_short and self.finish_reason == "length":
            note(f"[stopped after {len(self.token_ids)} tokens: --max-tokens asks for more]")
        if stats:
            for line in cost_lines(self._llm, self._metrics):
                note(line)

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
                "reuse": None if m.reuse is None else asdict(m.reuse),
                "policy": m.policy,
                "kv_cache_dtype": m.kv_cache_dtype,
                "drafted_tokens": m.drafted_tokens,
                "accepted_tokens": m.accepted_tokens,
                "acceptance_rate": m.acceptance_rate,
                "time_to_first_token_seconds": seconds(m)[0],
                "seconds": sum(seconds(m)),
                "tokens_per_s": tokens_per_s(m),
            },
            "cache": asdict(self._llm.engine.manager.counters),
        }


def seconds(metrics: RequestMetrics) -> tuple[float, float]:
    """To the first token; from there to the end."""
    first = metrics.first_token_time or metrics.arrival_time
    return first - metrics.arrival_time, (metrics.finished_time or first) - first


def tokens_per_s(metrics: RequestMetrics) -> float | None:
    """Of the tokens after the first; None where there are none."""
    took, made = seconds(metrics)[1], metrics.generated_tokens
    return (made - 1) / took if made > 1 and took > 0 else None


def cost_lines(llm: LLM, m: RequestMetrics) -> list[str]:
    """What an answer cost: tokens and seconds, projections and pages, and what came of drafts."""
    pages, speed = llm.engine.manager.counters, tokens_per_s(m)
    rate = "" if speed is None else f" {speed:.1f} tok/s"
    lines = [
        f"[prompt {m.prompt_tokens} tokens ({m.cached_tokens} cached) {seconds(m)[0] * 1000:.0f} ms | "
        f"{m.generated_tokens} tokens{rate}]",
        f"[K/V projections: {m.kv_projections} positions x {llm.model.config.num_layers} layers | "
        f"reused: {m.cached_tokens} tokens | "
        f"pages: {pages.pages_allocated} allocated, {pages.pages_shared} shared, {pages.pages_freed} freed]",
    ]
    if m.policy != "full":
        lines.append(f"[policy {m.policy}: not every token saw all before it]")
    if m.lossy:
        lines.append(f"[codec {m.kv_cache_dtype}: full pages are packed, and keep a part of their numbers' bits]")
    if llm.engine.speculation is not None:
        share = "" if m.acceptance_rate is None else f" ({m.acceptance_rate:.0%})"
        lines.append(f"[speculation: {m.drafted_tokens} tokens drafted, {m.accepted_tokens} accepted{share}]")
    return lines
