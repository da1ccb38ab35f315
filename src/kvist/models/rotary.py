"""Tables of rotary angles (Su et al. 2021), with the frequency scalings that models are trained with."""

from __future__ import annotations

import math

import numpy as np

from kvist.kernels.program import Floats, Rotary
from kvist.models.config import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> Floats:
    """Radians a position for each pair, float32 (rotary_dim / 2,): theta^(-2i/d), scaled as the config says."""
    exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
    plain = (1.0 / np.power(config.rope_theta, exponents.astype(np.float64))).astype(np.float32)
    return plain if config.rope_scaling is None else _scale(plain, config.rope_scaling)


def _scale(plain: Floats, scaling: RopeScaling) -> Floats:
    """linear: all divided by the factor. llama3: long wavelengths divided, short ones kept, those between blended."""
    if scaling.kind == "linear":
        return (plain / np.float32(scaling.factor)).astype(np.float32)
    wavelength = 2 * math.pi / plain
    low = scaling.original_positions / scaling.low_freq_factor
    high = scaling.original_positions / scaling.high_freq_factor
    smooth = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * plain / scaling.factor + smooth * plain
    scaled = np.where(wavelength > low, plain / scaling.factor, np.where(wavelength < high, plain, blended))
    return scaled.astype(np.float32)


def rotary_tables(config: ModelConfig, positions: int, divisors: Floats | None = None) -> Rotary | None:
    """Cosines and sines of positions 0..positions-1; None for learned positions.

    divisors: one per pair, when a file brings its own scaling (GGUF's ``rope_freqs``). The angle is the float32
    product of position and frequency, as these models were trained with.
    """
    if config.positions != "rotary" or config.rotary_dim == 0:
        return None
    frequency = frequencies(config)
    if divisors is not None:
        frequency = (frequency / divisors).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequency[None]
    wide = angles.astype(np.float64)
    return Rotary(np.ascontiguousarray(np.cos(wide), np.float32), np.ascontiguousarray(np.sin(wide), np.float32))
