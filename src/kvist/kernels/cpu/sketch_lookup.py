"""Looking up in sketches: the sums of a query's signs that the nibbles of a page name, added up."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kvist.kernels.cpu.packed_lanes import words
from kvist.kernels.cpu.packed_products import emit_dot, in_pairs
from kvist.kernels.cpu.vector import I32, V16I, external, has
from kvist.kernels.cpu.vector_bytes import V64B, emit_byte_pairs, emit_shuffle_bytes


def emit_lookup(builder: Any, table: Any, places: Any) -> Any:
    """Bytes of a table of 64, four times sixteen: byte i looks in part i % 4. places: bytes, 0 to 15."""
    parts = ir.Constant(V64B, [16 * (lane % 4) for lane in range(64)])
    if has("avx512vbmi"):
        function = external(builder, "llvm.x86.avx512.permvar.qi.512", V64B, [V64B, V64B])
        return builder.call(function, [table, builder.or_(places, parts)])
    if has("avx2"):
        return _lookup_by_parts(builder, table, places)
    found = ir.Constant(V64B, [0] * 64)
    for place in range(16):
        lanes = ir.Constant(ir.VectorType(I32, 64), [16 * (lane % 4) + place for lane in range(64)])
        here = builder.icmp_unsigned("==", places, ir.Constant(V64B, [place] * 64))
        found = builder.select(here, builder.shuffle_vector(table, table, lanes), found)
    return found


def _lookup_by_parts(builder: Any, table: Any, places: Any) -> Any:
    """All bytes looked up in each part; of each four the right ones."""
    found = []
    for part in range(4):
        lanes = [16 * part + lane % 16 for lane in range(64)]
        found.append(emit_shuffle_bytes(builder, _take(builder, table, table, lanes), places))
    upper = [lane + (64 if lane % 4 >= 2 else 0) for lane in range(64)]
    odd = [lane + (64 if lane % 2 else 0) for lane in range(64)]
    even_parts, odd_parts = (_take(builder, found[part], found[part + 2], upper) for part in (0, 1))
    return _take(builder, even_parts, odd_parts, odd)


def _take(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def emit_add_bytes(builder: Any, total: Any, found: Any) -> Any:
    """Add signed bytes to sums of four each; where they are added in pairs, to sums of two each in 16 bits."""
    found = builder.bitcast(found, V16I)
    if in_pairs():
        return builder.add(total, emit_byte_pairs(builder, words(0x0101_0101), found))
    return emit_dot(builder, total, words(0x0101_0101), found)
