"""Everything the loop does with weights of one type: a compiled unit for each type that a model has.

Matmul, the rows of an embedding, conversion to a float type, the search for what is not finite.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu import abi
from kvist.kernels.cpu.formats import FORMATS
from kvist.kernels.cpu.math import jit
from kvist.kernels.cpu.matmul import make_matmul
from kvist.kernels.cpu.scalar import arg, arg_f32, get_i32, put_i64, slot
from kvist.kernels.cpu.vector import I64, V16F, add, fma, mul, pointer, reduce_add, splat
from kvist.kernels.cpu.vector_memory import load_f32, store, store_f32

store_f16, store_bf16 = store["f16"], store["bf16"]


def make_unpack(dtype: str) -> Any:
    """``unpack(source, out)``: one block as float32."""
    form = FORMATS[dtype]

    @intrinsic
    def unpack(typingctx: Any, source: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for i, vector in enumerate(form.emit(builder, args[0])):
                builder.store(vector, pointer(builder, args[1], V16F, I64(64 * i)), align=4)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), codegen

    return unpack


def make_embed(dtype: str) -> Any:
    """out[row] = table[token] * scale (+ positions[position]).

    Arguments: table, width, scale, float32 table of positions or 0, out, stride, bytes of a row.
    """
    unpack, numbers, size = make_unpack(dtype), 16 * FORMATS[dtype].vectors, FORMATS[dtype].size

    @jit
    def embed(ctx: int, op: int, piece: int, scratch: int) -> None:
        table, width, scale = arg(op, 0), arg(op, 1), splat(arg_f32(op, 2))
        learned, row_bytes = arg(op, 3), arg(op, 6)
        for row in range(piece * abi.ROWS_A_PIECE, min(slot(ctx, abi.ROWS), (piece + 1) * abi.ROWS_A_PIECE)):
            out = arg(op, 4) + row * arg(op, 5)
            source = table + get_i32(slot(ctx, abi.TOKENS) + row * 4) * row_bytes
            for b in range(width // numbers):
                unpack(source + b * size, out + b * numbers * 4)
            for d in range(0, width, 16):
                store_f32(out + d * 4, mul(load_f32(out + d * 4), scale))
            if learned != 0:
                place = learned + get_i32(slot(ctx, abi.POSITIONS) + row * 4) * width * 4
                for d in range(0, width, 16):
                    store_f32(out + d * 4, add(load_f32(out + d * 4), load_f32(place + d * 4)))

    return embed


def make_convert(dtype: str) -> Any:
    """Rows of this type to rows of a float type.

    Arguments: source, rows, K, bytes of a row, out, its type, its itemsize.
    """
    unpack, numbers, size = make_unpack(dtype), 16 * FORMATS[dtype].vectors, FORMATS[dtype].size

    @jit
    def convert(ctx: int, op: int, piece: int, scratch: int) -> None:
        source, rows, K, row_bytes = arg(op, 0), arg(op, 1), arg(op, 2), arg(op, 3)
        kind, itemsize = arg(op, 5), arg(op, 6)
        for row in range(piece * abi.CONVERT_ROWS, min(rows, (piece + 1) * abi.CONVERT_ROWS)):
            for b in range(K // numbers):
                unpack(source + row * row_bytes + b * size, scratch)
                target = arg(op, 4) + (row * K + b * numbers) * itemsize
                for d in range(0, numbers, 16):
                    if kind == 0:
                        store_f32(target + d * 4, load_f32(scratch + d * 4))
                    elif kind == 1:
                        store_f16(target + d * 2, load_f32(scratch + d * 4))
                    else:
                        store_bf16(target + d * 2, load_f32(scratch + d * 4))

    return convert


def make_find_nonfinite(dtype: str) -> Any:
    """Set a flag if a piece holds a NaN or an infinity: those times 0 are NaN, and NaN stays in a sum.

    Arguments: address, blocks, address of the int64 flag.
    """
    unpack, numbers, size = make_unpack(dtype), 16 * FORMATS[dtype].vectors, FORMATS[dtype].size

    @jit
    def find_nonfinite(ctx: int, op: int, piece: int, scratch: int) -> None:
        total, zero = splat(0.0), splat(0.0)
        for b in range(piece * abi.SEARCH_BLOCKS, min(arg(op, 1), (piece + 1) * abi.SEARCH_BLOCKS)):
            unpack(arg(op, 0) + b * size, scratch)
            for d in range(0, numbers, 16):
                total = fma(load_f32(scratch + d * 4), zero, total)
        if reduce_add(total) != 0.0:  # NaN differs from everything
            put_i64(arg(op, 2), 1)

    return find_nonfinite


def make_unit(dtype: str) -> Any:
    """The entry of the unit for weights of `dtype`: one piece of an op."""
    matmul, embed = make_matmul(dtype), make_embed(dtype)
    convert, find_nonfinite = make_convert(dtype), make_find_nonfinite(dtype)

    def weights(ctx: int, op: int, piece: int, tid: int) -> int:
        code = slot(op, abi.CODE)
        scratch = slot(ctx, abi.SCRATCH) + tid * slot(ctx, abi.SCRATCH_BYTES)
        if code == abi.MATMUL:
            matmul(ctx, op, piece, tid, scratch)
        elif code == abi.EMBED:
            embed(ctx, op, piece, scratch)
        elif code == abi.CONVERT:
            convert(ctx, op, piece, scratch)
        else:
            find_nonfinite(ctx, op, piece, scratch)
        return 0

    return weights
