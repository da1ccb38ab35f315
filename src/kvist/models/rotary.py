"""Tables of rotary angles (Su et al. 2021), with the frequency scalings that models are trained with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from kvist.kernels.program import Floats, Rotary
from kvist.models.config import ModelConfig
from kvist.models.rope_scaling import RopeScaling


def frequencies(config: ModelConfig, positions: int | None = None) -> Floats:
    """Radians a position for each pair, float32 (rotary_dim / 2,): theta^(-2i/d), scaled as the config says.

    positions: the longest sequence that will be run (None: the longest there can be); see `RopeScaling`.
    """
    scaling, length = config.rope_scaling, positions or config.max_positions
    theta = float(config.rope_theta)
    if scaling is not None and scaling.kind == "dynamic":
        longer = max(length, scaling.original_positions) / scaling.original_positions
        stretch = scaling.factor * longer - (scaling.factor - 1)
        theta *= stretch ** (config.rotary_dim / (config.rotary_dim - 2))
    exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
    with np.errstate(under="ignore"):  # a base so large that a pair never turns
        plain = (1.0 / np.power(theta, exponents.astype(np.float64))).astype(np.float32)
    return plain if scaling is None else _scale(plain, theta, length, scaling)


def _scale(plain: Floats, theta: float, length: int, scaling: RopeScaling) -> Floats:
    """The frequencies, stretched."""
    match scaling.kind:
        case "linear":
            return (plain / np.float32(scaling.factor)).astype(np.float32)
        case "dynamic":
            return plain  # the base has changed
        case "longrope":
            divisors = scaling.long if length > scaling.original_positions else scaling.short
            return (plain / np.array(divisors, np.float32)).astype(np.float32)
        case "yarn":
            return _yarn(plain, theta, scaling)
        case "llama3":
            return _llama3(plain, scaling)


def _llama3(plain: Floats, scaling: RopeScaling) -> Floats:
    """Long wavelengths divided, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    low = scaling.original_positions / scaling.low_freq_factor
    high = scaling.original_positions / scaling.high_freq_factor
    smooth = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * plain / scaling.factor + smooth * plain
    scaled = np.where(wavelength > low, plain / scaling.factor, np.where(wavelength < high, plain, blended))
    return scaled.astype(np.float32)


def _yarn(plain: Floats, theta: float, scaling: RopeScaling) -> Floats:
    """By the number of turns a pair makes in the trained length: over beta_fast kept, under beta_slow divided."""
    dims = 2 * len(plain)

    def pair_that_turns(times: float) -> float:
        return dims * math.log(scaling.original_positions / (times * 2 * math.pi)) / (2 * math.log(max(theta, 1.001)))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / ((high - low) or 0.001), 0, 1)
    scaled: Floats = (plain / scaling.factor * ramp + plain * (1 - ramp)).astype(np.float32)
    return scaled


def rotary_tables(
    config: ModelConfig, positions: int, divisors: Floats | None = None, beyond: int = 0
) -> Rotary | None:
    """Cosines and sines of positions 0..positions-1, and of `beyond` more; None for learned positions.

    divisors: one per pair, when a file brings its own scaling (GGUF's ``rope_freqs``). The angle is the float32
    product of position and frequency, as these models were trained with; of positions beyond those they were trained
    for it is the float64 product, since differences of large rounded angles would be wrong.
    """
    if config.positions != "rotary" or config.rotary_dim == 0:
        return None
    frequency = frequencies(config, min(positions, config.max_positions))
    if divisors is not None:
        frequency = (frequency / divisors).astype(np.float32)
    positions += beyond
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequency[None]
    wide = angles.astype(np.float64)
    untrained = np.arange(config.max_positions, positions, dtype=np.float64)
    wide[config.max_positions :] = untrained[:, None] * frequency[None].astype(np.float64)
    size = np.float32(1.0 if config.rope_scaling is None else config.rope_scaling.attention_factor)
    cos, sin = (np.ascontiguousarray(table, np.float32) for table in (np.cos(wide), np.sin(wide)))
    return Rotary((cos * size).astype(np.float32), (sin * size).astype(np.float32))


def turning_back(tables: Rotary | None, config: ModelConfig) -> Rotary | None:
    """Angles that undo a rotation by so many positions. They turn only, where some scalings stretch as well."""
    if tables is None:
        return None
    size = np.float32(1.0 if config.rope_scaling is None else config.rope_scaling.attention_factor)
    return Rotary(tables.cos / size, -tables.sin / size)


def local_rotary_tables(config: ModelConfig, positions: int) -> Rotary | None:
    """The same for layers with a window, where they have angles of their own; None where they have none."""
    if config.local_rope_theta is None:
        return None
    return rotary_tables(replace(config, rope_theta=config.local_rope_theta, rope_scaling=None), positions)
