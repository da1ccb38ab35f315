"""The byte formula: where every number of a page lies. Bytes are computed here and nowhere else.

Pages lie in *extents* of 512 positions. Within one, a KV head's part of all pages lies together, so that attention,
which goes from page to page of one head, reads memory in long runs where a sequence has neighbouring pages. A pool has
whole extents; of the last one what lies behind the pool's last page is never touched::

    pool    | extent 0         | extent 1         | ... | sketches            extent_bytes
    extent  | layer 0          | layer 1          | ...                       extent_pages x layer_bytes(layer)
    layer   | KV head 0        | KV head 1        | ...                       extent_pages x head_bytes(layer)
    run     | page 0 | page 1  | ...  of that head                            head_bytes(layer)
    head    | header | slots 0..15    | slots 16..31  | ...  page_size / 16
            0        header_bytes(layer)
    block   | K [dim][slot 16] | V [slot 16][dim] |                           block_bytes(layer)
            0                  v_offset(layer)

                slot 0  1  2 ... 15                     dim 0  1  2 ... head_dim-1
      K  dim 0     [. . . . . . . .]  <- one vector   V  slot 0  [. . . . . . . .]
         dim 1     [. . . . . . . .]     of 16 lanes     slot 1  [. . . . . . . .]
         ...                                             ...

K is dim-major: the 16 slots are the 16 lanes of a SIMD register, so the scores of 16 positions need no horizontal sum.
V is slot-major: a position's weight multiplies whole vectors of dims. A larger page is a run of such blocks, which is
why its size changes no arithmetic. Every block starts on a multiple of 32 bytes, of floats on one of 64.

Where the tokens of a layer choose what they read (see `policy.topk`), a page has a sketch of each KV head's keys (see
`cache.sketch`). A choice looks at those of all pages, one after another, so they lie together, behind the extents::

    pool    | extents | sketches of the first layer that has some | of the second | ...
    layer   | KV head 0: of page 0 | of page 1 | ... | KV head 1: of page 0 | of page 1 | ...
            sketch_offset(layer, num_pages), from the beginning of the pool

A layer's K and V may each be packed instead (see `codec.packed`): a block then holds codes and scales, and some codecs
have a header in front of a head's blocks. Packed pages are read by later tokens only; their exact numbers are in the
pages of another group while they are filled.

Layers that see different spans form *groups*: a group's pages hold its own layers only, so that each group can let go
of a page when its own span has passed it. A layout names all layers of the model, those of other groups as None.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from kvist.cache.codec.base import AnyCodec, Codec, Packed
from kvist.cache.sketch import sketch_bytes
from kvist.errors import UsageError

BLOCK = 16
"""Slots in a block, and lanes in a vector."""

EXTENT = 512
"""Positions of an extent, a multiple of every page size."""

PAGE_SIZES = (16, 32, 64, 128)
"""The page sizes that can be chosen, in slots. All divide 128, none splits a block."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What one layer keeps of a position: K and V of `kv_heads` heads of `head_dim` numbers.

    `head_dim` is the stored one, a multiple of 16: the loader pads a model's heads with zeros, which change no score.
    k, v: codecs of its own (None: the layout's). sketch: whether its pages hold sketches of their keys.
    """

    kv_heads: int
    head_dim: int
    k: AnyCodec | None = None
    v: AnyCodec | None = None
    sketch: bool = False

    def __post_init__(self) -> None:
        if self.kv_heads < 1:
            raise UsageError(f"a layer has {self.kv_heads} KV heads: it needs at least 1")
        if self.head_dim < 1 or self.head_dim % BLOCK:
            raise UsageError(f"stored head size {self.head_dim} is not a multiple of {BLOCK}: pad it")

    @property
    def packed(self) -> bool:
        """Whether K or V lose something when a page is packed."""
        return isinstance(self.k, Packed) or isinstance(self.v, Packed)

    @property
    def exact(self) -> LayerSpec:
        """The same while a page is filled: floats, and no sketch as yet."""
        return replace(self, k=None, v=None, sketch=False)


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
        for spec in filter(None, self.layers):
            for codec in (spec.k, spec.v):
                if isinstance(codec, Packed):
                    codec.check(self.page_size, spec.head_dim)

    def spec(self, layer: int) -> LayerSpec:
        """What the pages hold of a layer; IndexError for one whose numbers lie elsewhere."""
        spec = self.layers[layer]
        if spec is None:
            raise IndexError(f"layer {layer} lies in the pages of another group")
        return spec

    def codecs(self, layer: int) -> tuple[AnyCodec, AnyCodec]:
        """How K and V of a layer are stored."""
        spec = self.spec(layer)
        return spec.k or self.codec, spec.v or self.codec

    def v_offset(self, layer: int) -> int:
        """Where V begins inside a block: after K."""
        return self._part_bytes(layer)[0]

    def block_bytes(self, layer: int) -> int:
        """Size of 16 slots of one head: K and V."""
        return sum(self._part_bytes(layer))

    def header_bytes(self, layer: int) -> int:
        """Size of what lies in front of a head's blocks: K's part of it, then V's."""
        (k, v), dims = self.codecs(layer), self.spec(layer).head_dim
        return sum(
            codec.header_bytes(dims, keys=keys) for codec, keys in ((k, True), (v, False)) if isinstance(codec, Packed)
        )

    def head_bytes(self, layer: int) -> int:
        """Size of one head's header and blocks in a page."""
        return self.header_bytes(layer) + self.page_size // BLOCK * self.block_bytes(layer)

    def layer_bytes(self, layer: int) -> int:
        """Size of one layer's part of a page."""
        spec = self.layers[layer]
        return spec.kv_heads * self.head_bytes(layer) if spec else 0

    def sketch_bytes(self, layer: int) -> int:
        """Size of the sketch of one head in a page; 0 where there is none."""
        spec = self.spec(layer)
        return sketch_bytes(spec.head_dim, self.page_size) if spec.sketch else 0

    def sketch_offset(self, layer: int, num_pages: int) -> int:
        """Where the sketches of a layer begin in a pool of so many pages."""
        return self.extents(num_pages) * self.extent_bytes + num_pages * self._sketches_before(layer)

    @property
    def extent_pages(self) -> int:
        """Pages of an extent."""
        return EXTENT // self.page_size

    @property
    def extent_bytes(self) -> int:
        """Size of an extent."""
        return self.extent_pages * self.kv_bytes

    def extents(self, num_pages: int) -> int:
        """Count of extents that hold `num_pages`; of the last one some pages may be left."""
        return -(-num_pages // self.extent_pages)

    def place(self, page: int, layer: int, head: int) -> int:
        """Where a page's part of a KV head begins in a pool."""
        extent, within = divmod(page, self.extent_pages)
        before = self._offsets[layer] + head * self.head_bytes(layer)
        return extent * self.extent_bytes + self.extent_pages * before + within * self.head_bytes(layer)

    @cached_property
    def alike(self) -> tuple[tuple[int, int], ...]:
        """The layers (first, end) that lie side by side and whose heads have the same size."""
        found = list[tuple[int, int]]()
        for layer, spec in enumerate(self.layers):
            if spec is None:
                continue
            if found and self.head_bytes(found[-1][0]) == self.head_bytes(layer):
                found[-1] = found[-1][0], layer + 1
            else:
                found.append((layer, layer + 1))
        return tuple(found)

    @cached_property
    def kv_bytes(self) -> int:
        """Size of K and V of a page, without any padding.

        Of floats: 2 x (sum over layers of kv_heads x head_dim) x page_size x itemsize.
        """
        return self._offsets[-1]

    @cached_property
    def page_bytes(self) -> int:
        """Size of a page: K, V, and the sketches."""
        return self.kv_bytes + self._sketches_before(len(self.layers))

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
        shapes = ",".join(_name(spec) if spec else "-" for spec in self.layers)
        return f"page/3 {self.codec.name} {self.page_size} {shapes}".encode()

    def _sketches_before(self, layer: int) -> int:
        """Size of the sketches that a page has in the layers before one."""
        specs = enumerate(self.layers[:layer])
        return sum(spec.kv_heads * self.sketch_bytes(i) for i, spec in specs if spec is not None)

    def _part_bytes(self, layer: int) -> tuple[int, int]:
        """Sizes of K and of V in a block."""
        (k, v), dims = self.codecs(layer), self.spec(layer).head_dim
        return _bytes(k, dims, keys=True), _bytes(v, dims, keys=False)

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        sizes = (self.layer_bytes(layer) for layer in range(len(self.layers)))
        return tuple(accumulate(sizes, initial=0))


def _bytes(codec: AnyCodec, dims: int, *, keys: bool) -> int:
    """Size of K, or V, of one head in 16 slots."""
    return codec.block_bytes(dims, keys=keys) if isinstance(codec, Packed) else BLOCK * dims * codec.itemsize


def _name(spec: LayerSpec) -> str:
    codecs = "".join(f"{side}{codec.name}" for side, codec in (("k", spec.k), ("v", spec.v)) if codec)
    return f"{spec.kv_heads}x{spec.head_dim}{codecs}{'sketch' if spec.sketch else ''}"
