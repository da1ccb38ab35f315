"""Work outside a model's step for the same compiled loop.

Unpacking weights, checking them, measuring the machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.sizes import FMA_CHAINS
from kvist.kernels.cpu.team import Team
from kvist.kernels.program import Packed, Weight


def run_ops(team: Team, rows: Sequence[Sequence[int]]) -> None:
    """Run independent ops, each given as [code + 256 * dtype, arguments...]."""
    table = np.zeros((len(rows), abi.OP_SLOTS), np.int64)
    for i, (code, *arguments) in enumerate(rows):
        table[i, abi.CODE] = code
        table[i, abi.ARG : abi.ARG + len(arguments)] = arguments
    counters, scratch = np.zeros((len(rows), 2), np.int64), np.zeros((team.threads, 512), np.int64)
    context = np.zeros(abi.CONTEXT_SLOTS, np.int64)
    context[abi.SCRATCH], context[abi.SCRATCH_BYTES] = scratch.ctypes.data, scratch.strides[0]
    context[abi.COUNTERS] = counters.ctypes.data
    team.run(table.ctypes.data, len(rows), context.ctypes.data)


def unpack(team: Team, jobs: Sequence[tuple[Packed, Weight]]) -> None:
    """Unpack each packed matrix into the weight of its shape."""
    rows = []
    for packed, weight in jobs:
        assert packed.data.flags.c_contiguous and weight.data.flags.c_contiguous
        rows.append([
            abi.UNPACK + 256 * abi.DTYPES.index(weight.dtype), packed.data.ctypes.data,
            abi.PACKED.index(packed.dtype), weight.rows, weight.columns, packed.block_numbers,
            packed.block_bytes, weight.data.ctypes.data, weight.data.itemsize,
        ])  # fmt: skip
    run_ops(team, rows)


def find_nonfinite(team: Team, weights: Sequence[Weight]) -> list[int]:
    """Indices of the weights that hold a NaN or an infinity."""
    flags = np.zeros(len(weights), np.int64)
    rows = [
        [abi.FIND_NONFINITE + 256 * abi.DTYPES.index(w.dtype), w.data.ctypes.data, w.data.size, flags[i:].ctypes.data]
        for i, w in enumerate(weights)
    ]
    run_ops(team, rows)
    return [int(i) for i in np.flatnonzero(flags)]


def read_bandwidth(team: Team, buffer: npt.NDArray[np.uint8]) -> float:
    """Bytes a second at which all threads together read `buffer` once."""
    piece = 1 << 18
    pieces = buffer.nbytes // piece
    begin = time.perf_counter()
    run_ops(team, [[abi.READ, buffer.ctypes.data, pieces, piece]])
    return pieces * piece / (time.perf_counter() - begin)


def fma_peak(team: Team, rounds: int = 200_000, pieces: int = 64) -> float:
    """Float32 operations a second (a multiply-add counts two) of all threads together, on registers."""
    seeds = np.full((FMA_CHAINS, 16), 0.5, np.float32)
    begin = time.perf_counter()
    run_ops(team, [[abi.FMA_PEAK, rounds, pieces, seeds.ctypes.data]])
    return 2.0 * 16 * FMA_CHAINS * rounds * pieces / (time.perf_counter() - begin)
