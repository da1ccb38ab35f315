"""Tokens from rows of logits (`drawing`), and their log-probabilities (`rating`): a unit, a piece of work is a row."""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.drawing import draw
from kvist.kernels.cpu.rating import rate
from kvist.kernels.cpu.scalar import arg, put_i64, slot


def run(ctx: int, op: int, piece: int, tid: int) -> int:
    """Entry of the unit. Arguments of the op: queries, their count, bytes of one, memory, bytes a thread, room."""
    query, memory, room = arg(op, 0) + piece * arg(op, 2), arg(op, 3) + tid * arg(op, 4), arg(op, 5)
    if slot(op, abi.CODE) == abi.DRAW:
        put_i64(arg(op, 6) + piece * 8, draw(query, memory, room))
    else:
        rate(query, memory, room)
    return 0
