"""How the loop calls a unit that was compiled by itself (attention, weights of a type): by the address in the op."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from kvist.kernels.cpu.vector import I8, I32, I64


@intrinsic
def call_unit(typingctx: Any, address: Any, ctx: Any, op: Any, piece: Any, tid: Any) -> Any:
    """``entry(ctx, op, piece, tid)`` at `address`, in numba's calling convention. It raises nothing."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, *arguments = args
        pointer = I8.as_pointer()
        function = ir.FunctionType(I32, [pointer, pointer, *[I64] * 4])  # status f(result*, exception info**, ...)
        result = builder.bitcast(cgutils.alloca_once(builder, I64), pointer)
        builder.call(builder.inttoptr(address, function.as_pointer()), [result, ir.Constant(pointer, None), *arguments])
        return context.get_dummy_value()

    return types.none(*[types.int64] * 5), codegen
