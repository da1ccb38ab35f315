"""What differs between models of all families, as fields. The decoder reads these and never a model's name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kvist.errors import ModelFileError
from kvist.kernels.program import Activation

LANES = 16


def padded(width: int) -> int:
    """The width rounded up to whole vectors."""
    return -(-width // LANES) * LANES


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length: linear (factor), or llama3 (smoothed by wavelength)."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. Sizes in numbers, not bytes; `max_positions` is the trained context."""

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
    tie_embeddings: bool = False
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
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise ModelFileError(
                    f"the model's config gives {name} = {value!r}: expected a whole number from 1 to {limit}"
                )
        if self.num_heads % self.num_kv_heads:
            raise ModelFileError(
                f"the model's config gives {self.num_heads} heads and {self.num_kv_heads} KV heads: they do not divide"
            )
        if not 0 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ModelFileError(
                f"the model's config gives a rotary size of {self.rotary_dim} for heads of {self.head_dim}"
            )
        if not 0 < self.norm_eps < 1:
            raise ModelFileError(f"the model's config gives a norm epsilon of {self.norm_eps!r}")
        if not self.rope_theta > 0:
            raise ModelFileError(f"the model's config gives a rope base of {self.rope_theta!r}")

    @property
    def stored_head_dim(self) -> int:
        """A head's size in buffers and pages."""
        return padded(self.head_dim)

    @property
    def group(self) -> int:
        """Query heads that share a KV head: 1 in MHA, num_heads in MQA, between them in GQA."""
        return self.num_heads // self.num_kv_heads

    @property
    def attention(self) -> str:
        """MHA, GQA or MQA."""
        return "MHA" if self.group == 1 else "MQA" if self.num_kv_heads == 1 else "GQA"
