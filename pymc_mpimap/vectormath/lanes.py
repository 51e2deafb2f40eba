"""Sums for Numba: in a fixed order, and yet as SIMD code.

The sums themselves are called by address: Numba optimizes all code anew in each function that
calls it, and in each that calls that one.
"""

# mypy: disallow-untyped-decorators=False
# Numba's are.

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types

from pymc_mpimap.native.cache import compiled_callback, stamp
from pymc_mpimap.native.compiling import compiling
from pymc_mpimap.native.memory import Buffer, call_with, doubles, symbol, words

__all__ = ["STAMP", "sum_of_rows", "sum_of_stack"]

_LANES = 64
STAMP = stamp("vectormath")
"""Of all the code that sums are compiled from."""
_options: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_jitted: Any = numba.njit(**_options)


def _rows(request: Any) -> Any:
    """Sum as many rows as there are sums, each in lanes if it has as many numbers.

    Parameters
    ----------
    request : int
        The address of what `call_with` packs of an array and its sums.
    """
    q = words(request)
    x, n, sums, n_rows = doubles(q[0]), q[1], doubles(q[2]), q[3]
    lanes = doubles(q[4])
    size = n // max(n_rows, 1)
    for row in range(n_rows):
        start, end = row * size, (row + 1) * size
        if size < _LANES:
            total = 0.0
            for k in range(start, end):
                total += x[k]
            sums[row] = total
            continue
        for k in range(_LANES):
            lanes[k] = 0.0
        while start + _LANES <= end:
            for k in range(_LANES):
                lanes[k] += x[start + k]
            start += _LANES
        for k in range(end - start):
            lanes[k] += x[start + k]
        width = _LANES // 2
        while width:
            for k in range(width):
                lanes[k] += lanes[width + k]
            width //= 2
        sums[row] = lanes[0]
    return 0


def _stack(request: Any) -> Any:
    """Add up the rows of a matrix, one after the other; see `_rows`."""
    q = words(request)
    x, n, sums, n_sums = doubles(q[0]), q[1], doubles(q[2]), q[3]
    for k in range(n_sums):
        sums[k] = 0.0
    start = 0
    while start < n:
        for k in range(n_sums):
            sums[k] += x[start + k]
        start += n_sums
    return 0


def _addresses() -> Buffer:
    """Return where the address of `_rows` is, and that of `_stack`."""
    with compiling():
        return _compiled()


@cache
def _compiled() -> Buffer:
    callback = compiled_callback(types.int32(types.intp), STAMP)
    _kept.extend(callback(function) for function in (_rows, _stack))
    addresses = Buffer("pymc_mpimap_sums", len(_kept))
    for k, compiled in enumerate(_kept):
        addresses.words[k] = compiled.address
    return addresses


# Code that nobody keeps is freed.
_kept: list[Any] = []


def sum_of_rows(n_kept: int) -> Any:
    """Return a function that sums an array over all but its first axes.

    Parameters
    ----------
    n_kept
        The number of axes that stay.

    Returns
    -------
    Any
        A function that Numba has compiled, of one array of float64.
    """
    name = _addresses().name

    @_jitted
    def sum_of_rows(x: Any) -> Any:
        sums = np.empty(x.shape[:n_kept])
        call_with(words(symbol(name))[0], (x, sums, np.empty(_LANES)))
        return sums

    return sum_of_rows


def sum_of_stack(n_summed: int) -> Any:
    """Return a function that sums an array over its first axes, one element after the other.

    Parameters
    ----------
    n_summed
        The number of axes that go.

    Returns
    -------
    Any
        A function that Numba has compiled, of one array of float64.
    """
    name = _addresses().name

    @_jitted
    def sum_of_stack(x: Any) -> Any:
        sums = np.empty(x.shape[n_summed:])
        call_with(words(symbol(name))[1], (x, sums))
        return sums

    return sum_of_stack
