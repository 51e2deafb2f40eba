"""Elementary functions of one float64 as branch-free arithmetic, for Numba.

LLVM turns a loop over such a function into SIMD code, which it cannot do with a call of the C
library. There are only additions, multiplications, divisions, fused multiply-adds, comparisons
that select one of two values, and integer operations on the bits: each is exact or correctly
rounded on every processor, alone or in one lane of eight. So an element's bits depend on nothing
but the argument: neither on the length of the vector, nor on the place in it, nor on the machine.
Fast-math, which would let the compiler undo the careful order of operations, is off.

The polynomials are minimax fits by ``benchmarks/minimax.py``. They are evaluated pairwise (Estrin),
which leaves the processor something to do in parallel. How the arguments are reduced is textbook:
Cody and Waite, Software Manual for the Elementary Functions (1980), and for the logarithm Tang,
ACM Transactions on Mathematical Software 16 (1990), without the table.
"""

# mypy: disallow-untyped-decorators=False, warn-return-any=False
# Numba's decorators have no types for what they return.

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["decay", "exp", "expm1", "log", "log1p", "sigmoid", "softplus", "tanh"]

# Adding 1.5 * 2**52 rounds to an integer, which then stands in the lowest bits.
_ROUND = 6755399441055744.0
# The same with an exponent's bias: shifted to the exponent's place, the bits are a power of two.
_ROUND_BIASED = _ROUND + 1023.0
_EXPONENT_SHIFT = 52
_INVERSE_LN2 = 1.4426950408889634
# ln 2 in two parts; the first ends in zero bits, so that its multiples are exact.
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
# Beyond these the result has overflown, or is 0.
_EXP_HIGHEST, _EXP_LOWEST = 710.0, -746.0
# Below this the result may be subnormal.
_EXP_NORMAL = -707.0
_TWO_MINUS_64 = 5.421010862427522e-20
# Beyond this, exp(x) - 1 rounds to -1.
_EXPM1_LOWEST = -38.0
_SMALLEST_NORMAL = 2.2250738585072014e-308
_TWO_54 = 18014398509481984.0
_TWO_52_BIASED = 4503599627370496.0 + 1023.0
_TWO_52_BITS = 0x4330000000000000
_MANTISSA = 0x000FFFFFFFFFFFFF
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
_ONE_BITS = 0x3FF0000000000000
_SQRT_TWO = 1.4142135623730951
_TINY = 5.551115123125783e-17  # 2**-54
_INFINITY, _NAN = float("inf"), float("nan")

_intrinsic: Any = intrinsic  # Its type is that of what it decorates, not of what comes of it.


@_intrinsic
def _bits(_context: Any, _x: Any) -> Any:
    """Return the bits of a float64 as an int64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@_intrinsic
def _from_bits(_context: Any, _bits: Any) -> Any:
    """Return the float64 of an int64's bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@_intrinsic
def _shifted_right(_context: Any, _bits: Any) -> Any:
    """Shift to the exponent, without the sign: AVX2 has no shift that keeps it."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.lshr(arguments[0], ir.Constant(ir.IntType(64), _EXPONENT_SHIFT))

    return types.int64(types.int64), generate


@_intrinsic
def _select(_context: Any, _condition: Any, _x: Any, _y: Any) -> Any:
    """Return one of two values, both computed."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return types.float64(types.boolean, types.float64, types.float64), generate


@_intrinsic
def _fma(_context: Any, _x: Any, _y: Any, _z: Any) -> Any:
    """Return x * y + z, rounded once."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


# PyTensor compiles each function of a graph for itself. That all are one loop's body in the end,
# however long, must be said.
# By Numba's own error model a division by zero is a branch that raises.
_options: Any = {
    "forceinline": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
_inlined: Any = numba.njit(**_options)


@_inlined
def _power_of_two(rounded: float) -> float:
    """Return 2**k for a sum k + _ROUND_BIASED."""
    return _from_bits(_bits(rounded) << _EXPONENT_SHIFT)


@_inlined
def _exp_tail(r: float, r2: float) -> float:
    """Return (exp(r) - 1 - r) / r**2 for abs(r) <= ln(2) / 2, to 2**-57 of exp(r)."""
    r4 = r2 * r2
    low = _fma(
        r2,
        _fma(r, 0.008333333333495627, 0.04166666666652919),
        _fma(r, 0.1666666666666641, 0.5000000000000011),
    )
    middle = _fma(
        r2,
        _fma(r, 2.7557587357531655e-06, 2.4801492763973955e-05),
        _fma(r, 0.00019841269504751636, 0.0013888888943921454),
    )
    high = _fma(r, 2.4999960208336418e-08, 2.7630378228186743e-07)
    return _fma(r4, _fma(r4, high, middle), low)


@_inlined
def _exp(x: float) -> float:
    """Return exp(x) for x that neither overflows nor is below where all is 0."""
    k = _fma(x, _INVERSE_LN2, _ROUND) - _ROUND
    high = _fma(k, -_LN2_HIGH, x)  # Exact.
    low = k * -_LN2_LOW
    r = high + low
    r2 = r * r
    mantissa = 1.0 + (high + _fma(r2, _exp_tail(r, r2), low))
    # In two steps: neither 2**1024 nor 2**-1075 is a float64.
    small = x < _EXP_NORMAL
    power = _power_of_two(k + _select(small, _ROUND_BIASED + 64.0, _ROUND_BIASED - 1.0))
    return (mantissa * power) * _select(small, _TWO_MINUS_64, 2.0)


@_inlined
def exp(x: float) -> float:
    """Return e to the power of x."""
    x = _select(x > _EXP_HIGHEST, _EXP_HIGHEST, x)
    return _exp(_select(x < _EXP_LOWEST, _EXP_LOWEST, x))


@_inlined
def decay(x: float) -> float:
    """Return exp(-abs(x))."""
    x = -abs(x)
    return _exp(_select(x < _EXP_LOWEST, _EXP_LOWEST, x))


@_inlined
def _log1p_split(f: float, high: float, low: float) -> float:
    """Return log(1 + f) + high + low for 1 + f from sqrt(1/2) to sqrt(2) and a tiny `low`.

    With s = f / (2 + f), the logarithm of 1 + f is 2 atanh(s), which is f - f**2 / 2 +
    s (f**2 / 2 + tail) without rounding's effect on the leading term.
    """
    s = f / (2.0 + f)
    z = s * s
    z2 = z * z
    even = _fma(
        z2,
        _fma(z, 0.22222198475984783, 0.285714287432636),
        _fma(z, 0.39999999999411084, 0.6666666666666735),
    )
    odd = _fma(z2, 0.14797505869908936, _fma(z, 0.15313903388946495, 0.18183569736570396))
    half_square = (0.5 * f) * f
    tail = _fma(z, _fma(z2 * z2, odd, even), half_square)
    return high - ((half_square - _fma(s, tail, low)) - f)


@_inlined
def log(x: float) -> float:
    """Return the natural logarithm of x."""
    subnormal = x < _SMALLEST_NORMAL
    bits = _bits(_select(subnormal, x * _TWO_54, x)) + (_ONE_BITS - _SQRT_HALF_BITS)
    k = _from_bits(_shifted_right(bits) | _TWO_52_BITS) - _select(
        subnormal, _TWO_52_BIASED + 54.0, _TWO_52_BIASED
    )
    f = _from_bits((bits & _MANTISSA) + _SQRT_HALF_BITS) - 1.0
    result = _log1p_split(f, k * _LN2_HIGH, k * _LN2_LOW)
    result = _select(x < _INFINITY, result, x)
    return _select(x > 0.0, result, _select(x == 0.0, -_INFINITY, _NAN))


@_inlined
def log1p(x: float) -> float:
    """Return log(1 + x), also where 1 + x is rounded."""
    u = 1.0 + x
    part = u - 1.0
    lost = (1.0 - (u - part)) + (x - part)  # 1 + x = u + lost
    bits = _bits(u) + (_ONE_BITS - _SQRT_HALF_BITS)
    k = _from_bits(_shifted_right(bits) | _TWO_52_BITS) - _TWO_52_BIASED
    near = k == 0.0
    f = _select(near, x, _from_bits((bits & _MANTISSA) + _SQRT_HALF_BITS) - 1.0)
    low = _fma(k, _LN2_LOW, _select(near, 0.0, lost / u))
    result = _log1p_split(f, k * _LN2_HIGH, low)
    result = _select(abs(x) < _TINY, x, result)  # -0 too.
    result = _select(x < _INFINITY, result, x)
    return _select(x > -1.0, result, _select(x == -1.0, -_INFINITY, _NAN))


@_inlined
def softplus(x: float, decayed: float) -> float:
    """Return log(1 + exp(x)), given exp(-abs(x))."""
    large = decayed > _SQRT_TWO - 1.0
    part = decayed - 1.0
    # What rounding it has lost, times the logarithm's slope. Above 1/2 nothing is lost.
    lost = (decayed - (part + 1.0)) * 0.69
    logarithm = _log1p_split(
        _select(large, 0.5 * part, decayed),
        _select(large, _LN2_HIGH, 0.0),
        _select(large, _LN2_LOW + lost, 0.0),
    )
    return _select(x > 0.0, x, 0.0) + logarithm


@_inlined
def sigmoid(x: float, decayed: float) -> float:
    """Return 1 / (1 + exp(-x)), given exp(-abs(x))."""
    u = 1.0 + decayed
    lost = decayed - (u - 1.0)
    quotient = _select(x < 0.0, decayed, 1.0) / u
    # 1 / u as a straight line: of what is lost, one digit is enough.
    return _fma(-quotient, lost * _fma(u, -0.5, 1.5), quotient)


@_inlined
def _expm1_tail(r: float, r2: float) -> float:
    """Return the same, to 2**-60 of exp(r) - 1."""
    r4 = r2 * r2
    low = _fma(
        r2,
        _fma(r, 0.008333333333316918, 0.04166666666666609),
        _fma(r, 0.16666666666666682, 0.5),
    )
    middle = _fma(
        r2,
        _fma(r, 2.7557234558560862e-06, 2.480158692470356e-05),
        _fma(r, 0.00019841269896681221, 0.0013888888889117207),
    )
    high = _fma(r2, 2.0826558475975853e-09, _fma(r, 2.511214456562576e-08, 2.755758271866901e-07))
    return _fma(r4, _fma(r4, high, middle), low)


@_inlined
def expm1(x: float) -> float:
    """Return exp(x) - 1, also where that is close to 0."""
    y = _select(x > _EXP_HIGHEST, _EXP_HIGHEST, x)
    y = _select(y < _EXPM1_LOWEST, _EXPM1_LOWEST, y)
    k = _fma(y, _INVERSE_LN2, _ROUND) - _ROUND
    high = _fma(k, -_LN2_HIGH, y)  # Exact.
    low = k * -_LN2_LOW
    r = high + low
    p = high + _fma(r * r, _expm1_tail(r, r * r), low)
    # exp(x) - 1 = 2**k ((1 - 2**-k) + p), where 2**k, up to 2**1024, is taken in two steps.
    power = _power_of_two(k + (_ROUND_BIASED - 1.0))
    inverse = 0.5 * _power_of_two((_ROUND_BIASED + 1.0) - k)
    result = ((p + (1.0 - inverse)) * power) * 2.0
    return _select(abs(x) < _TINY, x, result)  # -0 too.


@_inlined
def _tanh_tail(z: float) -> float:
    """Return (tanh(x) / x - 1) / z for z = x**2 and abs(x) <= 0.55."""
    z2 = z * z
    z4 = z2 * z2
    low = _fma(
        z2,
        _fma(z, 0.021869488389102777, -0.0539682539638786),
        _fma(z, 0.13333333333326833, -0.333333333333333),
    )
    middle = _fma(
        z2,
        _fma(z, 0.0005884570464856183, -0.001455545983442039),
        _fma(z, 0.003592092532441589, -0.008863232652779005),
    )
    high = _fma(z2, -1.9521022388322148e-05, _fma(z, 8.336006038626144e-05, -0.0002334127220587112))
    return _fma(z4, _fma(z4, high, middle), low)


@_inlined
def tanh(x: float) -> float:
    """Return the hyperbolic tangent of x."""
    size = abs(x)
    z = x * x
    small = _fma(x, z * _tanh_tail(z), x)
    large = 1.0 - 2.0 / (_exp(2.0 * _select(size > 22.0, 22.0, size)) + 1.0)
    result = _select(size < 0.55, small, _select(x < 0.0, -large, large))
    return _select(size < 1e-8, x, result)  # -0 too.
