"""Tokens from rows of logits on all threads of a team, in one call: see `choosing` (the compiled unit)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvist.kernels.choosing import Draw, Floats, Rated, Rating, check_found
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.jobs import run_ops
from kvist.kernels.cpu.team import Team
from kvist.memory import allocate


class CpuChooser:
    """See `choosing.Chooser`. It keeps room for the rows that threads work on."""

    def __init__(self, team: Team) -> None:
        self._team, self._unit = team, team.unit("choosing")
        self._memory = np.empty((team.threads, 0), np.uint8)
        self._size = self._room = 0

    def draw(self, rows: Sequence[Draw]) -> list[int]:
        """See `choosing.Chooser`."""
        table = np.zeros((len(rows), abi.DRAW_SLOTS), np.int64)
        table[:, : abi.DRAW_ALONE] = [(_address(row.logits), len(row.logits), row.likeliest) for row in rows]
        table.view(np.float64)[:, abi.DRAW_INVERSE :] = [
            (1.0 / row.temperature if row.temperature else 0.0, *row[3:8]) for row in rows
        ]
        kept = _put_changes(table, rows)
        found = np.empty(len(rows), np.int64)
        self._run(abi.DRAW, table, max(len(row.logits) for row in rows), found)
        del kept
        check_found(int(found.min()))
        tokens: list[int] = found.tolist()
        return tokens

    def rate(self, rows: Sequence[Rating]) -> list[Rated]:
        """See `choosing.Chooser`."""
        counts = [min(row.wanted, len(row.logits)) for row in rows]
        out = np.zeros((len(rows), abi.RATED_IDS + 2 * max(counts)), np.int64)
        table = np.array(
            [
                (_address(row.logits), len(row.logits), row.likeliest, row.token, count, 0, 0)
                for row, count in zip(rows, counts, strict=True)
            ],
            np.int64,
        )
        table[:, abi.RATE_OUT] = out.ctypes.data + np.arange(len(rows)) * out.strides[0]
        table[:, abi.RATE_LOGITS_OUT] = table[:, abi.RATE_OUT] + (abi.RATED_IDS + max(counts)) * 8
        self._run(abi.RATE, table, max(len(row.logits) for row in rows), out)
        check_found(int(out[:, abi.RATED_LARGEST].min()))
        return _rated(rows, counts, out)

    def _run(self, code: int, table: npt.NDArray[np.int64], size: int, out: npt.NDArray[np.int64]) -> None:
        if size > self._size:  # whole vectors, and sixteen zeros behind what is left of a row
            self._size, self._room = size, 4 * (-(-size // 16) * 16 + 16)
            self._memory = allocate({"rows": ((self._team.threads, 6 * self._room + 64), np.uint8)})["rows"]
        memory = self._memory
        run_ops(self._team, [[
            code, self._unit, table.ctypes.data, len(table), table.strides[0], memory.ctypes.data, memory.strides[0],
            self._room, out.ctypes.data,
        ]])  # fmt: skip


def _put_changes(table: npt.NDArray[np.int64], rows: Sequence[Draw]) -> list[npt.NDArray[np.generic]]:
    """Fill in where each row's changes are, side by side in arrays that must stay until the rows are drawn."""
    some = [(i, row.changes) for i, row in enumerate(rows) if row.changes is not None]
    if not some:
        return []
    ids, values = np.concatenate([one.ids for _, one in some]), np.concatenate([one.values for _, one in some])
    places = [i for i, _ in some]
    counts = np.array([(one.held, one.biased, len(one.ids) - one.held - one.biased) for _, one in some])
    ends = counts.sum(1).cumsum()
    table[places, abi.DRAW_IDS] = ids.ctypes.data + (ends - counts.sum(1)) * ids.itemsize
    table[places, abi.DRAW_VALUES] = values.ctypes.data + (ends - counts.sum(1)) * values.itemsize
    table[:, abi.DRAW_ALONE] = _are_apart(table) and all(row.logits.flags.writeable for row in rows)
    table[places, abi.DRAW_HELD : abi.DRAW_HELD + 3] = counts
    table.view(np.float64)[places, abi.DRAW_REPETITION : abi.DRAW_INVERSE] = [one[4:] for _, one in some]
    return [ids, values]


def _are_apart(table: npt.NDArray[np.int64]) -> bool:
    """Whether no logits of a row are another's as well."""
    order = table[:, abi.DRAW_LOGITS].argsort()
    starts, sizes = table[order, abi.DRAW_LOGITS], table[order, abi.DRAW_SIZE]
    return bool((np.diff(starts) >= 4 * sizes[:-1]).all())


def _rated(rows: Sequence[Rating], counts: Sequence[int], out: npt.NDArray[np.int64]) -> list[Rated]:
    """What the unit found, as log-probabilities: logit - (largest + ln(sum))."""
    numbers, most, found = out.view(np.float64), max(counts), []
    tops, sums, logits = (numbers[:, i].tolist() for i in (abi.RATED_TOP, abi.RATED_SUM, abi.RATED_LOGIT))
    norms = [top + math.log(total) for top, total in zip(tops, sums, strict=True)]
    ids, ranks = out[:, abi.RATED_IDS : abi.RATED_IDS + most].tolist(), out[:, abi.RATED_RANK].tolist()
    values = (numbers[:, abi.RATED_IDS + most :] - np.array(norms)[:, None]).tolist()
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        own = logits[i] - norms[i] if row.token >= 0 else 0.0
        found.append(Rated(own, ranks[i], ids[i][:count], values[i][:count]))
    return found


def _address(array: Floats) -> int:
    """Where an array of consecutive numbers begins, by the shortest way: `array.ctypes` takes three times as long."""
    assert array.flags.c_contiguous
    if array.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    return int(array.ctypes.data)
