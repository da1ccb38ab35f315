"""Put an engine together: model + config + backend -> layout, pool, program, engine.

The only place that knows all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvist.cache.codec import Codec, Packed, codec
from kvist.cache.codec.choice import float_type, layer_codecs
from kvist.cache.codec.packed import signs
from kvist.cache.group import PageGroup, Sharing, most_pages, page_groups
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.manager import CacheManager
from kvist.cache.policy import Span, policy
from kvist.config import EngineConfig
from kvist.engine.admission import EngineLimits
from kvist.engine.engine import Engine
from kvist.engine.runner import Runner
from kvist.engine.speculative.draft import DraftProposer
from kvist.engine.speculative.ngram import NgramProposer
from kvist.engine.speculative.proposer import Proposer
from kvist.engine.speculative.speculator import Speculator
from kvist.errors import CapacityError, InternalError, UsageError
from kvist.events import EventChannel
from kvist.kernels.program import Backend, Limits, Mix, Rotary
from kvist.models.config import ModelConfig
from kvist.models.decoder import build_program
from kvist.models.hub import resolve
from kvist.models.load import Model, load_model
from kvist.models.rotary import frequencies, local_rotary_tables, rotary_tables, turning_back

PREFAULT_BYTES = 1 << 30
SMALL_WINDOW = 1024  # layers of a model's own that see no more are not packed
MOST_POSITIONS = 1 << 20  # of a sequence whose tokens see a window: the table of angles has a row for each
NUMERIC_VERSION = b"1"  # of the kernels' arithmetic: raise it whenever a change may change a bit


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was decided for the pools: longest sequence in tokens, pages of the first group."""

    max_model_len: int
    num_pages: int


def page_sharing(model: ModelConfig, config: EngineConfig, floats: str) -> Sharing:
    """The groups of a model's layers, and how they share memory. floats: the type of pages that are not packed."""
    specs = layer_specs(model, config, codec(floats))
    spans = layer_spans(model, config)
    for span, spec in zip(spans, specs, strict=True):
        if spec.packed and span.sinks > config.page_size:
            raise UsageError(
                f"policy {config.policy} with packed pages: the {span.sinks} sinks must lie in the first page, which "
                f"is read as floats, and pages have {config.page_size} slots: give fewer sinks or larger pages"
            )
    groups = page_groups(PageLayout(specs, config.page_size, codec(floats)), spans)
    return Sharing(groups, config.max_num_seqs, config.max_num_batched_tokens)


def layer_specs(model: ModelConfig, config: EngineConfig, floats: Codec) -> tuple[LayerSpec, ...]:
    """What each layer keeps, and how. Layers with a small window of their own stay floats: there is little to win."""
    plain = LayerSpec(model.num_kv_heads, model.stored_head_dim)
    chosen = layer_codecs(config.kv_cache_dtype, config.kv_cache_skip_layers, model.num_layers, floats)
    small = [(model.window(layer) or SMALL_WINDOW + 1) <= SMALL_WINDOW for layer in range(model.num_layers)]
    return tuple(
        replace(plain, k=codecs.k, v=codecs.v) if codecs.packed and not near else plain
        for codecs, near in zip(chosen, small, strict=True)
    )


def layer_spans(model: ModelConfig, config: EngineConfig) -> list[Span]:
    """What a token sees in each layer, by the model and the policy. A window that sees all positions is none."""
    longest, rule = config.max_model_len or model.max_positions, policy(config.policy)
    spans = [rule.span(model.window(layer)) for layer in range(model.num_layers)]
    return [Span() if span.window is not None and span.window >= longest else span for span in spans]


def most_positions(model: ModelConfig, config: EngineConfig) -> int:
    """The longest sequence that can be run: what the model was trained for, or more where no token sees so far."""
    endless = policy(config.policy).endless and model.positions == "rotary"
    return MOST_POSITIONS if endless else model.max_positions


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
        pages = min(sharings[0].useful(longest), max(pages, 1))
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
) -> Engine:
    """An engine over `model`; eos_ids: end tokens the tokenizer knows beyond the config's.

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
    runner, manager = _running(model, config, sizes, backend, drafts, events)
    engine_limits = EngineLimits(
        model.config.vocab_size, sizes.max_model_len, config.max_num_seqs, config.max_num_batched_tokens,
        frozenset((*model.config.eos_ids, *eos_ids)), config.seed, config.enable_cache, config.check_integrity,
        config.policy, *_named(config, manager),
    )  # fmt: skip
    if speculation is None:
        return Engine(runner, manager, engine_limits, events)
    proposer: Proposer = NgramProposer(speculation.prompt_lookup_max, speculation.prompt_lookup_min)
    if speculation.method == "draft_model" and draft is not None:
        longest = min(draft.config.max_positions, sizes.max_model_len)
        ahead, its = _running(draft, _drafting(config), Sizes(longest, sizes.num_pages), backend, 0, EventChannel())
        proposer = DraftProposer(ahead, its, longest, config.max_num_batched_tokens)
    return Engine(runner, manager, engine_limits, events, Speculator(proposer, drafts, speculation.adaptive))


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
    model: Model, config: EngineConfig, sizes: Sizes, backend: Backend, drafts: int, events: EventChannel
) -> tuple[Runner, CacheManager]:
    """A model's pages and what runs steps over them, with logits of `drafts` more rows a sequence."""
    caching = config.enable_prefix_caching and config.enable_cache
    manager = CacheManager(
        _sharing(model, config).shared(sizes.num_pages),
        identity=identity(model, sizes.max_model_len, config.policy),
        enable_prefix_caching=caching,
        events=events,
        max_pinned=int(config.max_pinned_share * sizes.num_pages),
    )
    if config.prefault:
        for ledger in manager.ledgers:
            ledger.pool.prefault(PREFAULT_BYTES)
    rotary = rotary_tables(model.config, sizes.max_model_len, model.rope_divisors)
    local = local_rotary_tables(model.config, sizes.max_model_len)
    spans = layer_spans(model.config, config)
    turns: tuple[Rotary | None, Rotary | None] = (None, None)
    if any(span.sinks for span in spans):
        plain = replace(model.config, rope_scaling=None)  # local angles are not scaled
        turns = (turning_back(rotary, model.config), turning_back(local, plain))
    program = build_program(
        model.config, model.matrices, model.vectors, rotary, local, spans, turns, _packed_layers(manager.groups)
    )
    limits = Limits(
        rows=config.max_num_batched_tokens,
        sampled=min(config.max_num_seqs * (1 + drafts), config.max_num_batched_tokens),
        sequences=config.max_num_seqs,
    )
    return Runner(backend.bind(program, [ledger.pool for ledger in manager.ledgers], limits), manager), manager


def _packed_layers(groups: Sequence[PageGroup]) -> dict[int, Mix | None]:
    """The layers whose pages are packed, and how their heads are turned for it."""
    found: dict[int, Mix | None] = {}
    for group in groups:
        for layer, spec in enumerate(group.layout.layers):
            if spec is not None and spec.packed:
                k, v = (isinstance(codec, Packed) and codec.rotated for codec in group.layout.codecs(layer))
                found[layer] = Mix(signs(spec.head_dim), k, v) if k or v else None
    return found


def _named(config: EngineConfig, manager: CacheManager) -> tuple[str, bool]:
    """The codec of the pages as reports name it, and whether it is lossy."""
    floats, lossy = manager.layout.codec.name, any(group.exact for group in manager.groups)
    if not lossy or not config.kv_cache_skip_layers:
        return config.kv_cache_dtype if lossy else floats, lossy
    return f"{config.kv_cache_dtype} ({floats} in layers {','.join(map(str, config.kv_cache_skip_layers))})", True


def _drafting(config: EngineConfig) -> EngineConfig:
    """Of a draft model: its pages stay floats, for its layers are others than the model's, and few."""
    return replace(config, kv_cache_dtype=float_type(config.kv_cache_dtype, "auto"), kv_cache_skip_layers=())


def _check_draft(model: Model, draft: Model) -> None:
    """Refuse a draft model whose tokens cannot be the model's."""
    own, its = model.config.vocab_size, draft.config.vocab_size
    if own != its:
        raise UsageError(
            f"the draft model has a vocabulary of {its} tokens and the model one of {own}: "
            "give a draft model with the same tokenizer"
        )


def identity(model: Model, longest: int, rule: str = "full") -> bytes:
    """What a page's numbers depend on besides tokens and layout, as far as one process can tell models apart.

    longest: the longest sequence that is run, which some rotary embeddings go by (see `RopeScaling`). rule: the policy.

    Pages that leave the process need the digest of the weights themselves; within it a manager belongs to one loaded
    model.
    """
    known = min(longest, model.config.max_positions)
    angles = frequencies(model.config, known).tobytes() if model.config.rotary_dim else b""
    return hashlib.sha256(repr((model.config, model.weights, rule)).encode() + angles + NUMERIC_VERSION).digest()


def available_memory() -> int:
    """Bytes this process may still use without swapping (the machine's half where the system does not tell)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
