"""Single numbers at byte addresses, and the atomics that the threads of a step share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from kvist.kernels.cpu.abi import ARG
from kvist.kernels.cpu.vector import I64, emit_prefetch, external, pointer


def _get(kind: Any, stored: Any) -> Any:
    @intrinsic
    def function(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(pointer(builder, args[0], stored), align=1)
            return builder.sext(value, I64) if isinstance(stored, ir.IntType) and stored != I64 else value

        return kind(types.int64), codegen

    return function


get_i32: Callable[[int], int] = _get(types.int64, ir.IntType(32))
get_i64: Callable[[int], int] = _get(types.int64, I64)
get_f32: Callable[[int], float] = _get(types.float32, ir.FloatType())
get_f64: Callable[[int], float] = _get(types.float64, ir.DoubleType())


def _slot(first: int, kind: Any, stored: Any) -> Any:
    """A reader of slot `first` + index of a row of eight-byte slots."""

    @intrinsic
    def function(typingctx: Any, row: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            row, index = args
            index = context.cast(builder, index, signature.args[1], types.int64)
            place = builder.add(row, builder.mul(builder.add(index, I64(first)), I64(8)))
            return builder.load(pointer(builder, place, stored))

        return kind(types.int64, index), codegen

    return function


slot: Callable[[int, int], int] = _slot(0, types.int64, I64)  # of the context, a sequence or an item
slot_f64: Callable[[int, int], float] = _slot(0, types.float64, ir.DoubleType())
arg: Callable[[int, int], int] = _slot(ARG, types.int64, I64)  # the index-th argument of an op
arg_f32: Callable[[int, int], float] = _slot(ARG, types.float32, ir.FloatType())


@intrinsic
def arg_address(typingctx: Any, op: Any, index: Any) -> Any:
    """Where the index-th argument of an op lies, and those after it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.int64)
        return builder.add(args[0], builder.mul(builder.add(index, I64(ARG)), I64(8)))

    return types.int64(types.int64, index), codegen


@intrinsic
def put_i64(typingctx: Any, address: Any, value: Any) -> Any:
    """Store an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], pointer(builder, args[0], I64))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def put_i32(typingctx: Any, address: Any, value: Any) -> Any:
    """Store the lower half of an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = context.cast(builder, args[1], signature.args[1], types.int64)
        builder.store(builder.trunc(value, ir.IntType(32)), pointer(builder, args[0], ir.IntType(32)), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, value), codegen


@intrinsic
def put_f32(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = context.cast(builder, args[1], signature.args[1], types.float32)
        builder.store(value, pointer(builder, args[0], ir.FloatType()))
        return context.get_dummy_value()

    return types.none(types.int64, value), codegen


@intrinsic
def put_f64(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], pointer(builder, args[0], ir.DoubleType()))
        return context.get_dummy_value()

    return types.none(types.int64, types.float64), codegen


@intrinsic
def slot_f32(typingctx: Any, row: Any, index: Any) -> Any:
    """A float64 slot rounded to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.int64)
        place = builder.add(args[0], builder.mul(index, I64(8)))
        return builder.fptrunc(builder.load(pointer(builder, place, ir.DoubleType())), ir.FloatType())

    return types.float32(types.int64, index), codegen


@intrinsic
def take(typingctx: Any, address: Any) -> Any:
    """Atomically add 1 to the int64 at address and return what stood there: the next piece of work is yours."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), I64(1), "seq_cst")

    return types.int64(types.int64), codegen


@intrinsic
def peek(typingctx: Any, address: Any) -> Any:
    """Atomic read of the int64 at address, ordered after the writes of whoever advanced it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0], I64), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def let_others_run(typingctx: Any) -> Any:
    """Give the core away (POSIX sched_yield): a waiting thread must not starve the one it waits for."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.call(external(builder, "sched_yield", ir.IntType(32), []), [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit_prefetch(builder, args[0], I64(0))
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@intrinsic
def nanoseconds(typingctx: Any) -> Any:
    """POSIX clock_gettime of the monotonic clock."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, pair = ir.IntType(32), ir.ArrayType(I64, 2)
        with builder.goto_entry_block():
            place = builder.alloca(pair)
        clock = external(builder, "clock_gettime", i32, [i32, pair.as_pointer()])
        builder.call(clock, [i32(time.CLOCK_MONOTONIC), place])
        seconds, rest = (builder.load(builder.gep(place, [i32(0), i32(i)])) for i in (0, 1))
        return builder.add(builder.mul(seconds, I64(1_000_000_000)), rest)

    return types.int64(), codegen
