"""Every setting of an engine, in one frozen dataclass; every engine flag of the command line is a field of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvist.cache.codec.choice import spelled
from kvist.cache.layout import PAGE_SIZES
from kvist.cache.policy import policy
from kvist.errors import UsageError, unknown_name
from kvist.models.config import WEIGHT_TYPES

SPECULATIVE_METHODS = ("ngram", "draft_model")
MOST_DRAFTS = 64


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """Speculative decoding: who drafts, and how much. It never changes an answer. Names as in vLLM where it has them.

    method: "ngram" looks the last tokens up in prompt and answer; "draft_model" asks a smaller model of the same
    vocabulary, `model` (an alias, a folder, a file). num_speculative_tokens: drafts for a sequence in one step at most
    (None: 8 for ngram, 4 for a model). prompt_lookup_max, prompt_lookup_min: tokens that are looked up, longest first.
    adaptive: draft what pays, as measured while running; False: always as much as there is.
    """

    method: str
    num_speculative_tokens: int | None = None
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    model: str | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.method not in SPECULATIVE_METHODS:
            raise unknown_name("speculative method", str(self.method), SPECULATIVE_METHODS)
        for name in ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"):
            value = getattr(self, name)
            optional = name == "num_speculative_tokens" and value is None
            if not optional and (type(value) is not int or not 1 <= value <= MOST_DRAFTS):
                raise UsageError(f"{name} of speculative_config is {value!r}: give a whole number, 1 to {MOST_DRAFTS}")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise UsageError(
                f"prompt_lookup_min {self.prompt_lookup_min} of speculative_config is above prompt_lookup_max "
                f"{self.prompt_lookup_max}: give at most that"
            )
        if not isinstance(self.adaptive, bool):
            raise UsageError(f"adaptive of speculative_config is {self.adaptive!r}: give true or false")
        if (self.method == "draft_model") != isinstance(self.model, str):
            wanted = "needs a model: a name, a folder or a file" if self.method == "draft_model" else "takes no model"
            raise UsageError(f"speculative method {self.method!r} {wanted}")

    @property
    def drafts(self) -> int:
        """Drafts for a sequence in one step, at most."""
        return self.num_speculative_tokens or (8 if self.method == "ngram" else 4)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SpeculativeConfig:
        """A config from keyword options; an unknown one is named, with near matches."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_name("field of speculative_config", str(name), known)
        if "method" not in options:
            raise UsageError(f"speculative_config names no method: give one of {', '.join(SPECULATIVE_METHODS)}")
        return cls(**options)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs. None means: decided from the model and the machine. Names as in vLLM where it has them.

    max_model_len: longest sequence, prompt and answer together, in tokens (None: the trained context, or what the
    memory holds). kv_cache_dtype: codec of the pages: auto (the weights' type), f32, f16, bf16; packed: int8, fp8,
    int5, int4, ..., k=int5,v=int4, or @file (see `cache.codec.choice`). kv_cache_skip_layers: those that stay floats.
    policy: which positions a token sees: full, or for instance window:1024+4, the newest 1,024 and the first 4;
    topk:0.25, the quarter of the pages that matters most to it; evict:0.5, half of a prompt's keys and values.
    page_size: slots of a page: 16, 32, 64 or 128.
    kv_cache_memory_bytes: size of the pool (None: a quarter of the available memory, at most what max_num_seqs
    sequences can use). max_num_seqs: sequences that run at once. max_num_batched_tokens: tokens a step computes at
    most. enable_prefix_caching: keep and share sealed pages. enable_cache: False recomputes all K and V at every step.
    weights: type the weights are held in: auto (the file's own; f16 for block-quantised), f32, f16, bf16.
    threads: kernel threads (None: all usable cores). seed: of requests that bring none.
    speculative_config: who drafts tokens that are checked together (None: nobody); in `from_options` also a mapping.
    max_pinned_share: part of the pool's pages that may be pinned, 0 to 1.
    prefault: have the system provide the pool's memory at the start (1 GiB at most), not when a page is first used;
    that takes a second or more, and the first prompts are the faster for it.
    check_integrity: prove the cache's invariants whenever the engine runs idle (for debugging).
    """

    max_model_len: int | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_skip_layers: tuple[int, ...] = ()
    policy: str = "full"
    page_size: int = 16
    kv_cache_memory_bytes: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = True
    enable_cache: bool = True
    weights: str = "auto"
    threads: int | None = None
    seed: int = 0
    speculative_config: SpeculativeConfig | None = None
    max_pinned_share: float = 0.25
    prefault: bool = False
    check_integrity: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        object.__setattr__(self, "kv_cache_dtype", spelled(str(self.kv_cache_dtype)))
        if not all(type(layer) is int for layer in self.kv_cache_skip_layers):
            raise UsageError(f"kv_cache_skip_layers is {self.kv_cache_skip_layers!r}: give numbers of layers")
        object.__setattr__(self, "kv_cache_skip_layers", tuple(self.kv_cache_skip_layers))
        object.__setattr__(self, "policy", policy(str(self.policy)).name)
        if self.weights not in WEIGHT_TYPES:
            raise unknown_name("weight type", str(self.weights), WEIGHT_TYPES)
        if self.page_size not in PAGE_SIZES:
            raise UsageError(f"page_size {self.page_size} is not one of {', '.join(map(str, PAGE_SIZES))}")
        for name in ("max_model_len", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens", "threads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} is {value!r}: give a whole number from 1")
        if self.max_num_seqs > 4096 or self.max_num_batched_tokens > 1 << 16 or (self.threads or 1) > 1024:
            raise UsageError("max_num_seqs goes up to 4096, max_num_batched_tokens up to 65536, threads up to 1024")
        share = self.max_pinned_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UsageError(f"max_pinned_share is {share!r}: give a number, 0 to 1")
        if self.speculative_config is not None and not isinstance(self.speculative_config, SpeculativeConfig):
            raise UsageError(f"speculative_config is {self.speculative_config!r}: give a SpeculativeConfig")
        if policy(self.policy).paged and not self.enable_cache:
            raise UsageError(
                f"policy {self.policy} chooses which cached pages to read, and enable_cache is off: nothing is kept to "
                "choose from; give one of them"
            )
        if self.speculative_config is not None and not self.enable_cache:
            raise UsageError("speculative_config needs the cache, and enable_cache is off: give one of them")

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> EngineConfig:
        """A config from keyword options; an unknown one is named, with near matches."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_name("engine option", name, known)
        given = options.get("speculative_config")
        if isinstance(given, Mapping):
            options = {**options, "speculative_config": SpeculativeConfig.from_options(given)}
        return cls(**options)
