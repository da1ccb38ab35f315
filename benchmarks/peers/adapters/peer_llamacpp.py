"""llama.cpp through its C interface, as llama-cpp-python exposes it: batches of tokens in, greedy tokens out."""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp as c
from protocol import Timeline, serve

CONTEXT = 8192  # tokens of a context, shared out evenly to its sequences
BATCH = 512  # tokens of one call; llama.cpp's own default
FLASH_ATTENTION = {"auto": c.LLAMA_FLASH_ATTN_TYPE_AUTO, "off": c.LLAMA_FLASH_ATTN_TYPE_DISABLED}


class Context:
    """A llama.cpp context for so many sequences, and what its cache holds of each."""

    def __init__(self, model: Any, sequences: int, threads: int, flash_attention: str) -> None:
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT, BATCH, BATCH, sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        self._context = c.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        self._memory = c.llama_get_memory(self._context)
        self._batch = c.llama_batch_init(BATCH, 0, 1)
        self._greedy = c.llama_sampler_init_greedy()
        self.cached: list[list[int]] = [[] for _ in range(sequences)]

    def keep(self, sequence: int, prompt: list[int]) -> int:
        """Drop what the cache holds beyond the prefix it shares with this prompt; tokens that stay.

        The last token of a prompt is always computed, for its logits.
        """
        cached = self.cached[sequence]
        same = next((i for i, (a, b) in enumerate(zip(cached, prompt, strict=False)) if a != b), len(cached))
        same = min(same, len(prompt) - 1)
        c.llama_memory_seq_rm(self._memory, sequence, same, -1)
        del cached[same:]
        return same

    def decode(self, rows: list[tuple[int, int, bool]]) -> list[int]:
        """Run one batch of (sequence, token, whether its next token is wanted); the next tokens."""
        batch, cached = self._batch, self.cached
        batch.n_tokens = len(rows)
        wanted = []
        for i, (sequence, token, want) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, len(cached[sequence]), want
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            cached[sequence].append(token)
            if want:
                wanted.append(i)
        if c.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return [c.llama_sampler_sample(self._greedy, self._context, i) for i in wanted]


class LlamaCpp:
    """A GGUF file with a float16 cache; `flash_attention` is "auto", its own default, or "off"."""

    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {Path(model).name}")
        description = ctypes.create_string_buffer(128)
        c.llama_model_desc(self._model, description, len(description))
        self._threads, self._flash_attention = threads, options["flash_attention"]
        self._contexts: dict[int, Context] = {}
        self.about = {
            "version": f"llama-cpp-python {version('llama-cpp-python')}",
            "weights": description.value.decode(),
            "cache": "f16",
            "flash attention": self._flash_attention,
            "build": c.llama_print_system_info().decode().strip(),
        }

    def run(self, prompts: list[list[int]], new_tokens: int, timeline: Timeline) -> list[list[int]]:
        """The prompts in batches of up to BATCH tokens, then one batch a step."""
        count = len(prompts)
        if count not in self._contexts:
            self._contexts[count] = Context(self._model, count, self._threads, self._flash_attention)
        context = self._contexts[count]
        rows = []
        for sequence, prompt in enumerate(prompts):
            start = context.keep(sequence, prompt)
            rows += [(sequence, token, i == len(prompt) - 1) for i, token in enumerate(prompt) if i >= start]
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            done = [sequence for sequence, _, want in part if want]
            for sequence, token in zip(done, context.decode(part), strict=True):
                answers[sequence].append(token)
            timeline.step(done)
        for _ in range(new_tokens - 1):
            tokens = context.decode([(sequence, answer[-1], True) for sequence, answer in enumerate(answers)])
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
            timeline.step(range(count))
        return answers


if __name__ == "__main__":
    serve(LlamaCpp)
