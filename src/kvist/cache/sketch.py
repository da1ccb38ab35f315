"""A sketch of a page's keys, about two bits a number, in plain NumPy: the definition that the kernels follow.

A query guesses from it how much a page matters (see `policy.topk`). Keys are turned first, as codecs do it: signs, then
a Walsh-Hadamard transform of each `width` dims, without a factor, so that a turned query times a turned key is `width`
times what it was. Then a key is the mean of its page, and what it is away from that: a sign for each dim, all of one
length. Of one KV head::

    mean     uint8 [dims, rounded up to 64]   code - 128, times the step; what is beyond the dims is 0
    step     float32, and 28 bytes of nothing
    block    signs uint8 [dims / 32, rounded up][slot 16][quad 4], lengths float16 [slot 16]

A quad is four dims; of 32 dims the byte of quad q has quad q in its low bits and q + 4 in its high ones: bit i is 1
where dim i is at least the mean. A length is the sum of squares over that of sizes: so a key is as long as it was along
itself.

Four signs have sixteen sums with a query, so a query is a table of these, rounded to bytes, for each quad: a key's
score is looked up there and added up, in whole numbers, exact in any order (vpermb, vpdpbusd). A page weighs what the
softmax of these scores gives it, in each query head that shares the KV head, over the pages there are to choose from;
2**x and the logarithm go straight from one power of two to the next, which is within 6% and costs next to nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec.packed import signs

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SLOTS = 16  # of a block
CHUNK = 64  # the mean's bytes come in so many
SPAN = 32  # dims whose signs lie together
STEP_BYTES = 32
LENGTHS_BYTES = 2 * SLOTS
LARGEST = np.float32(127)
LONGEST = np.float32(65504)
STEEPEST = 100  # powers of two between a key's score and that of its page's mean, at most
HIGHEST = 1e9  # of a page's height, a power of two
DEEPEST = 120  # below the highest, all heights are alike


def mean_bytes(dims: int) -> int:
    """Size of the codes of a page's mean."""
    return -(-dims // CHUNK) * CHUNK


def block_bytes(dims: int) -> int:
    """Size of what is kept of a block: signs and lengths."""
    return -(-dims // SPAN) * 64 + LENGTHS_BYTES


def sketch_bytes(dims: int, slots: int) -> int:
    """Size of the sketch of one KV head in a page."""
    return mean_bytes(dims) + STEP_BYTES + slots // SLOTS * block_bytes(dims)


def width(dims: int) -> int:
    """Dims that are turned together: the largest power of two that divides their number."""
    return dims & -dims


def turned(x: Floats) -> Floats:
    """The last axis turned, in float32 as kernels compute it."""
    dims = x.shape[-1]
    out = (x * signs(dims)).reshape(*x.shape[:-1], -1, width(dims))
    step = 1
    while step < width(dims):
        pairs = out.reshape(*out.shape[:-1], -1, 2, step)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        out, step = np.stack([low + high, low - high], axis=-2).reshape(out.shape), 2 * step
    return out.reshape(x.shape)


def sketch(keys: Floats) -> Bytes:
    """What is kept of one KV head in a page. keys: float32 (slots, dims)."""
    slots, dims = keys.shape
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        mean = turned(_sum(keys) * np.float32(1 / slots))
        code, step = rounded(mean)
        away = turned(keys) - code * step
        squares, sizes = np.zeros((2, slots), np.float32)
        for dim in away.T:  # one by one, as kernels add them up
            squares, sizes = squares + dim * dim, sizes + np.abs(dim)
        lengths = np.where(squares / sizes < LONGEST, squares / sizes, LONGEST)
        lengths = np.where(sizes > 0, lengths, np.float32(0)).astype(np.float16)
    bits = np.pad(away >= 0, [(0, 0), (0, -dims % SPAN)]).reshape(-1, SLOTS, -(-dims // SPAN), 2, 4, 4)
    marks = np.packbits(bits.transpose(0, 2, 1, 4, 3, 5).reshape(slots // SLOTS, -1), axis=1, bitorder="little")
    blocks = np.concatenate([marks, lengths.reshape(-1, SLOTS).view(np.uint8)], axis=1)
    top = np.zeros(mean_bytes(dims) + STEP_BYTES, np.uint8)
    top[:dims] = code + 128
    top[mean_bytes(dims) :][:4] = np.array([step], np.float32).view(np.uint8)
    return np.concatenate([top, blocks.reshape(-1)])


def rounded(x: Floats) -> tuple[Floats, np.float32]:
    """Numbers as whole ones from -127 to 127, and the step between them."""
    largest = np.abs(x).max()
    if not largest > 1e-30 or not np.isfinite(np.abs(x).sum()):  # nothing, or no number
        return np.zeros_like(x), np.float32(0)
    return np.rint(x * (LARGEST / largest)), np.float32(largest / LARGEST)


def quad_sums(query: Floats) -> Floats:
    """The sixteen sums of each four numbers: bit i of a sum's place says whether number i is added or taken away."""
    marks = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(np.float32) * 2 - 1
    a, b, c, d = (query.reshape(-1, 4, 1) * marks.T).transpose(1, 0, 2)
    return np.asarray(a + b + c + d, np.float32)


def page_weights(queries: Floats, sketches: Bytes, scale: float) -> NDArray[np.float64]:
    """What pages weigh to the query heads (heads, dims) of a KV head, by sketches (pages, bytes): shares added up.

    scale: of the scores of attention. What is no number counts for nothing.
    """
    dims = queries.shape[1]
    top, bits, quads = sketch_bytes(dims, 0), block_bytes(dims) - LENGTHS_BYTES, np.arange(dims // 4)
    mean = sketches[:, :dims].astype(np.float64) - 128
    step = _numbers(sketches[:, mean_bytes(dims) :][:, :4], np.float32)[:, 0]
    blocks = sketches[:, top:].reshape(len(sketches), -1, block_bytes(dims))
    marks = blocks[..., :bits].reshape(*blocks.shape[:2], -1, SLOTS, 4)
    marks = np.stack([marks & 15, marks >> 4], axis=-2).swapaxes(2, 3)  # [page][block][slot][span][half][quad]
    marks = marks.reshape(len(sketches), -1, bits // 8)[..., quads]
    length = _numbers(blocks[..., bits:], np.float16).reshape(len(sketches), -1)
    found = np.zeros(len(sketches))
    with np.errstate(invalid="ignore", over="ignore"):
        for query in turned(queries):
            (code, unit), (table, steep) = rounded(query), rounded(quad_sums(query))
            power = scale / width(dims) / math.log(2)
            away = table.astype(np.float64)[quads, marks].sum(-1)
            slots = _power(_kept(away * length * (float(steep) * power), STEEPEST)).sum(1)
            heights = _kept(mean @ code.astype(np.float64) * step * (float(unit) * power) + _log2(slots), HIGHEST)
            shares = np.exp2(np.maximum(heights - heights.max(initial=-HIGHEST), -DEEPEST))
            found += shares / shares.sum()
    return found


def _sum(keys: Floats) -> Floats:
    """Over slots: block after block, then the lanes by halves."""
    lanes = keys[:SLOTS]
    for first in range(SLOTS, len(keys), SLOTS):
        lanes = lanes + keys[first : first + SLOTS]
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return np.asarray(lanes[0])


def _numbers(raw: Bytes, kind: type[np.floating[Any]]) -> NDArray[np.float64]:
    return np.ascontiguousarray(raw).view(kind).astype(np.float64)


def _kept(x: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Within the limit on both sides; what is no number is lowest."""
    return np.clip(np.where(np.isnan(x), -limit, x), -limit, limit)


def _power(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """About 2**x."""
    whole = np.floor(x)
    return np.asarray(np.ldexp(1 + x - whole, whole.astype(np.int64)), np.float64)


def _log2(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What `_power` gives x for."""
    part, whole = np.frexp(x)
    return np.asarray(whole + 2 * part - 2, np.float64)
