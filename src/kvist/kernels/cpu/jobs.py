"""Work outside a model's step for the same compiled loop.

Converting weights, checking them, measuring the machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.sizes import FMA_CHAINS
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import BLOCK_TYPES, Weight


def run_ops(team: Team, rows: Sequence[Sequence[int]]) -> None:
    """Run independent ops, each given as [code, unit, arguments...]."""
    table = np.zeros((len(rows), abi.OP_SLOTS), np.int64)
    for i, (code, unit, *arguments) in enumerate(rows):
        table[i, abi.CODE], table[i, abi.UNIT] = code, unit
        table[i, abi.ARG : abi.ARG + len(arguments)] = arguments
    counters, scratch = np.zeros((len(rows), team.threads + 1), np.int64), np.zeros((team.threads, 512), np.int64)
    context = np.zeros(abi.CONTEXT_SLOTS, np.int64)
    context[abi.SCRATCH], context[abi.SCRATCH_BYTES] = scratch.ctypes.data, scratch.strides[0]
    context[abi.THREADS], context[abi.COUNTERS] = team.threads, counters.ctypes.data
    team.run(table.ctypes.data, len(rows), context.ctypes.data)


def convert(team: Team, jobs: Sequence[tuple[Weight, Weight]]) -> None:
    """Convert each matrix into the float one of its shape."""
    rows = []
    for source, out in jobs:
        assert source.data.flags.c_contiguous and out.data.flags.c_contiguous
        assert (source.rows, source.columns) == (out.rows, out.columns) and source.columns % 16 == 0
        rows.append([
            abi.CONVERT, team.unit(f"weights_{source.dtype}"), source.data.ctypes.data, source.rows, source.columns,
            source.row_bytes, out.data.ctypes.data, abi.DTYPES.index(out.dtype), out.data.itemsize,
        ])  # fmt: skip
    run_ops(team, rows)


def find_nonfinite(team: Team, weights: Sequence[Weight]) -> list[int]:
    """Indices of the weights that hold a NaN or an infinity."""
    flags = np.zeros(len(weights), np.int64)
    rows = []
    for i, w in enumerate(weights):
        blocks = w.rows * w.columns // BLOCK_TYPES.get(w.dtype, (16, 0))[0]
        rows.append([
            abi.FIND_NONFINITE, team.unit(f"weights_{w.dtype}"), w.data.ctypes.data, blocks, flags[i:].ctypes.data
        ])  # fmt: skip
    run_ops(team, rows)
    return [int(i) for i in np.flatnonzero(flags)]


def read_bandwidth(team: Team, buffer: npt.NDArray[np.uint8]) -> float:
    """Bytes a second at which all threads together read `buffer` once."""
    piece = 1 << 18
    pieces = buffer.nbytes // piece
    begin = time.perf_counter()
    run_ops(team, [[abi.READ, 0, buffer.ctypes.data, pieces, piece]])
    return pieces * piece / (time.perf_counter() - begin)


def fma_peak(team: Team, rounds: int = 200_000, pieces: int = 64) -> float:
    """Float32 operations a second (a multiply-add counts two) of all threads together, on registers."""
    seeds = np.full((FMA_CHAINS, 16), 0.5, np.float32)
    begin = time.perf_counter()
    run_ops(team, [[abi.FMA_PEAK, 0, rounds, pieces, seeds.ctypes.data]])
    return 2.0 * 16 * FMA_CHAINS * rounds * pieces / (time.perf_counter() - begin)
