"""Lowering of what reads and writes pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvist.cache.pool import PagePool, floats_of, sealed_of
from kvist.errors import UsageError
from kvist.kernels.cpu import abi
from kvist.kernels.cpu.lower_choice import Choosing, best_row, places_of
from kvist.kernels.cpu.row import Row, bits
from kvist.kernels.program import Attend, Buffer, Mix, Observe, Program, RotaryStore, Seal


@dataclass(frozen=True)
class PagedRows:
    """Rows of a program's operations on pages. at, stride: of a buffer; address: of an array, which is kept."""

    program: Program
    pools: Sequence[PagePool]
    at: Callable[[Buffer], int]
    stride: Callable[[Buffer], int]
    address: Callable[[Any], int]
    choosing: Choosing

    def _pages(self, place: tuple[int, PagePool], layer: int) -> tuple[int, int, int, int]:
        """Where a layer's K and V are in the pages of a group (see `places`)."""
        group, pool = place
        return *places_of(pool, layer), group

    def rotary_store(self, op: RotaryStore) -> Row:
        """Rotating, and writing to slots."""
        half = op.rotary.half if op.rotary else 0
        cos = self.address(op.rotary.cos) if op.rotary else 0
        sin = self.address(op.rotary.sin) if op.rotary else 0
        program, floats = self.program, floats_of(self.pools, op.layer)
        start, page_bytes, extent_bytes, group = self._pages(floats, op.layer)
        arguments = [
            self.at(op.q), self.at(op.k), self.at(op.v), self.stride(op.q), self.stride(op.k), self.stride(op.v),
            program.num_heads, program.num_kv_heads, program.head_dim, half, cos, sin,
            start, abi.DTYPES.index(floats[1].layout.codec.name), page_bytes, extent_bytes, group,
            *self._signs(op.mix), 0 if op.mean is None else self.address(op.mean),
        ]  # fmt: skip
        touched = {op.q.name, op.k.name} | ({op.v.name} if op.mix and op.mix.v else set())
        return Row(abi.ROTARY_STORE, arguments, touched | {op.v.name}, touched | {f"pages {op.layer}"})

    def seal(self, op: Seal) -> Row:
        """Packing the pages that a step fills."""
        floats, sealed = floats_of(self.pools, op.layer), sealed_of(self.pools, op.layer)
        assert sealed is not None
        program = self.program
        arguments = [
            *self._pages(floats, op.layer), *self._pages(sealed, op.layer), program.num_kv_heads, program.head_dim
        ]  # fmt: skip
        kind = _codecs(floats[1], sealed[1], op.layer)
        return Row(abi.SEAL, arguments, {f"pages {op.layer}"}, {f"pages {op.layer}"}, f"seal_{kind}")

    def attend(self, op: Attend) -> list[Row]:
        """Attention, perhaps with the choice of its pages before, and the folding of its splits."""
        sinks = 0 if op.sinks is None else self.address(op.sinks)
        floats, sealed = floats_of(self.pools, op.layer), sealed_of(self.pools, op.layer)
        start, page_bytes, extent_bytes, group = self._pages(floats, op.layer)
        kind = _codecs(floats[1], sealed[1], op.layer) if sealed else floats[1].layout.codec.name
        if op.first and self.program.num_heads // self.program.num_kv_heads > 2 * abi.TILE:
            raise UsageError(f"more than {2 * abi.TILE} heads share a KV head: no policy with sinks runs on this model")
        arguments = [
            self.at(op.q), self.stride(op.q), self.at(op.out), self.program.head_dim, start, bits(op.scale),
            op.window or abi.EVERYTHING, bits(op.softcap or 0.0), sinks, page_bytes, extent_bytes, group, op.first,
            *((op.turn.half, self.address(op.turn.cos), self.address(op.turn.sin)) if op.turn else (0, 0, 0)),
            *(self._pages(sealed, op.layer) if sealed else (0, 0, 0, 0)), *self._signs(op.mix),
            abi.CHOSEN if op.choice else 0,
        ]  # fmt: skip
        items, best = "items", list[Row]()
        if op.choice is not None:
            assert op.window is None
            q = self.at(op.q), self.stride(op.q)
            items, best = (
                "chosen items",
                [best_row(op, op.choice, q, self.program, self.pools, self.choosing, self.address)],
            )
        read, written = {op.q.name, f"pages {op.layer}", items, "chosen pages"}, {op.out.name, "partials"}
        return [
            *best,
            Row(abi.ATTEND, arguments, read, written, f"attend_{kind}"),
            Row(abi.MERGE, arguments, {"partials", items}, {op.out.name}),
        ]

    def observe(self, op: Observe) -> list[Row]:
        """Noting what rows look at."""
        floats = floats_of(self.pools, op.layer)
        start, page_bytes, extent_bytes, group = self._pages(floats, op.layer)
        arguments = [
            self.at(op.q), self.stride(op.q), self.program.head_dim, start, bits(op.scale), bits(op.softcap or 0.0),
            page_bytes, extent_bytes, group, self.at(op.found), self.stride(op.found), self.address(op.into),
            op.into.strides[0], op.into.shape[1], int(op.kind == "max"), self.address(op.weights),
        ]  # fmt: skip
        read = {op.q.name, f"pages {op.layer}"}
        return [
            Row(abi.NORMALISE, arguments, read, {op.found.name}, f"observe_{floats[1].layout.codec.name}"),
            Row(abi.OBSERVE, arguments, read | {op.found.name}, set(), f"observe_{floats[1].layout.codec.name}"),
        ]

    def _signs(self, mix: Mix | None) -> tuple[int, int]:
        """Addresses of the signs that q and k, and v, are mixed with."""
        if mix is None:
            return 0, 0
        address = self.address(mix.signs)
        return address if mix.k else 0, address if mix.v else 0


def _codecs(floats: PagePool, sealed: PagePool, layer: int) -> str:
    """The types of a packed layer's pages, as units are named."""
    return "_".join((floats.layout.codec.name, *(codec.name for codec in sealed.layout.codecs(layer))))
