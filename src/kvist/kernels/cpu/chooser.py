"""Tokens from rows of logits on all threads of a team, in one call: see `choosing` (the compiled unit)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.kernels.choosing import Changes, Draw, Rated, Rating, check_found, rated
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.jobs import run_ops
from kvist.kernels.cpu.team import Team
from kvist.memory import allocate

NOTHING = [0] * (abi.DRAW_REPETITION - abi.DRAW_CHANGED)
NEUTRAL = [1.0, 0.0, 0.0]


class CpuChooser:
    """See `choosing.Chooser`. It keeps room for the rows that threads work on."""

    def __init__(self, team: Team) -> None:
        self._team, self._unit = team, team.unit("choosing")
        self._memory = np.empty((team.threads, 0), np.uint8)
        self._size = self._room = 0

    def draw(self, rows: Sequence[Draw]) -> list[int]:
        """See `choosing.Chooser`."""
        table = np.empty((len(rows), abi.DRAW_SLOTS), np.int64)
        integers, numbers = zip(*map(_integers_and_numbers, rows), strict=True)
        table[:, : abi.DRAW_REPETITION] = integers
        table.view(np.float64)[:, abi.DRAW_REPETITION :] = numbers
        found = np.empty(len(rows), np.int64)
        self._run(abi.DRAW, table, max(len(row.logits) for row in rows), found)
        check_found(int(found.min()))
        tokens: list[int] = found.tolist()
        return tokens

    def rate(self, rows: Sequence[Rating]) -> list[Rated]:
        """See `choosing.Chooser`."""
        width = abi.RATED + max(min(row.count, len(row.logits)) for row in rows)
        out = np.zeros((len(rows), width), np.int64)
        table = np.array([_slots(row) for row in rows], np.int64)
        table[:, abi.RATE_OUT] = out.ctypes.data + np.arange(len(rows)) * out.strides[0]
        self._run(abi.RATE, table, max(len(row.logits) for row in rows), out)
        check_found(int(out[:, 0].min()))
        sums = out.view(np.float64)[:, 2].tolist()
        return [
            rated(row, best, rank, total, ids[: min(row.count, len(row.logits))])
            for row, best, rank, total, ids in zip(
                rows, out[:, 0].tolist(), out[:, 1].tolist(), sums, out[:, abi.RATED :], strict=True
            )
        ]

    def _run(self, code: int, table: npt.NDArray[np.int64], size: int, out: npt.NDArray[np.int64]) -> None:
        if size > self._size:  # whole vectors, and sixteen zeros behind what is left of a row
            self._size, self._room = size, 4 * (-(-size // 16) * 16 + 16)
            self._memory = allocate({"rows": ((self._team.threads, 6 * self._room + 64), np.uint8)})["rows"]
        memory = self._memory
        run_ops(self._team, [[
            code, self._unit, table.ctypes.data, len(table), table.strides[0], memory.ctypes.data, memory.strides[0],
            self._room, out.ctypes.data,
        ]])  # fmt: skip


def _integers_and_numbers(row: Draw) -> tuple[list[int], list[float]]:
    """A row of the table, its two kinds of slots."""
    logits, changes = row.logits, row.changes
    integers = [_address(logits), len(logits), row.likeliest]
    temperature = row.temperature
    numbers = [
        0.0 if temperature == 0.0 else 1.0 / temperature, row.top_k, row.top_p, row.min_p, row.typical_p, row.number
    ]  # fmt: skip
    if changes is None:
        return integers + NOTHING, NEUTRAL + numbers
    return integers + _addresses(changes), [changes.repetition, changes.presence, changes.frequency, *numbers]


def _addresses(changes: Changes) -> list[int]:
    held, biased, bias, seen, times = changes[:5]
    return [
        1, _address(held), len(held), _address(biased), _address(bias), len(biased),
        _address(seen), _address(times), len(seen),
    ]  # fmt: skip


def _slots(row: Rating) -> tuple[int, ...]:
    logits = row.logits
    return _address(logits), len(logits), row.likeliest, row.token, min(row.count, len(logits)), 0


def _address(array: npt.NDArray[np.generic]) -> int:
    """Where an array of consecutive numbers begins."""
    assert array.flags.c_contiguous
    address: int = array.__array_interface__["data"][0]
    return address
