"""Sums in 64 lanes, for Numba: in a fixed order, and yet as SIMD code."""

# mypy: disallow-untyped-decorators=False
# Numba's are.

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["sum_of_rows"]

_LANES = 64
_options: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_jitted: Any = numba.njit(**_options)


@_jitted
def _sum_of_row(x: Any, start: int, size: int, lanes: Any) -> Any:
    total = 0.0
    if size < _LANES:
        for k in range(size):
            total += x[start + k]
        return total
    lanes[:] = 0.0
    n_whole = size // _LANES
    for i in range(n_whole):
        first = start + i * _LANES
        for k in range(_LANES):
            lanes[k] += x[first + k]
    first = start + n_whole * _LANES
    for k in range(size - n_whole * _LANES):
        lanes[k] += x[first + k]
    width = _LANES // 2
    while width:
        for k in range(width):
            lanes[k] += lanes[width + k]
        width //= 2
    return lanes[0]


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
    if n_kept == 0:

        @_jitted
        def sum_of_all(x: Any) -> Any:
            flat = np.ascontiguousarray(x).reshape(-1)
            return np.asarray(_sum_of_row(flat, 0, flat.size, np.empty(_LANES)))

        return sum_of_all

    @_jitted
    def sum_of_each(x: Any) -> Any:
        flat = np.ascontiguousarray(x).reshape(-1)
        lanes = np.empty(_LANES)
        result = np.empty(x.shape[:n_kept])
        sums = result.reshape(-1)
        size = flat.size // max(sums.size, 1)
        for row in range(sums.size):
            sums[row] = _sum_of_row(flat, row * size, size, lanes)
        return result

    return sum_of_each
