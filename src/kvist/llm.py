"""`LLM`: a model with its engine and tokenizer, for programs.

The engine knows token ids; here they become text. One generator yields chunks; every whole answer is folded from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from kvist.assemble import assemble, load_draft
from kvist.cache.score.kvzip import INSTRUCTION
from kvist.config import EngineConfig, usable_cores
from kvist.engine.batch import Piece
from kvist.engine.beams import BeamSearch
from kvist.engine.checks import salt_bytes
from kvist.engine.params import BeamSearchParams, SamplingParams
from kvist.errors import CapacityError, RequestError, UsageError
from kvist.events import EventChannel
from kvist.fold import Fold, beams
from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Floats
from kvist.models.hub import resolve
from kvist.models.load import load_model
from kvist.outputs import BeamSearchOutput, RequestOutput, TextChunk
from kvist.session import Session
from kvist.text.chat import render
from kvist.text.guided import Guides
from kvist.text.load import load_tokenizer
from kvist.text.tools import Tool

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
Progress = Callable[[str, int, int], None]
"""Told what is going on, how much is done, of how much (0: not known)."""


class Request(NamedTuple):
    """What is asked for, as `generate_each` takes it; the fields mean what they mean in `LLM.generate`."""

    prompt: Prompt
    sampling_params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    pin: bool = False


class LLM:
    """A model, ready to answer.

    model: an alias (`smollm2`), a folder, a file, or a pulled ORG/NAME. options: fields of `EngineConfig`. Frees what
    it holds on `close` or at the end of a ``with`` statement. One thread may use it at a time.
    """

    def __init__(self, model: str | Path, *, progress: Progress | None = None, **options: Any) -> None:
        self.config = EngineConfig.from_options(options)
        path = resolve(str(model))
        report = progress or (lambda what, done, total: None)
        self.events = EventChannel()
        self._sessions = 0
        self.backend = CpuBackend(
            self.config.threads or usable_cores(), lambda: report("compiling kernels (once per machine)", 0, 0)
        )
        try:
            self.model = load_model(
                path, self.backend, self.config.weights, lambda done, total: report("loading weights", done, total)
            )
            self.tokenizer = load_tokenizer(path, self.model.metadata)
            self.instruction = self.tokenizer.encode(INSTRUCTION, add_special=False)
            self.engine = assemble(
                self.model, self.config, self.backend, eos_ids=self.tokenizer.eos_ids, events=self.events,
                draft=load_draft(self.config, self.backend, report), instruction=self.instruction,
            )  # fmt: skip
            self.guides = Guides(self.tokenizer, self.engine.limits.vocab_size)
        except BaseException:
            self.backend.close()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | None = None,
        pin: bool = False,
    ) -> list[RequestOutput]:
        """Answer prompts (strings or lists of token ids) together in one batch, in their order.

        priority: of all or of each; lower runs first. cache_salt: only what was computed under the
        same one is found in the cache. pin: keep the prompts' full pages in the cache until `unpin(output.request_id)`.
        """
        listed = _listed(prompts)
        params = sampling_params if sampling_params is not None else SamplingParams()
        each = [params] * len(listed) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise UsageError(
                f"{len(listed)} prompts and {len(each)} sampling_params: give one for all, or one for each"
            )
        priorities = [priority] * len(listed) if not isinstance(priority, Sequence) else priority
        if len(priorities) != len(listed):
            raise UsageError(
                f"{len(listed)} prompts and {len(priorities)} priorities: give one for all, or one for each"
            )
        requests = [
            Request(prompt, one, level, cache_salt, pin)
            for prompt, one, level in zip(listed, each, priorities, strict=True)
        ]
        return list(self._answers(iter(requests), len(requests)))

    def unpin(self, request_id: str | None = None) -> int:
        """Let go of what a request pinned, or all did (None). Returns how many pages may be evicted from now on."""
        return self.engine.unpin(request_id)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> list[BeamSearchOutput]:
        """The likeliest answers to prompts (strings or lists of token ids), beam_width of each, the best first."""
        every = [self._encode(prompt) for prompt in _listed(prompts)]
        searches: list[BeamSearch] = []
        try:
            for ids in every:
                searches.append(self.engine.submit_beams(ids, params, salt=salt_bytes(cache_salt), priority=priority))
            running = {search.request_id for search in searches}
            while running:
                running -= {token.request_id for token in self.engine.step() if token.finish_reason is not None}
        finally:
            for search in searches:
                self.engine.cancel(search.request_id)
        return [beams(self.tokenizer, ids, search) for ids, search in zip(every, searches, strict=True)]

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        pin: bool = False,
    ) -> Iterator[TextChunk]:
        """Answer one prompt, chunk by chunk. Leaving the loop stops the request and frees its pages."""
        params = sampling_params or SamplingParams()
        if params.branches > params.n:
            raise UsageError(
                f"best_of {params.branches} of {params.n} is decided when all have ended: leave it out to stream"
            )
        ids, salt, guide = self._encode(prompt), salt_bytes(cache_salt), self.guides.guide(params.structured_outputs)
        fold = Fold(self.tokenizer, params, None, ids)
        outputs = self.engine.stream(
            ids, params, salt=salt, watching=fold.watching, priority=priority, pin=pin, guide=guide
        )
        yield from map(fold.add, outputs)

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        pin: bool = False,
        tools: Sequence[Tool] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation: messages of {"role", "content"}, through the model's own chat template.

        tools: functions the model may call, {"type": "function", "function": {...}} each; see `kvist.text.tools`.
        """
        ids = [self.chat_ids(messages, tools)]
        return self.generate(ids, sampling_params, priority=priority, cache_salt=cache_salt, pin=pin)

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        pin: bool = False,
        tools: Sequence[Tool] | None = None,
    ) -> Iterator[TextChunk]:
        """As `chat`, chunk by chunk."""
        ids = self.chat_ids(messages, tools)
        return self.stream(ids, sampling_params, priority=priority, cache_salt=cache_salt, pin=pin)

    def chat_ids(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, *, seconds: float | None = None
    ) -> list[int]:
        """The token ids of a conversation, up to where the answer begins. UsageError for tools it cannot have.

        seconds: that the chat template may take (see `text.chat.render`).
        """
        return self.tokenizer.encode(self._render(messages, tools, seconds), add_special=False)

    def session(self, name: str | None = None, *, cache_salt: str | None = None) -> Session:
        """Open a session: a conversation or a text to append to, answer, fork and roll back. See `kvist.session`.

        cache_salt: only what was computed under the same one is found in the cache.
        """
        self._sessions += 1
        name, salt = name or f"session-{self._sessions}", salt_bytes(cache_salt)
        return Session(name, self.tokenizer, self.engine, self._render, self.guides, salt)

    def generate_each(self, requests: Iterable[Request | tuple[Prompt, SamplingParams]]) -> Iterator[RequestOutput]:
        """Answer requests as an iterator gives them, many together, and yield their outputs in its order.

        At most ``4 * max_num_seqs`` of them are held at once, however many there are. Leaving the loop stops those
        under way.
        """
        return self._answers((Request(*request) for request in requests), 4 * self.config.max_num_seqs)

    def logits(self, token_ids: Sequence[int]) -> Floats:
        """Logits of every position, float32 (n, vocab), through the engine's own pages.

        Positions found in the cache are run again for their logits only; their K and V are read as the cache has them.
        """
        manager, budget = self.engine.manager, self.config.max_num_batched_tokens
        if not 0 < len(token_ids) <= self.engine.limits.max_model_len:
            raise RequestError(f"{len(token_ids)} tokens: give 1 to {self.engine.limits.max_model_len}")
        if any(not 0 <= token < self.engine.limits.vocab_size for token in token_ids):
            raise RequestError(f"a token id is not in this model's vocabulary of {self.engine.limits.vocab_size}")
        table = manager.open(manager.match(list(token_ids), whole=True))
        logits = np.empty((len(token_ids), self.engine.limits.vocab_size), np.float32)
        try:
            for start in range(0, len(token_ids), budget):
                tokens = list(token_ids[start : start + budget])
                if not manager.reserve(table, max(start + len(tokens) - table.computed, 0)):
                    raise CapacityError(
                        f"{len(token_ids)} tokens do not fit beside what is running: raise kv_cache_memory_bytes"
                    )
                logits[start : start + len(tokens)] = self.engine.runner.forward([Piece(table, tokens, start, "all")])
        finally:
            manager.release(table)
        return logits

    def close(self) -> None:
        """Free threads and memory; idempotent."""
        self.backend.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, seconds: float | None = None
    ) -> str:
        template = self.tokenizer.chat_template
        if template is None:
            raise UsageError("this model has no chat template: give it a plain prompt instead of messages")
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        return render(template, messages, bos_token=bos, eos_token=eos, tools=tools or None, seconds=seconds)

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]

    def _answers(self, requests: Iterator[Request], most: int) -> Iterator[RequestOutput]:
        """The outputs of requests, in their order, with `most` of them under way at once."""
        folds: dict[str, Fold] = {}
        try:
            while True:
                for prompt, params, priority, cache_salt, pin in islice(requests, most - len(folds)):
                    ids, salt = self._encode(prompt), salt_bytes(cache_salt)
                    fold = Fold(self.tokenizer, params, prompt if isinstance(prompt, str) else None, ids)
                    name = self.engine.submit(
                        ids, params, salt=salt, watching=fold.watching, priority=priority, pin=pin,
                        guide=self.guides.guide(params.structured_outputs),
                    )  # fmt: skip
                    folds[name] = fold
                if not folds:
                    return
                for token in self.engine.step():
                    if token.request_id in folds:
                        folds[token.request_id].add(token)
                while folds and (output := next(iter(folds.values())).output) is not None:
                    del folds[next(iter(folds))]
                    yield output
        finally:
            for name in folds:
                self.engine.cancel(name)


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Prompts as a list, also where one was given: a string, or a list of token ids."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    return [listed] if listed and all(isinstance(item, (int, np.integer)) for item in listed) else listed
