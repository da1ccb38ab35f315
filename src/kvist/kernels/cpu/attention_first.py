"""Rows with a window see the first positions of their sequence as well (StreamingLLM, Xiao et al. 2023).

A row at position t with a window of W sees the first S positions, as far as they are before its window, as if they
stood right in front of it: position j as a cache of S + W entries would count it, not at its distance of t - j, which
models were not trained for. Keys lie in the pages rotated by their own positions, and rotary embeddings go by
differences; so it is the query that is turned back, by the t - (S + W - 1) positions that were left out::

    position     0 1 2 3 | 4 5 ........ t-W | t-W+1 ............ t        S = 4
    counted as   0 1 2 3 |       gone       |   4    5 .....   W+3

They are taken before the first tile of a row's window, in the same running softmax, so a row's bits still depend on
its position alone.
"""

from __future__ import annotations

from typing import Any

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.attention_extras import cap_scores
from kvist.kernels.cpu.attention_row import NEVER, softmax_row
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.mix import mix, unmix
from kvist.kernels.cpu.places import block_at
from kvist.kernels.cpu.pointwise import rotate
from kvist.kernels.cpu.scalar import arg, arg_f32
from kvist.kernels.cpu.vector_memory import ITEMSIZE, load_f32, store_f32

SPLIT = abi.SPLIT


@jit
def turn_back(op: int, back: int, source: int, dims: int, out: int) -> None:
    """Copy a query, turned back by so many positions (0 or fewer: as it is)."""
    for d in range(0, dims * 4, 64):
        store_f32(out + d, load_f32(source + d))
    half, signs = arg(op, 13), arg(op, 20)
    if back > 0 and half > 0:
        if signs != 0:  # queries are mixed after they were rotated
            unmix(out, signs, dims)
        rotate(out, arg(op, 14) + back * half * 4, arg(op, 15) + back * half * 4, half)
        if signs != 0:
            mix(out, signs, dims)


def make_attend_first(dtype: str, score: Any, weigh: Any) -> Any:
    """The first positions, for those rows of an item whose window begins in a split.

    score, weigh: the micro-kernels of few rows. What they ask for ahead is at hand.
    """
    itemsize = ITEMSIZE[dtype]

    @jit
    def attend_first(
        op: int, split: int, rows: int, group: int, position: int, pages: int, page_size: int, strides: int,
        head: int, q: int, p: int, turned: int, acc: int, row_max: int, row_sum: int,
    ) -> None:  # fmt: skip
        dims, window, cap, first = arg(op, 3), arg(op, 6), arg_f32(op, 7), arg(op, 12)
        block_bytes = 2 * 16 * dims * itemsize
        # tokens low..high-1 of the item: their windows begin in this split, and not at 0
        low = max(0, max(1, split * SPLIT) + window - 1 - position)
        high = min(rows // group, (split + 1) * SPLIT + window - 1 - position)
        if low >= high:
            return
        for r in range(low * group, high * group):
            back = position + r // group - (first + window - 1)
            turn_back(op, back, q + r * dims * 4, dims, turned + r * dims * 4)
        for begin in range(0, first, 64):
            blocks = min(4, (first - begin + 15) // 16)
            b0 = block_at(pages, begin, page_size, strides, head, block_bytes)
            b1 = block_at(pages, begin + 16, page_size, strides, head, block_bytes) if blocks > 1 else b0
            b2 = block_at(pages, begin + 32, page_size, strides, head, block_bytes) if blocks > 2 else b0
            b3 = block_at(pages, begin + 48, page_size, strides, head, block_bytes) if blocks > 3 else b0
            qs, ps = turned + low * group * dims * 4, p + low * group * 256
            score(qs, (high - low) * group, dims, b0, b1, b2, b3, ps, b0, b1, b2, b3)
            for token in range(low, high):
                valid = min(64, min(first, position + token - window + 1) - begin)
                if valid <= 0:
                    continue
                for r in range(token * group, (token + 1) * group):
                    if cap > 0.0:
                        cap_scores(p + r * 256, cap)
                    softmax_row(p + r * 256, valid, row_max + r * 4, row_sum + r * 4, acc + r * dims * 4, dims, NEVER)
                pr, ar, v = p + token * group * 256, acc + token * group * dims * 4, 16 * dims * itemsize
                weigh(pr, group, b0 + v, min(16, valid), ar, dims, b0)
                if valid > 16:
                    weigh(pr + 64, group, b1 + v, min(16, valid - 16), ar, dims, b1)
                if valid > 32:
                    weigh(pr + 128, group, b2 + v, min(16, valid - 32), ar, dims, b2)
                if valid > 48:
                    weigh(pr + 192, group, b3 + v, min(16, valid - 48), ar, dims, b3)

    return attend_first
