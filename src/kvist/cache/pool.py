"""The pool: the arrays that hold pages. It knows where a number lies and nothing about who may write it.

::

    address ─► | extent 0 | extent 1 | ... | sketches |     one mapping, see `layout`

The mapping is zero-filled by the operating system when memory is first touched, so a large pool costs nothing until it
is used, and what lies behind the last page of the last extent never does. Kernels read and write by `address`; the
array methods here serve tests, pictures and the reference backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvist.cache.codec import AnyCodec, Packed
from kvist.cache.codec.factors import spans
from kvist.cache.codec.packed import pack, unpack
from kvist.cache.layout import BLOCK, PageLayout
from kvist.errors import CapacityError, UsageError
from kvist.memory import map_memory

ALL = slice(None)
SYSTEM_PAGE = 4096


class PagePool:
    """`num_pages` pages of one layout: `data` is uint8 [extents][extent_bytes], `address` where it begins.

    sketches: uint8, of all layers and pages as `layout` says (empty where there are none).
    """

    def __init__(self, layout: PageLayout, num_pages: int) -> None:
        if num_pages < 1:
            raise UsageError(f"a pool of {num_pages} pages: it needs at least 1")
        self.layout = layout
        self.num_pages = num_pages
        self.nbytes = layout.pool_bytes(num_pages)
        try:
            self._memory = map_memory(layout.sketch_offset(len(layout.layers), num_pages))
        except CapacityError as error:
            raise CapacityError(f"{num_pages} pages of {layout.page_bytes:,} bytes: {error}") from None
        self._all: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)
        pages = layout.extents(num_pages) * layout.extent_bytes
        self.data, self.sketches = self._all[:pages].reshape(-1, layout.extent_bytes), self._all[pages:]
        self.address: int = self.data.ctypes.data

    def prefault(self, nbytes: int) -> None:
        """Have the system provide the first `nbytes` now. Only while nothing is stored: a zero is written everywhere.

        Otherwise it does so page by page when they are first written: a prompt waits for it, on some machines for long.
        """
        self._all[:nbytes:SYSTEM_PAGE] = 0

    def copy(self, source: int, target: int) -> None:
        """Copy K and V of a whole page, all layers and slots. A sketch is made when a page is full: no copy has one."""
        for own, other in zip(self.parts(target), self.parts(source), strict=True):
            own[...] = other

    def parts(self, page: int) -> list[NDArray[np.uint8]]:
        """View all of a page: of each layer uint8 [KV heads][head_bytes]; layers that are alike and adjoin as one."""
        extent, within = divmod(page, self.layout.extent_pages)
        return [self._heads(first, end)[extent, :, within] for first, end in self.layout.alike]

    def heads(self, layer: int) -> NDArray[np.uint8]:
        """View one layer of all pages: uint8 [extents][KV heads][extent_pages][head_bytes]."""
        return self._heads(layer, layer + 1)

    def read(
        self, page: int, layer: int, head: int, slots: slice = ALL
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copy K and V of some slots of one KV head out, as float32 [slots][head_dim]."""
        header, blocks = self._head(page, layer, head)
        k_codec, v_codec = self.layout.codecs(layer)
        dims, split = self.layout.spec(layer).head_dim, self.layout.v_offset(layer)
        k = _read(k_codec, header, blocks[:, :split], dims, keys=True)
        v = _read(v_codec, header, blocks[:, split:], dims, keys=False)
        return k[slots], v[slots]

    def spans(self, page: int, layer: int, head: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scale and middle of packed V of one KV head, (page_size, head_dim) each (see `codec.factors`)."""
        codec, split = self.layout.codecs(layer)[1], self.layout.v_offset(layer)
        assert isinstance(codec, Packed), codec
        return spans(codec, self._head(page, layer, head)[1][:, split:], self.layout.spec(layer).head_dim)

    def write(
        self, page: int, layer: int, head: int, slots: slice, k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> None:
        """Round `k` and `v`, float32 [slots][head_dim], to the codec and store them. Packed layers: see `pack`."""
        k_blocks, v_blocks = self._blocks(page, layer, head)
        block, lane = np.divmod(np.arange(self.layout.page_size)[slots], BLOCK)
        encode = self.layout.codec.encode
        k_blocks[block, lane] = encode(k)
        v_blocks[block, lane] = encode(v)

    def pack(self, page: int, layer: int, head: int, k: NDArray[np.float32], v: NDArray[np.float32]) -> None:
        """Pack all slots of one KV head, `k` and `v` float32 [page_size][head_dim]."""
        header, blocks = self._head(page, layer, head)
        k_codec, v_codec = self.layout.codecs(layer)
        split = self.layout.v_offset(layer)
        sides = (k_codec, blocks[:, :split], k, True), (v_codec, blocks[:, split:], v, False)
        for codec, part, numbers, keys in sides:
            if isinstance(codec, Packed):
                top, part[...] = pack(codec, numbers, keys=keys)
                header[: len(top)] = top
            else:
                shaped = numbers.reshape(len(blocks), BLOCK, -1)
                stored = codec.encode(np.ascontiguousarray(shaped.transpose(0, 2, 1) if keys else shaped))
                part[...] = stored.reshape(len(blocks), -1).view(np.uint8)

    def sketch(self, page: int, layer: int, head: int) -> NDArray[np.uint8]:
        """View the sketch of one KV head (see `cache.sketch`)."""
        size = self.layout.sketch_bytes(layer)
        start = self.layout.sketch_offset(layer, self.num_pages) + (head * self.num_pages + page) * size
        return self._all[start : start + size]

    def close(self) -> None:
        """Give the memory back, as soon as no array of another owner looks into it. Closing twice does nothing."""
        self._all = self.sketches = np.empty(0, np.uint8)
        self.data = self._all.reshape(0, self.layout.extent_bytes)
        self.address = 0
        with suppress(BufferError):
            self._memory.close()

    def _heads(self, first: int, end: int) -> NDArray[np.uint8]:
        """View the layers first..end-1, which are alike, of all pages."""
        layout = self.layout
        start, size = layout.place(0, first, 0), layout.head_bytes(first)
        part = self.data[:, start : layout.place(0, end - 1, 0) + layout.extent_pages * layout.layer_bytes(end - 1)]
        return part.reshape(len(self.data), -1, layout.extent_pages, size)

    def _head(self, page: int, layer: int, head: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """View one head's header, and its blocks as bytes [block][block_bytes]."""
        layout, spec = self.layout, self.layout.spec(layer)
        if not (0 <= page < self.num_pages and 0 <= head < spec.kv_heads):
            raise IndexError(f"page {page}, layer {layer}, head {head} is not in this pool")
        start = layout.place(page, layer, head)
        stored = self._all[start : start + layout.head_bytes(layer)]
        header, blocks = stored[: layout.header_bytes(layer)], stored[layout.header_bytes(layer) :]
        return header, blocks.reshape(-1, layout.block_bytes(layer))

    def _blocks(self, page: int, layer: int, head: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """View K and V of one head of floats, both [block][slot 16][head_dim]."""
        dim, dtype = self.layout.spec(layer).head_dim, self.layout.codec.dtype
        halves = self._head(page, layer, head)[1].view(dtype).reshape(-1, 2, BLOCK * dim)
        return halves[:, 0].reshape(-1, dim, BLOCK).transpose(0, 2, 1), halves[:, 1].reshape(-1, BLOCK, dim)


def floats_of(pools: Sequence[PagePool], layer: int) -> tuple[int, PagePool]:
    """The pool, and its number, that a layer's K and V are written to: of a packed layer the exact pages."""
    return next((i, pool) for i, pool in enumerate(pools) if (spec := pool.layout.layers[layer]) and not spec.packed)


def sealed_of(pools: Sequence[PagePool], layer: int) -> tuple[int, PagePool] | None:
    """The pool, and its number, that a layer's full pages are packed into; None for a layer of floats."""
    found = ((i, pool) for i, pool in enumerate(pools) if (spec := pool.layout.layers[layer]) and spec.packed)
    return next(found, None)


def read_of(pools: Sequence[PagePool], layer: int) -> tuple[int, PagePool]:
    """The pool, and its number, that later tokens read a layer's full pages from; sketches lie there."""
    return sealed_of(pools, layer) or floats_of(pools, layer)


def _read(
    codec: AnyCodec, header: NDArray[np.uint8], part: NDArray[np.uint8], dims: int, *, keys: bool
) -> NDArray[np.float32]:
    """K or V of all slots of a head."""
    if isinstance(codec, Packed):
        return unpack(codec, header, part, dims, keys=keys)
    stored = np.ascontiguousarray(part).view(codec.dtype)
    shaped = stored.reshape(-1, dims, BLOCK).transpose(0, 2, 1) if keys else stored.reshape(-1, BLOCK, dims)
    return codec.decode(shaped.reshape(-1, dims))
