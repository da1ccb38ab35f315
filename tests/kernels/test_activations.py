"""Activations, and the exp and tanh inside them, against float64. Bounds are a tenth over what was measured: they are
functions
of fixed, correctly rounded operations, so a machine adds nothing."""

from __future__ import annotations

import numpy as np
import pytest

from kvist.kernels.cpu.backend import CpuBackend
from kvist.kernels.program import Activation, Backend, Buffer, Floats, Gate
from kvist.kernels.reference import ReferenceBackend, activation
from ops import fill, numbers, row_batch, run_ops, same_bits

Wide = np.ndarray


def apply(backend: Backend, kind: Activation, values: Floats, up: Floats | None = None) -> Floats:
    """The activation of a vector of numbers (and times `up`), through a Gate of 64 columns."""
    padded = np.pad(values, (0, -len(values) % 64)).reshape(-1, 64)
    x, other, out = Buffer("x", 64), Buffer("up", 64), Buffer("out", 64)
    ops = [fill(x, padded)]
    if up is not None:
        ops.append(fill(other, np.pad(up, (0, -len(up) % 64)).reshape(-1, 64)))
    ops.append(Gate(x, other if up is not None else None, out, kind))  # type: ignore[arg-type]
    found = run_ops(backend, ops, row_batch(list(range(len(padded)))), 64)
    return found.reshape(-1)[: len(values)]


def grid(low: float, high: float, count: int = 100_000) -> Floats:
    return np.linspace(low, high, count).astype(np.float32)


def ulps(found: Floats, exact: Wide) -> float:
    """The largest error in units of the last place of the exact value."""
    return float((np.abs(found.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def test_exp_within_its_bound(backend: CpuBackend) -> None:
    """silu(x) = x / (1 + e^-x) is x e^x far below zero, so exp's error and a rounding are all there is."""
    x = grid(-86.0, -40.0)
    wide = x.astype(np.float64)
    assert ulps(apply(backend, "silu", x), wide / (1 + np.exp(-wide))) < 1.8


def test_exp_below_within_its_bound() -> None:
    """What softmax makes of scores: all there are from -86 to 0, and what is clamped."""
    from numba import njit

    from kvist.kernels.cpu.math import exp_below
    from kvist.kernels.cpu.vector_memory import load_f32, store_f32

    @njit  # type: ignore[untyped-decorator]
    def run(source: int, target: int, count: int) -> None:
        for i in range(0, count, 16):
            store_f32(target + i * 4, exp_below(load_f32(source + i * 4)))

    x = np.concatenate([grid(-86, 0, 400_000), -np.logspace(-40, 1.9, 100_000).astype(np.float32)])
    found = np.zeros_like(x)
    run(x.ctypes.data, found.ctypes.data, len(x))
    exact = np.exp(x.astype(np.float64))
    off = np.abs(found - exact) / np.spacing(exact.astype(np.float32))
    assert (off < 2 - x / 4).all() and off[x > -1].max() > 0.5
    edges = np.array([0.0, -0.0, -86, -87, -1e9, -np.inf, np.nan, *[0] * 9], np.float32)
    run(edges.ctypes.data, found.ctypes.data, 16)
    assert (found[:2] == 1).all() and (found[2:7] == found[2]).all() and 0 < found[2] < 5e-38


@pytest.mark.parametrize(("low", "high", "bound"), [(-30, 0, 2.4), (0, 30, 1.6), (-1, 1, 2.0), (30, 1000, 0.5)])
def test_silu_in_ulps(backend: CpuBackend, low: float, high: float, bound: float) -> None:
    x = grid(low, high)
    x = x[x != 0]
    assert ulps(apply(backend, "silu", x), activation("silu", x.astype(np.float64))) < bound


@pytest.mark.parametrize(("low", "high", "bound"), [(0, 1, 1.85), (1, 100, 1.3), (-0.5, 0, 2.2)])
def test_gelu_tanh_in_ulps(backend: CpuBackend, low: float, high: float, bound: float) -> None:
    x = grid(low, high)
    x = x[np.abs(x) > 1e-30]
    assert ulps(apply(backend, "gelu_tanh", x), activation("gelu_tanh", x.astype(np.float64))) < bound


@pytest.mark.parametrize(("kind", "bound"), [("silu", 1.25e-7), ("gelu_tanh", 1.15e-7), ("gelu", 1.9e-7)])
def test_absolute_error(backend: CpuBackend, kind: Activation, bound: float) -> None:
    """Where 1 + tanh or 1 + erf cancels there are no ulps to count: the error is against the size of x."""
    x = np.concatenate([grid(-100, 100), grid(-6, 6), grid(-0.01, 0.01)])
    error = np.abs(apply(backend, kind, x).astype(np.float64) - activation(kind, x.astype(np.float64)))
    assert float((error / np.maximum(1.0, np.abs(x))).max()) < bound


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_far_out(backend: CpuBackend, kind: Activation) -> None:
    far = np.array([0.0, 1e-38, 90.0, 1e4, 3e38, np.inf], np.float32)
    assert np.array_equal(apply(backend, kind, far)[2:], far[2:])
    assert apply(backend, kind, far)[0] == 0
    low = apply(backend, kind, np.array([-90.0, -1e4, -1e30], np.float32))
    assert np.isfinite(low).all() and (np.abs(low) < [1e-30, 1e-30, 1e-7]).all()
    assert np.isnan(apply(backend, kind, np.array([np.nan], np.float32))).all()


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_gate_times_up(backend: CpuBackend, one_thread: CpuBackend, kind: Activation) -> None:
    x, up = numbers(1, 1000, scale=3.0), numbers(2, 1000)
    found = apply(backend, kind, x, up)
    assert same_bits(found, apply(backend, kind, x) * up)
    assert same_bits(found, apply(one_thread, kind, x, up))
    assert np.abs(found - apply(ReferenceBackend(), kind, x, up)).max() < 5e-6
    for i in (0, 63, 64, 999):
        assert same_bits(apply(backend, kind, x[i : i + 1], up[i : i + 1]), found[i : i + 1]), (
            "no number knows its neighbours"
        )
