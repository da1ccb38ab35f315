"""Put an engine together: model + config + backend -> layout, pool, program, engine.

The only place that knows all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvist.cache.codec import codec
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.manager import CacheManager
from kvist.config import EngineConfig
from kvist.engine.engine import Engine, EngineLimits
from kvist.engine.runner import Runner
from kvist.errors import CapacityError, UsageError
from kvist.events import EventChannel
from kvist.kernels.program import Backend, Limits
from kvist.models.config import ModelConfig
from kvist.models.decoder import build_program
from kvist.models.load import Model
from kvist.models.rotary import rotary_tables

NUMERIC_VERSION = b"1"  # of the kernels' arithmetic: raise it whenever a change may change a bit


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was decided for the pool: longest sequence in tokens, pages."""

    max_model_len: int
    num_pages: int


def page_layout(model: ModelConfig, page_size: int, kv_dtype: str) -> PageLayout:
    """The layout of a model's pages."""
    return PageLayout(
        (LayerSpec(model.num_kv_heads, model.stored_head_dim),) * model.num_layers, page_size, codec(kv_dtype)
    )


def choose_sizes(model: ModelConfig, layout: PageLayout, config: EngineConfig) -> Sizes:
    """Size the pool. A length that was asked for must fit the memory; one that was not is cut to it.

    Errors carry the arithmetic.
    """
    trained = model.max_positions
    asked = config.max_model_len
    if asked is not None and asked > trained:
        raise UsageError(
            f"max_model_len {asked} is beyond the {trained} positions this model was trained for: "
            f"give at most {trained}"
        )
    longest = asked or trained
    given = config.kv_cache_memory_bytes
    if given is None:
        useful = layout.pages_for(longest) * config.max_num_seqs
        pages = min(useful, max(layout.num_pages_for_bytes(available_memory() // 4), 1))
    else:
        pages = layout.num_pages_for_bytes(given)
    size, each = layout.page_size, layout.page_bytes
    held = given if given is not None else pages * each
    have = f"{held:,} bytes hold {pages} pages of {size} tokens x {layout.bytes_per_token:,} bytes"
    if pages < 1 or pages * size < 2:
        raise CapacityError(f"too little memory for the cache: {have}; give kv_cache_memory_bytes of at least {each:,}")
    if asked is not None and pages < layout.pages_for(asked):
        wanted = layout.pages_for(asked)
        need = layout.pool_bytes(wanted)
        raise CapacityError(
            f"too little memory for one sequence of max_model_len {asked}: it needs {wanted} pages = {need:,} bytes, "
            f"{have}; give kv_cache_memory_bytes={need} or max_model_len={pages * size}"
        )
    return Sizes(min(longest, pages * size), pages)


def assemble(
    model: Model,
    config: EngineConfig,
    backend: Backend,
    *,
    eos_ids: Iterable[int] = (),
    events: EventChannel | None = None,
) -> Engine:
    """An engine over `model`; eos_ids: end tokens the tokenizer knows beyond the config's.

    Close its manager when done.
    """
    layout = page_layout(
        model.config, config.page_size, model.weights if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    )
    sizes = choose_sizes(model.config, layout, config)
    events = events or EventChannel()
    caching = config.enable_prefix_caching and config.enable_cache
    manager = CacheManager(
        layout, sizes.num_pages, identity=identity(model), enable_prefix_caching=caching, events=events
    )
    rotary = rotary_tables(model.config, sizes.max_model_len, model.rope_divisors)
    program = build_program(model.config, model.matrices, model.vectors, rotary)
    limits = Limits(
        rows=config.max_num_batched_tokens,
        sampled=min(config.max_num_seqs, config.max_num_batched_tokens),
        sequences=config.max_num_seqs,
    )
    runner = Runner(backend.bind(program, manager.pool, limits), manager)
    engine_limits = EngineLimits(
        model.config.vocab_size, sizes.max_model_len, config.max_num_seqs, config.max_num_batched_tokens,
        frozenset((*model.config.eos_ids, *eos_ids)), config.seed, config.enable_cache, config.check_integrity,
    )  # fmt: skip
    return Engine(runner, manager, engine_limits, events)


def identity(model: Model) -> bytes:
    """What a page's numbers depend on besides tokens and layout, as far as one process can tell models apart.

    Pages that leave the process need the digest of the weights themselves; within it a manager belongs to one loaded
    model.
    """
    return hashlib.sha256(repr((model.config, model.weights)).encode() + NUMERIC_VERSION).digest()


def available_memory() -> int:
    """Bytes this process may still use without swapping (the machine's half where the system does not tell)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
