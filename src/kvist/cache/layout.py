"""The byte formula: where every number of a page lies. Bytes are computed here and nowhere else.

One page is one contiguous blob, all layers of `page_size` consecutive positions, so that copying, checksumming or
moving a page is one operation::

    page    | layer 0          | layer 1          | ...                    page_bytes
    layer   | KV head 0        | KV head 1        | ...                    layer_bytes(layer)
    head    | slots 0..15      | slots 16..31     | ...   page_size / 16   head_bytes(layer)
    block   | K [dim][slot 16] | V [slot 16][dim] |                        block_bytes(layer)
            0                  v_offset(layer)

                slot 0  1  2 ... 15                     dim 0  1  2 ... head_dim-1
      K  dim 0     [. . . . . . . .]  <- one vector   V  slot 0  [. . . . . . . .]
         dim 1     [. . . . . . . .]     of 16 lanes     slot 1  [. . . . . . . .]
         ...                                             ...

K is dim-major: the 16 slots are the 16 lanes of a SIMD register, so the scores of 16 positions need no horizontal sum.
V is slot-major: a position's weight multiplies whole vectors of dims. A larger page is a run of such blocks, which is
why its size changes no arithmetic. Every block starts on a multiple of 64 bytes.

Layers that see different spans form *groups*: a group's pages hold its own layers only, so that each group can let go
of a page when its own span has passed it. A layout names all layers of the model, those of other groups as None.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from kvist.cache.codec.base import Codec
from kvist.errors import UsageError

BLOCK = 16
"""Slots in a block, and lanes in a vector."""

PAGE_SIZES = (16, 32, 64, 128)
"""The page sizes that can be chosen, in slots. All divide 128, none splits a block."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What one layer keeps of a position: K and V of `kv_heads` heads of `head_dim` numbers.

    `head_dim` is the stored one, a multiple of 16: the loader pads a model's heads with zeros, which change no score.
    """

    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.kv_heads < 1:
            raise UsageError(f"a layer has {self.kv_heads} KV heads: it needs at least 1")
        if self.head_dim < 1 or self.head_dim % BLOCK:
            raise UsageError(f"stored head size {self.head_dim} is not a multiple of {BLOCK}: pad it")


@dataclass(frozen=True)
class PageLayout:
    """The layout of one page: `layers` specs, `page_size` slots, numbers stored by `codec`. All sizes are in bytes.

    Layers are counted as the model counts them; one that is None lies in another group's pages and takes no bytes.
    """

    layers: tuple[LayerSpec | None, ...]
    page_size: int
    codec: Codec

    def __post_init__(self) -> None:
        if self.page_size not in PAGE_SIZES:
            raise UsageError(f"page size {self.page_size}: choose one of {', '.join(map(str, PAGE_SIZES))}")
        if not any(self.layers):
            raise UsageError("a page layout needs at least one layer")

    def spec(self, layer: int) -> LayerSpec:
        """What the pages hold of a layer; IndexError for one whose numbers lie elsewhere."""
        spec = self.layers[layer]
        if spec is None:
            raise IndexError(f"layer {layer} lies in the pages of another group")
        return spec

    def v_offset(self, layer: int) -> int:
        """Where V begins inside a block: after K's [head_dim][16]."""
        return BLOCK * self.spec(layer).head_dim * self.codec.itemsize

    def block_bytes(self, layer: int) -> int:
        """Size of 16 slots of one head: K and V."""
        return 2 * self.v_offset(layer)

    def head_bytes(self, layer: int) -> int:
        """Size of one head's blocks in a page."""
        return self.page_size // BLOCK * self.block_bytes(layer)

    def layer_bytes(self, layer: int) -> int:
        """Size of one layer's part of a page."""
        spec = self.layers[layer]
        return spec.kv_heads * self.head_bytes(layer) if spec else 0

    def layer_offset(self, layer: int) -> int:
        """Where a layer begins inside a page."""
        return self._offsets[layer]

    @cached_property
    def page_bytes(self) -> int:
        """Size of a page: 2 x (sum over layers of kv_heads x head_dim) x page_size x itemsize, without any padding."""
        return self._offsets[-1]

    @property
    def bytes_per_token(self) -> int:
        """Size of one slot in all layers."""
        return self.page_bytes // self.page_size

    def pages_for(self, tokens: int) -> int:
        """Count of pages that hold `tokens` positions."""
        return -(-tokens // self.page_size)

    def pool_bytes(self, num_pages: int) -> int:
        """Size of a pool of `num_pages`."""
        return num_pages * self.page_bytes

    @cached_property
    def identity(self) -> bytes:
        """What two pools must agree on to exchange pages byte for byte; part of every content key."""
        shapes = ",".join(f"{spec.kv_heads}x{spec.head_dim}" if spec else "-" for spec in self.layers)
        return f"page/1 {self.codec.name} {self.page_size} {shapes}".encode()

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        sizes = (self.layer_bytes(layer) for layer in range(len(self.layers)))
        return tuple(accumulate(sizes, initial=0))
