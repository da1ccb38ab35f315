"""Put an engine together: model + config + backend -> layout, pool, program, engine.

The only place that knows all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvist.cache.codec.choice import float_type
from kvist.cache.group import Sharing, most_pages
from kvist.cache.manager import CacheManager
from kvist.cache.policy import policy
from kvist.cache.policy.evict import Evict
from kvist.cache.score import score
from kvist.config import EngineConfig
from kvist.engine.admission import EngineLimits
from kvist.engine.engine import Engine
from kvist.engine.eviction import SPARE, Evictor
from kvist.engine.runner import Runner
from kvist.engine.speculative.draft import DraftProposer
from kvist.engine.speculative.ngram import NgramProposer
from kvist.engine.speculative.proposer import Proposer
from kvist.engine.speculative.speculator import Speculator
from kvist.errors import CapacityError, InternalError, UsageError
from kvist.events import EventChannel
from kvist.kernels.program import Backend, Executable, Floats, Limits, Program, Rotary
from kvist.layers import (
    check_eviction,
    layer_choices,
    layer_means,
    layer_spans,
    most_positions,
    packed_layers,
    page_sharing,
)
from kvist.models.config import ModelConfig
from kvist.models.decoder import build_program
from kvist.models.hub import resolve
from kvist.models.load import Model, load_model
from kvist.models.rotary import frequencies, local_rotary_tables, rotary_tables, turning_back

PREFAULT_BYTES = 1 << 30
NUMERIC_VERSION = b"9"  # of the kernels' arithmetic: raise it whenever a change may change a bit


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was decided for the pools: longest sequence in tokens, pages of the first group."""

    max_model_len: int
    num_pages: int


def choose_sizes(model: ModelConfig, config: EngineConfig, sharings: Sequence[Sharing]) -> Sizes:
    """Size the pools. A length that was asked for must fit the memory; one that was not is cut to it.

    sharings: the model's, and perhaps a draft model's, which gets as many pages. Errors carry the arithmetic.
    """
    trained, asked, most = model.max_positions, config.max_model_len, most_positions(model, config)
    policy(config.policy).check(config.page_size, trained)
    if asked is not None and asked > most:
        beyond = f"{trained} positions this model was trained for" if most == trained else f"{most} that can be run"
        raise UsageError(f"max_model_len {asked} is beyond the {beyond}: give at most {most}")
    longest, size = asked or trained, config.page_size
    given, each = config.kv_cache_memory_bytes, sum(sharing.each for sharing in sharings)
    pages = most_pages(sharings, available_memory() // 4 if given is None else given)
    if given is None:
        most, rule = sharings[0].useful(longest), policy(config.policy)
        if isinstance(rule, Evict):  # of one prompt at a time
            most += -(-rule.extra(longest) // size) + SPARE
        pages = min(most, max(pages, 1))
    held = sum(sharing.bytes(pages) for sharing in sharings) if given is None else given
    have = f"{held:,} bytes hold {pages} pages of {size} tokens x {each // size:,} bytes"
    have += " (draft model included)" if len(sharings) > 1 else ""
    if pages < 1 or pages * size < 2:
        raise CapacityError(f"too little memory for the cache: {have}; give kv_cache_memory_bytes of at least {each:,}")
    fits = sharings[0].longest(pages, longest)
    if asked is not None and fits < asked:
        wanted = sharings[0].groups[0].held(asked)
        need = sum(sharing.bytes(wanted) for sharing in sharings)
        raise CapacityError(
            f"too little memory for one sequence of max_model_len {asked}: it needs {wanted} pages = {need:,} bytes, "
            f"{have}; give kv_cache_memory_bytes={need} or max_model_len={fits}"
        )
    return Sizes(fits, pages)


def assemble(
    model: Model,
    config: EngineConfig,
    backend: Backend,
    *,
    eos_ids: Iterable[int] = (),
    events: EventChannel | None = None,
    draft: Model | None = None,
    instruction: Sequence[int] = (),
) -> Engine:
    """An engine over `model`; eos_ids: end tokens the tokenizer knows beyond the config's.

    instruction: tokens that ask to repeat a text, for a policy that lets the model do so (see `cache.score.kvzip`).

    draft: the model that a speculative_config of method "draft_model" names. Its pool holds as many tokens as the
    model's, and kv_cache_memory_bytes is the size of both. Close the engine when done.
    """
    events = events or EventChannel()
    speculation = config.speculative_config
    drafts = 0 if speculation is None else speculation.drafts
    sharings = [_sharing(model, config)]
    if speculation is not None and speculation.method == "draft_model":
        if draft is None:
            raise InternalError("a draft model was asked for, and none was given to assemble")
        _check_draft(model, draft)
        sharings.append(_sharing(draft, _drafting(config)))
    sizes = choose_sizes(model.config, config, sharings)
    runner, manager, evictor = _running(model, config, sizes, backend, drafts, events, instruction)
    engine_limits = EngineLimits(
        model.config.vocab_size, sizes.max_model_len, config.max_num_seqs, config.max_num_batched_tokens,
        frozenset((*model.config.eos_ids, *eos_ids)), config.seed, config.enable_cache, config.check_integrity,
        config.policy, *_named(config, manager),
    )  # fmt: skip
    if speculation is None:
        return Engine(runner, manager, engine_limits, events, evictor=evictor)
    proposer: Proposer = NgramProposer(speculation.prompt_lookup_max, speculation.prompt_lookup_min)
    if speculation.method == "draft_model" and draft is not None:
        longest = min(draft.config.max_positions, sizes.max_model_len)
        ahead, its, _ = _running(draft, _drafting(config), Sizes(longest, sizes.num_pages), backend, 0, EventChannel())
        proposer = DraftProposer(ahead, its, longest, config.max_num_batched_tokens)
    return Engine(runner, manager, engine_limits, events, Speculator(proposer, drafts, speculation.adaptive), evictor)


def load_draft(config: EngineConfig, backend: Backend, report: Callable[[str, int, int], None]) -> Model | None:
    """The draft model that a config's speculative decoding asks for, if it asks for one."""
    speculation = config.speculative_config
    if speculation is None or speculation.model is None:
        return None
    path = resolve(speculation.model)
    return load_model(
        path, backend, config.weights, lambda done, total: report("loading the draft model's weights", done, total)
    )


def _sharing(model: Model, config: EngineConfig) -> Sharing:
    return page_sharing(model.config, config, float_type(config.kv_cache_dtype, model.float_type))


def _running(
    model: Model, config: EngineConfig, sizes: Sizes, backend: Backend, drafts: int, events: EventChannel,
    instruction: Sequence[int] = (),
) -> tuple[Runner, CacheManager, Evictor | None]:  # fmt: skip
    """A model's pages and what runs steps over them, with logits of `drafts` more rows a sequence."""
    caching, rule = config.enable_prefix_caching and config.enable_cache, policy(config.policy)
    groups = _sharing(model, config).shared(sizes.num_pages)
    beyond, means = 0, layer_means(model.config, config, groups[0].layout.codec)
    if isinstance(rule, Evict):
        check_eviction(model.config, rule, groups)
        beyond = max(score(rule.by).ahead, score(rule.by).beyond(sizes.max_model_len))
    manager = CacheManager(
        groups,
        # a prompt's own pages are those of any other policy that sees all
        identity=identity(model, sizes.max_model_len, "full" if isinstance(rule, Evict) else config.policy, means),
        enable_prefix_caching=caching,
        events=events,
        max_pinned=int(config.max_pinned_share * sizes.num_pages),
    )
    if config.prefault:
        for ledger in manager.ledgers:
            ledger.pool.prefault(PREFAULT_BYTES)
    rotary = rotary_tables(model.config, sizes.max_model_len, model.rope_divisors, beyond)
    local = local_rotary_tables(model.config, sizes.max_model_len)
    spans = layer_spans(model.config, config)
    turns: tuple[Rotary | None, Rotary | None] = (None, None)
    if any(span.sinks for span in spans):
        plain = replace(model.config, rope_scaling=None)  # local angles are not scaled
        turns = (turning_back(rotary, model.config), turning_back(local, plain))
    program = build_program(
        model.config,
        model.matrices,
        model.vectors,
        rotary,
        local,
        spans,
        turns,
        packed_layers(manager.groups),
        layer_choices(model.config, config),
        means,
    )
    pools, budget = [ledger.pool for ledger in manager.ledgers], config.max_num_batched_tokens
    limits = Limits(budget, min(config.max_num_seqs * (1 + drafts), budget), config.max_num_seqs, sizes.max_model_len)
    runner = Runner(backend.bind(program, pools, limits), manager)
    if not isinstance(rule, Evict):
        return runner, manager, None

    def bind(wanted: Program, rows: int, sampled: int) -> Executable:
        return backend.bind(wanted, pools, Limits(rows, sampled, 1, sizes.max_model_len))

    return runner, manager, Evictor(rule, program, bind, manager, budget, sizes.max_model_len, instruction)


def _named(config: EngineConfig, manager: CacheManager) -> tuple[str, bool]:
    """The codec of the pages as reports name it, and whether it is lossy."""
    floats, lossy = manager.layout.codec.name, any(group.exact for group in manager.groups)
    if not lossy or not config.kv_cache_skip_layers:
        return config.kv_cache_dtype if lossy else floats, lossy
    return f"{config.kv_cache_dtype} ({floats} in layers {','.join(map(str, config.kv_cache_skip_layers))})", True


def _drafting(config: EngineConfig) -> EngineConfig:
    """Of a draft model: its pages stay floats, and whole, for its layers are others than the model's, and few."""
    rule = "full" if isinstance(policy(config.policy), Evict) else config.policy
    return replace(
        config, kv_cache_dtype=float_type(config.kv_cache_dtype, "auto"), kv_cache_skip_layers=(), policy=rule
    )


def _check_draft(model: Model, draft: Model) -> None:
    """Refuse a draft model whose tokens cannot be the model's."""
    own, its = model.config.vocab_size, draft.config.vocab_size
    if own != its:
        raise UsageError(
            f"the draft model has a vocabulary of {its} tokens and the model one of {own}: "
            "give a draft model with the same tokenizer"
        )


def identity(model: Model, longest: int, rule: str, means: Mapping[int, Floats]) -> bytes:
    """What a page's numbers depend on besides tokens and layout, as far as one process can tell models apart.

    longest: the longest sequence that is run, which some rotary embeddings go by (see `RopeScaling`). rule: the policy.
    means: what is taken from the keys of layers.

    Pages that leave the process need the digest of the weights themselves; within it a manager belongs to one loaded
    model.
    """
    known = min(longest, model.config.max_positions)
    angles = frequencies(model.config, known).tobytes() if model.config.rotary_dim else b""
    known_means = b"".join(layer.to_bytes(4) + mean.tobytes() for layer, mean in sorted(means.items()))
    parts = repr((model.config, model.weights, rule)).encode() + angles + NUMERIC_VERSION + known_means
    return hashlib.sha256(parts).digest()


def available_memory() -> int:
    """Bytes this process may still use without swapping (the machine's half where the system does not tell)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
