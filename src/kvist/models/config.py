"""What differs between models of all families, as fields. The decoder reads these and never a model's name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kvist.errors import ModelFileError
from kvist.kernels.program import Activation

LANES = 16
WEIGHT_TYPES = ("auto", "packed", "f32", "f16", "bf16", "int8")  # what weights can be held in


def padded(width: int) -> int:
    """The width rounded up to whole vectors."""
    return -(-width // LANES) * LANES


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    linear: by a factor. llama3: smoothed by wavelength.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        """Refuse what is no stretching."""
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            if not _is_number(getattr(self, name), 2**-10, 2**20):
                raise ModelFileError(
                    f"the model's config gives a rope {name} of {getattr(self, name)!r:.40}: "
                    "expected 0.001 to 1,000,000"
                )
        if not self.low_freq_factor < self.high_freq_factor:
            raise ModelFileError(
                f"the model's config gives a rope low_freq_factor of {self.low_freq_factor}, "
                f"not below {self.high_freq_factor}"
            )
        if not _is_whole(self.original_positions, 1, 1 << 31):
            raise ModelFileError(
                f"the model's config gives a rope original_max_position_embeddings of {self.original_positions!r:.40}"
            )


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
            if not _is_whole(value, 1, limit):
                raise ModelFileError(
                    f"the model's config gives {name} = {value!r:.40}: expected a whole number from 1 to {limit}"
                )
        if self.num_heads % self.num_kv_heads:
            raise ModelFileError(
                f"the model's config gives {self.num_heads} heads and {self.num_kv_heads} KV heads: they do not divide"
            )
        if not _is_whole(self.rotary_dim, 0, self.head_dim) or self.rotary_dim % 2:
            raise ModelFileError(
                f"the model's config gives a rotary size of {self.rotary_dim!r:.40} for heads of {self.head_dim}"
            )
        if not _is_number(self.norm_eps, 1e-30, 1):
            raise ModelFileError(f"the model's config gives a norm epsilon of {self.norm_eps!r:.40}")
        if not _is_number(self.rope_theta, 1, 1e15):
            raise ModelFileError(f"the model's config gives a rope base of {self.rope_theta!r:.40}")
        if not isinstance(self.tie_embeddings, bool):
            raise ModelFileError(
                f"the model's config gives tie_embeddings = {self.tie_embeddings!r:.40}: expected true or false"
            )

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
