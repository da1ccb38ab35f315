"""How rotary frequencies are stretched beyond the trained length, as a file says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvist.errors import ModelFileError


def is_whole(value: object, low: int, high: int) -> bool:
    """A whole number within bounds; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> bool:
    """A number within bounds; NaN is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length, `original_positions`.

    linear: by a factor. llama3: smoothed by wavelength. yarn (Peng et al. 2023): long wavelengths divided, those that
    turn more than beta_fast times in the trained length kept, a ramp between. longrope (Ding et al. 2024): a divisor of
    each pair, `short` ones for sequences within the trained length and `long` ones beyond it. dynamic: a larger base,
    by the length. attention_factor: what q and k are multiplied by beside being turned.

    dynamic and longrope depend on a length. It is the longest that is run at all, not the one reached so far: angles
    must not change while a sequence grows, or its cached keys would be those of another model.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no stretching."""
        for name in ("factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"):
            if not is_number(getattr(self, name), 2**-10, 2**20):
                raise ModelFileError(
                    f"the model's config gives a rope {name} of {getattr(self, name)!r:.40}: "
                    "expected 0.001 to 1,000,000"
                )
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if not getattr(self, low) < getattr(self, high):
                raise ModelFileError(
                    f"the model's config gives a rope {low} of {getattr(self, low)}, not below {getattr(self, high)}"
                )
        if not is_whole(self.original_positions, 1, 1 << 31):
            raise ModelFileError(
                f"the model's config gives a rope original_max_position_embeddings of {self.original_positions!r:.40}"
            )
        if not isinstance(self.truncate, bool):
            raise ModelFileError(f"the model's config gives a rope truncate of {self.truncate!r:.40}")

    def check(self, rotary_dim: int) -> None:
        """Refuse what does not fit heads of which `rotary_dim` numbers are turned."""
        if self.kind == "dynamic" and rotary_dim <= 2:
            raise ModelFileError(f"the model's config gives a dynamic rope for a rotary size of {rotary_dim}")
        if self.kind == "longrope":
            for name, divisors in (("short_factor", self.short), ("long_factor", self.long)):
                if len(divisors) != rotary_dim // 2:
                    raise ModelFileError(
                        f"the model's config gives {len(divisors)} rope {name}s for {rotary_dim // 2} rotary pairs"
                    )
                if not all(is_number(divisor, 2**-10, 2**20) for divisor in divisors):
                    raise ModelFileError(f"the model's config gives a rope {name} that is no divisor")
