"""Where pages lie: the byte formula of `cache.layout`, in kernels.

Of a layer they are told four numbers: its address in page 0, bytes from page to page within an extent, bytes from
extent to extent, and the group whose page ids hold for it. The middle two are passed on by the address they lie at, as
`strides`.
"""

from __future__ import annotations

from kvist.cache.layout import EXTENT
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.scalar import arg, arg_address, get_i32, get_i64

EXTENT_SHIFT = EXTENT.bit_length() - 1


@jit
def page_shift(page_size: int) -> int:
    """log2 of 16, 32, 64 or 128: a division takes longer than all the rest of finding a block."""
    return 4 + (page_size > 16) + (page_size > 32) + (page_size > 64)


@jit
def extent_shift(page_size: int) -> int:
    """log2 of the pages of an extent."""
    return EXTENT_SHIFT - page_shift(page_size)


@jit
def head_at(start: int, kv_head: int, page_size: int, strides: int) -> int:
    """Address of a KV head in page 0; start: that of its layer. A head's pages of an extent lie together."""
    return start + kv_head * (get_i64(strides) << extent_shift(page_size))


@jit
def page_at(page: int, page_size: int, strides: int, head: int) -> int:
    """Address of a KV head in a page; head: in page 0."""
    shift = extent_shift(page_size)
    return head + (page & ((1 << shift) - 1)) * get_i64(strides) + (page >> shift) * get_i64(strides + 8)


@jit
def place_of(op: int, first: int, page: int, kv_head: int, page_size: int) -> int:
    """Address of a KV head in a page, of an op whose arguments from `first` on say where pages lie."""
    strides = arg_address(op, first + 1)
    return page_at(page, page_size, strides, head_at(arg(op, first), kv_head, page_size, strides))


@jit
def block_at(pages: int, position: int, page_size: int, strides: int, head: int, block_bytes: int) -> int:
    """Address of the block of sixteen slots that holds a position; head: the address of the KV head in page 0."""
    page = get_i32(pages + (position >> page_shift(page_size)) * 4)
    return page_at(page, page_size, strides, head) + ((position & (page_size - 1)) >> 4) * block_bytes
