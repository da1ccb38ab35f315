"""What each layer of a model keeps and sees, by its own nature, the codec and the policy; what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvist.cache.codec import Codec, Packed, codec
from kvist.cache.codec.choice import decoded, layer_codecs
from kvist.cache.codec.packed import signs
from kvist.cache.group import PageGroup, Sharing, page_groups
from kvist.cache.layout import LayerSpec, PageLayout
from kvist.cache.policy import Choice, Span, policy
from kvist.cache.policy.evict import Evict
from kvist.cache.score import score
from kvist.config import EngineConfig
from kvist.errors import UsageError
from kvist.kernels.program import Floats, Mix
from kvist.models.config import ModelConfig

SMALL_WINDOW = 1024  # layers of a model's own that see no more are not packed
MOST_POSITIONS = 1 << 20  # of a sequence whose tokens see a window: the table of angles has a row for each


def page_sharing(model: ModelConfig, config: EngineConfig, floats: str) -> Sharing:
    """The groups of a model's layers, and how they share memory. floats: the type of pages that are not packed."""
    specs = layer_specs(model, config, codec(floats))
    spans = layer_spans(model, config)
    for span, spec in zip(spans, specs, strict=True):
        if spec.packed and span.sinks > config.page_size:
            raise UsageError(
                f"policy {config.policy} with packed pages: its {span.sinks} sinks must lie in the first page, which "
                f"is read as floats, and pages have {config.page_size} slots: give fewer sinks or larger pages"
            )
    groups = page_groups(PageLayout(specs, config.page_size, codec(floats)), spans)
    return Sharing(groups, config.max_num_seqs, config.max_num_batched_tokens)


def layer_specs(model: ModelConfig, config: EngineConfig, floats: Codec) -> tuple[LayerSpec, ...]:
    """What each layer keeps, and how. Layers with a small window of their own stay floats: there is little to win."""
    plain = LayerSpec(model.num_kv_heads, model.stored_head_dim)
    chosen = layer_codecs(config.kv_cache_dtype, config.kv_cache_skip_layers, model.num_layers, floats)
    small = [(model.window(layer) or SMALL_WINDOW + 1) <= SMALL_WINDOW for layer in range(model.num_layers)]
    specs = tuple(
        replace(plain, k=codecs.k, v=codecs.v) if codecs.packed and not near else plain
        for codecs, near in zip(chosen, small, strict=True)
    )
    choices = layer_choices(model, config)
    return tuple(replace(spec, sketch=choice is not None) for spec, choice in zip(specs, choices, strict=True))


def layer_means(model: ModelConfig, config: EngineConfig, floats: Codec) -> dict[int, Floats]:
    """What is taken from the keys of packed layers, float32 (KV heads x head size,) each, where it is known.

    Not where something beside keys takes part in the softmax, or a query looks at sinks as if they were elsewhere: a
    mean that scores miss would not be the same for all of them then.
    """
    specs, spans = layer_specs(model, config, floats), layer_spans(model, config)
    chosen = layer_codecs(config.kv_cache_dtype, config.kv_cache_skip_layers, model.num_layers, floats)
    found: dict[int, Floats] = {}
    for layer, (codecs, spec, span) in enumerate(zip(chosen, specs, spans, strict=True)):
        if not (codecs.mean and spec.packed) or not takes_means(model) or span.sinks:
            continue
        mean, size = decoded(codecs.mean), model.num_kv_heads * model.stored_head_dim
        if mean.size != size:
            raise UsageError(
                f"{config.kv_cache_dtype[1:]}: the mean key of layer {layer} has {mean.size} numbers, and this model's "
                f"keys have {size}: choose codecs for this model"
            )
        found[layer] = mean
    return found


def takes_means(model: ModelConfig) -> bool:
    """Whether the softmax of a model's attention is of scores alone, as they are."""
    return not model.sinks and model.attention_softcap is None


def layer_choices(model: ModelConfig, config: EngineConfig) -> list[Choice | None]:
    """How many pages a token chooses to read in each layer."""
    rule = policy(config.policy)
    return [rule.choice(layer, config.page_size) for layer in range(model.num_layers)]


def layer_spans(model: ModelConfig, config: EngineConfig) -> list[Span]:
    """What a token sees in each layer, by the model and the policy. A window that sees all positions is none."""
    longest, rule = config.max_model_len or model.max_positions, policy(config.policy)
    spans = [rule.span(model.window(layer)) for layer in range(model.num_layers)]
    return [Span() if span.window is not None and span.window >= longest else span for span in spans]


def most_positions(model: ModelConfig, config: EngineConfig) -> int:
    """The longest sequence that can be run: what the model was trained for, or more where no token sees so far."""
    endless = policy(config.policy).endless and model.positions == "rotary"
    return MOST_POSITIONS if endless else model.max_positions


def check_eviction(model: ModelConfig, rule: Evict, groups: Sequence[PageGroup]) -> None:
    """Refuse what entries cannot be evicted from."""
    if any(group.exact for group in groups):
        raise UsageError(
            f"policy {rule.name}: a page is packed once, when it is full, and what is kept of it would be packed "
            "again; give kv_cache_dtype f32, f16 or bf16"
        )
    if any(group.window is not None for group in groups):
        raise UsageError(
            f"policy {rule.name}: layers of this model have windows, which go by positions, and slots of kept entries "
            "are none; give another policy"
        )
    if model.sinks and score(rule.by).watch in ("sum", "max"):
        raise UsageError(f"policy {rule.name}: this model's learned sinks take part in attention; give by=knorm")
    if model.positions == "learned" and score(rule.by).beyond(1):
        raise UsageError(
            f"policy {rule.name}: it reads on behind the prompt, where this model has no learned positions; give "
            "by=snapkv"
        )


def packed_layers(groups: Sequence[PageGroup]) -> dict[int, Mix | None]:
    """The layers whose pages are packed, and how their heads are turned for it."""
    found: dict[int, Mix | None] = {}
    for group in groups:
        for layer, spec in enumerate(group.layout.layers):
            if spec is not None and spec.packed:
                dims = spec.head_dim
                k, v = (isinstance(codec, Packed) and codec.turns(dims) for codec in group.layout.codecs(layer))
                found[layer] = Mix(signs(dims), k, v) if k or v else None
    return found
