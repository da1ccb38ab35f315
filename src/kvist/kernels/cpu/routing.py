"""A mixture of experts around its matmuls: choose experts for rows, bring an expert's rows together, and back.

Each row has a *place* for each of its chosen experts, and the places of one expert lie side by side::

    rows             0      1      2            choices   [row][rank]: expert      shares   [row][rank]
    chosen experts   2 0    0 1    2 1          places    [row][rank]: place
    places           4 0    1 2    5 3          starts    [expert]: its first place, and after the last: the end

So an expert's matmul meets all its rows at once. Which place a row has changes no bits: a matmul's rows do not know
each other, and a row's sum goes by rank.
"""

from __future__ import annotations

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.math import exp, jit
from kvist.kernels.cpu.scalar import arg, get_f32, get_i32, put_f32, put_i32, slot
from kvist.kernels.cpu.vector import add, first, mul, splat
from kvist.kernels.cpu.vector_memory import load_f32, store_f32

LOWEST = -3.4028234663852886e38


@jit
def choose(op: int, row: int) -> None:
    """A row's experts, the likeliest first (of equals the first), and their shares.

    Arguments: logits, stride, experts, chosen, renormalise, choices, shares.
    """
    logits, experts, chosen = arg(op, 0) + row * arg(op, 1), arg(op, 2), arg(op, 3)
    choices, shares = arg(op, 5) + row * chosen * 4, arg(op, 6) + row * chosen * 4
    last, last_expert = 3.4028234663852886e38, -1
    for rank in range(chosen):
        best, found = LOWEST, rank  # where logits are no numbers any expert will do
        for e in range(experts):
            score = get_f32(logits + e * 4)
            if score > best and (score < last or (score == last and e > last_expert)):
                best, found = score, e
        put_i32(choices + rank * 4, found)
        last, last_expert = best, found
    top = splat(get_f32(logits + get_i32(choices) * 4))
    total = 0.0
    for i in range(chosen if arg(op, 4) else experts):
        e = get_i32(choices + i * 4) if arg(op, 4) else i
        total += first(exp(add(splat(get_f32(logits + e * 4)), mul(top, splat(-1.0)))))
    for rank in range(chosen):
        score = splat(get_f32(logits + get_i32(choices + rank * 4) * 4))
        put_f32(shares + rank * 4, first(exp(add(score, mul(top, splat(-1.0))))) / total)


@jit
def place(ctx: int, op: int) -> None:
    """Places, by expert. Arguments: choices, places, starts, experts, chosen."""
    choices, places, starts, experts = arg(op, 0), arg(op, 1), arg(op, 2), arg(op, 3)
    count = slot(ctx, abi.ROWS) * arg(op, 4)
    for e in range(experts + 1):
        put_i32(starts + e * 4, 0)
    for i in range(count):
        at = starts + (get_i32(choices + i * 4) + 1) * 4
        put_i32(at, get_i32(at) + 1)
    for e in range(experts):
        put_i32(starts + (e + 1) * 4, get_i32(starts + (e + 1) * 4) + get_i32(starts + e * 4))
    for i in range(count):  # starts move to their ends, which are the next one's starts
        at = starts + get_i32(choices + i * 4) * 4
        put_i32(places + i * 4, get_i32(at))
        put_i32(at, get_i32(at) + 1)
    for e in range(experts, 0, -1):
        put_i32(starts + e * 4, get_i32(starts + (e - 1) * 4))
    put_i32(starts, 0)


@jit
def gather(op: int, row: int) -> None:
    """Copy a row to its places. Arguments: x, stride, width, chosen, places, gathered."""
    width, chosen = arg(op, 2), arg(op, 3)
    x, places = arg(op, 0) + row * arg(op, 1), arg(op, 4) + row * chosen * 4
    for rank in range(chosen):
        out = arg(op, 5) + get_i32(places + rank * 4) * width * 4
        for d in range(0, width, 16):
            store_f32(out + d * 4, load_f32(x + d * 4))


@jit
def combine(op: int, row: int) -> None:
    """out = residual + the shares of what the row's experts gave, in the order of rank.

    Arguments: made, width, chosen, places, shares, residual, stride, out, stride.
    """
    made, width, chosen = arg(op, 0), arg(op, 1), arg(op, 2)
    places, shares = arg(op, 3) + row * chosen * 4, arg(op, 4) + row * chosen * 4
    residual, out = arg(op, 5) + row * arg(op, 6), arg(op, 7) + row * arg(op, 8)
    for d in range(0, width, 16):
        total = splat(0.0)
        for rank in range(chosen):
            at = made + get_i32(places + rank * 4) * width * 4
            total = add(total, mul(splat(get_f32(shares + rank * 4)), load_f32(at + d * 4)))
        store_f32(out + d * 4, add(load_f32(residual + d * 4), total))
