"""Functions of sixteen lanes: our own exp, and the activations made from it.

Own, because a library's exp differs between machines and between vector widths; this one is a fixed sequence of
correctly rounded operations and so a pure function of its input, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

from kvist.kernels.cpu.vector import (
    absolute,
    add,
    add_exponent,
    copy_sign,
    div,
    fma,
    maximum,
    minimum,
    mul,
    round_even,
    scale_by_power,
    splat,
    sub,
    where_less,
)

# inner functions of one compiled loop: they need no entry from Python of their own
OPTIONS = {"error_model": "numpy", "boundscheck": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
LOG2_E = 1.4426950408889634
ROUNDS = 1.5 * 2**23  # a number of less than 22 bits to which it is added keeps none of them behind the point

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """numba's decorator, typed as what it is to a reader: the same function, compiled."""
    return cast(Function, njit(**OPTIONS)(function))


PLACED: dict[str, list[Any]] = {"noinline": [], "alwaysinline": []}
"""The functions that `apart` and `inlined` have made, by what LLVM calls it."""


def apart(function: Function) -> Function:
    """`jit` for what stays a function in machine code, however often it is called.

    LLVM moves what does not change in a loop out in front of it; in a function that has taken in all that it calls, for
    loops that seldom run, too.
    """
    PLACED["noinline"].append(jit(function))
    return cast(Function, PLACED["noinline"][-1])


def inlined(function: Function) -> Function:
    """`jit` for what becomes part of its caller, however long it is: what does not change is done once, in front."""
    PLACED["alwaysinline"].append(jit(function))
    return cast(Function, PLACED["alwaysinline"][-1])


@jit
def exp(x: Any) -> Any:
    """e**x, error under 2 units in the last place; inputs are clamped to -87.3 .. 88.3 (no zero, no infinity).

    x = n ln 2 + r with |r| <= ln(2)/2; e**r by a polynomial of degree 6 (Taylor with the last terms fitted);
    the result is scaled by 2**n.
    """
    x = minimum(maximum(x, splat(-87.3)), splat(88.3))
    n = round_even(mul(x, splat(LOG2_E)))
    r = fma(n, splat(-0.693359375), x)  # ln 2 in two parts: the first has few bits, so n times it is exact
    r = fma(n, splat(2.12194440054690583e-4), r)
    p = splat(1.9875691500e-4)
    p = fma(p, r, splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    p = fma(p, r, splat(5.0000001201e-1))
    p = fma(p, mul(r, r), r)
    return scale_by_power(add(p, splat(1.0)), n)


@jit
def exp_below(x: Any) -> Any:
    """e**x for x <= 0, clamped to -86: error under 2 units in the last place, and one more for each -4 of x.

    2**(n + f) with |f| <= 1/2: adding `ROUNDS` rounds, and the sum's bits end in n. 2**f by a polynomial of degree 5
    (the least relative error, 1 at 0).
    """
    x = maximum(x, splat(-86.0))
    t = fma(x, splat(LOG2_E), splat(ROUNDS))
    f = fma(x, splat(LOG2_E), sub(splat(ROUNDS), t))
    p = splat(1.326472731307149e-3)
    p = fma(p, f, splat(9.671512991189957e-3))
    p = fma(p, f, splat(5.550733581185341e-2))
    p = fma(p, f, splat(2.4022242426872253e-1))
    p = fma(p, f, splat(6.931470036506653e-1))
    return add_exponent(fma(p, f, splat(1.0)), t)


@jit
def silu(x: Any) -> Any:
    """x / (1 + e**-x)."""
    return div(x, add(splat(1.0), exp(sub(splat(0.0), x))))


@jit
def tanh(x: Any) -> Any:
    """Hyperbolic tangent: 1 - 2 / (e**2|x| + 1) with x's sign, and an odd polynomial near zero where that cancels."""
    a = absolute(x)
    large = sub(splat(1.0), div(splat(2.0), add(exp(add(a, a)), splat(1.0))))
    s = mul(x, x)
    p = splat(-5.70498872745e-3)
    p = fma(p, s, splat(2.06390887954e-2))
    p = fma(p, s, splat(-5.37397155531e-2))
    p = fma(p, s, splat(1.33314422036e-1))
    p = fma(p, s, splat(-3.33332819422e-1))
    small = fma(mul(p, s), a, a)
    return copy_sign(where_less(a, splat(0.625), small, large), x)


@jit
def gelu_tanh(x: Any) -> Any:
    """GELU by its tanh form (GPT-2's ``gelu_new``): x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    inner = mul(splat(0.7978845608028654), fma(mul(splat(0.044715), mul(x, x)), x, x))
    return mul(mul(splat(0.5), x), add(splat(1.0), tanh(inner)))


@jit
def gelu(x: Any) -> Any:
    """GELU by the error function: x/2 (1 + erf(x / sqrt 2)); erf after Abramowitz and Stegun 7.1.26 (error 1.5e-7)."""
    z = mul(x, splat(0.7071067811865476))
    a = absolute(z)
    t = div(splat(1.0), fma(splat(0.3275911), a, splat(1.0)))
    p = splat(1.061405429)
    p = fma(p, t, splat(-1.453152027))
    p = fma(p, t, splat(1.421413741))
    p = fma(p, t, splat(-0.284496736))
    p = fma(p, t, splat(0.254829592))
    erf = sub(splat(1.0), mul(mul(p, t), exp(sub(splat(0.0), mul(a, a)))))
    return mul(mul(splat(0.5), x), add(splat(1.0), copy_sign(erf, z)))


@jit
def activate(kind: int, x: Any) -> Any:
    """The activation numbered as in abi.ACTIVATIONS."""
    if kind == 0:
        return silu(x)
    if kind == 1:
        return gelu_tanh(x)
    return gelu(x)
