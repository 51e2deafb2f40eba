"""Products of many small matrices with a vector each, for Numba.

A call of BLAS takes longer than the hundred multiplications of such a product.
"""

# mypy: disallow-untyped-decorators=False
# Numba's are.

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["matrices_times_vectors", "transposed_times_vectors"]

_options: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_jitted: Any = numba.njit(**_options)


@_jitted
def matrices_times_vectors(x: Any, v: Any) -> Any:
    """Return ``x[i] @ v[i]`` for each i."""
    n, rows, columns = x.shape
    products = np.empty((n, rows))
    for i in range(n):
        for row in range(rows):
            total = 0.0
            for column in range(columns):
                total += x[i, row, column] * v[i, column]
            products[i, row] = total
    return products


@_jitted
def transposed_times_vectors(x: Any, v: Any) -> Any:
    """Return ``x[i].T @ v[i]`` for each i."""
    n, rows, columns = x.shape
    products = np.zeros((n, columns))
    for i in range(n):
        for row in range(rows):
            factor = v[i, row]
            for column in range(columns):
                products[i, column] += x[i, row, column] * factor
    return products
