"""What differs between models of all families, as fields. The decoder reads these and never a model's name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from kvist.errors import ModelFileError
from kvist.kernels.program import Activation
from kvist.models.rope_scaling import RopeScaling, is_number, is_whole

LANES = 16
WEIGHT_TYPES = ("auto", "packed", "f32", "f16", "bf16", "int8")  # what weights can be held in


def padded(width: int) -> int:
    """The width rounded up to whole vectors."""
    return -(-width // LANES) * LANES


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. Sizes in numbers, not bytes; `max_positions` is the trained context.

    parallel: attention and MLP read the same residual stream and are both added to it (GPT-J); shared_norm: through one
    norm. pre_norms: attention and MLP read normed rows; post_norms: what they give is normed before it is added.
    query_key_norm: q and k are normed, each head alone or the whole row. windows: of each layer, the positions a row
    sees, its own included (None: all); () means all layers see all. local_rope_theta: layers with a window have rotary
    angles of this base, unscaled. query_scalar: scores are divided by its square root (None: by the head size's).
    scaled_embedding: by the square root of the hidden size. attention_softcap, sinks: see `kernels.program.Attend`;
    logits_softcap: see `Cap`. experts: the MLP is a mixture of so many (0: it is none), `experts_chosen` for a row;
    renormalise_experts, expert_clamp: see `Experts`.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    gated: bool
    positions: Literal["rotary", "learned"]
    rotary_dim: int = 0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    tie_embeddings: bool = False
    scaled_embedding: bool = False
    parallel: bool = False
    shared_norm: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    query_key_norm: Literal["none", "heads", "row"] = "none"
    windows: tuple[int | None, ...] = ()
    query_scalar: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    sinks: bool = False
    experts: int = 0
    experts_chosen: int = 0
    renormalise_experts: bool = False
    expert_clamp: float | None = None
    eos_ids: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be a model: the file is not trusted."""
        bounds = {
            "vocab_size": 1 << 24,
            "hidden_size": 1 << 20,
            "num_layers": 1 << 12,
            "num_heads": 1 << 14,
            "num_kv_heads": 1 << 14,
            "head_dim": 1 << 14,
            "intermediate_size": 1 << 22,
            "max_positions": 1 << 31,
        }
        for name, limit in bounds.items():
            value = getattr(self, name)
            if not is_whole(value, 1, limit):
                raise ModelFileError(
                    f"the model's config gives {name} = {value!r:.40}: expected a whole number from 1 to {limit}"
                )
        if self.num_heads % self.num_kv_heads:
            raise ModelFileError(
                f"the model's config gives {self.num_heads} heads and {self.num_kv_heads} KV heads: they do not divide"
            )
        if not is_whole(self.rotary_dim, 0, self.head_dim) or self.rotary_dim % 2:
            raise ModelFileError(
                f"the model's config gives a rotary size of {self.rotary_dim!r:.40} for heads of {self.head_dim}"
            )
        if not is_number(self.norm_eps, 1e-30, 1):
            raise ModelFileError(f"the model's config gives a norm epsilon of {self.norm_eps!r:.40}")
        if not is_number(self.rope_theta, 1, 1e15):
            raise ModelFileError(f"the model's config gives a rope base of {self.rope_theta!r:.40}")
        few = is_whole(self.experts, 0, 1 << 12) and is_whole(self.experts_chosen, min(self.experts, 1), self.experts)
        if not few:
            raise ModelFileError(
                f"the model's config gives {self.experts!r:.40} experts, {self.experts_chosen!r:.40} of them for a row"
            )
        for name in ("tie_embeddings", "parallel", "shared_norm", "renormalise_experts"):
            if not isinstance(getattr(self, name), bool):
                raise ModelFileError(
                    f"the model's config gives {name} = {getattr(self, name)!r:.40}: expected true or false"
                )
        for name in ("local_rope_theta", "query_scalar", "attention_softcap", "logits_softcap", "expert_clamp"):
            value = getattr(self, name)
            if value is not None and not is_number(value, 1 if name == "local_rope_theta" else 1e-3, 1e15):
                raise ModelFileError(f"the model's config gives {name} = {value!r:.40}: no such number can be meant")
        if self.windows and len(self.windows) != self.num_layers:
            raise ModelFileError(f"the model's config describes {len(self.windows)} layers and has {self.num_layers}")
        for window in self.windows:
            if window is not None and not is_whole(window, 1, 1 << 31):
                raise ModelFileError(f"the model's config gives a sliding window of {window!r:.40}")
        if self.rope_scaling is not None:
            self.rope_scaling.check(self.rotary_dim)

    @property
    def stored_head_dim(self) -> int:
        """A head's size in buffers and pages."""
        return padded(self.head_dim)

    def window(self, layer: int) -> int | None:
        """How many positions a row of this layer sees, its own included; None: all."""
        return self.windows[layer] if self.windows else None

    @property
    def embed_scale(self) -> float:
        """What embeddings are multiplied by."""
        return math.sqrt(self.hidden_size) if self.scaled_embedding else 1.0

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        return 1 / math.sqrt(self.head_dim if self.query_scalar is None else self.query_scalar)

    @property
    def group(self) -> int:
        """Query heads that share a KV head: 1 in MHA, num_heads in MQA, between them in GQA."""
        return self.num_heads // self.num_kv_heads

    @property
    def attention(self) -> str:
        """MHA, GQA or MQA."""
        return "MHA" if self.group == 1 else "MQA" if self.num_kv_heads == 1 else "GQA"
