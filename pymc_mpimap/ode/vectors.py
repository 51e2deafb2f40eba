"""Vector operations and the Newton step for a state with its sensitivities.

A solve carries one vector, the matrix of a state and its sensitivities: a row for each of the n
states, with the state itself in column 0 and its derivatives in the others. SUNDIALS' own code
for vectors knows nothing of columns, and is compiled for any processor. This code is compiled for
the one at hand, and measures an error column by column, so that each derivative is as accurate as
the states are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types

from pymc_mpimap.native.memory import doubles, words
from pymc_mpimap.ode import sundials
from pymc_mpimap.ode.cache import compiled_callback
from pymc_mpimap.ode.layout import ATOL, N_STATES, PART, RTOL, WIDTH
from pymc_mpimap.ode.memory import data, length

__all__ = ["error_weights", "norm", "operations", "solve_columns"]

sundials.require()
SUNDenseMatrix_Data = sundials.SUNDenseMatrix_Data

i32, f64, pointer, void = types.int32, types.float64, types.intp, types.void


@cache
def _arithmetic(size: int) -> tuple[Any, ...]:
    """Return what SUNDIALS does with vectors of this size; of any size if it is 0.

    A size that is known when it is compiled lets short loops be unrolled: BDF takes a fifth less
    time for it on a small problem.
    """

    @compiled_callback(void(f64, pointer, f64, pointer, pointer), size)
    def linear_sum(a: Any, x: Any, b: Any, y: Any, z: Any) -> None:
        xs, ys, zs = data(x), data(y), data(z)
        for i in range(size or length(x)):
            zs[i] = a * xs[i] + b * ys[i]

    @compiled_callback(void(f64, pointer, pointer), size)
    def scale(c: Any, x: Any, z: Any) -> None:
        xs, zs = data(x), data(z)
        for i in range(size or length(x)):
            zs[i] = c * xs[i]

    @compiled_callback(i32(i32, pointer, pointer, pointer), size)
    def linear_combination(k: Any, factors: Any, vectors: Any, z: Any) -> Any:
        """``z = sum(c * x)``; the first of the vectors may be `z` itself, as SUNDIALS has it."""
        n, zs, c, xs = size or length(z), data(z), doubles(factors), words(vectors)
        x0, c0 = data(xs[0]), c[0]
        if k == 1:
            for i in range(n):
                zs[i] = c0 * x0[i]
            return 0
        x1, c1 = data(xs[1]), c[1]
        if k == 2:
            for i in range(n):
                zs[i] = c0 * x0[i] + c1 * x1[i]
            return 0
        # Several vectors a pass: one pass for each would be mostly loads and stores.
        x2, c2 = data(xs[2]), c[2]
        if k == 3:
            for i in range(n):
                zs[i] = c0 * x0[i] + c1 * x1[i] + c2 * x2[i]
            return 0
        x3, c3 = data(xs[3]), c[3]
        for i in range(n):
            zs[i] = c0 * x0[i] + c1 * x1[i] + c2 * x2[i] + c3 * x3[i]
        j = 4
        while j + 3 <= k:
            x0, c0, x1, c1 = data(xs[j]), c[j], data(xs[j + 1]), c[j + 1]
            x2, c2 = data(xs[j + 2]), c[j + 2]
            for i in range(n):
                zs[i] += c0 * x0[i] + c1 * x1[i] + c2 * x2[i]
            j += 3
        while j < k:
            x0, c0 = data(xs[j]), c[j]
            for i in range(n):
                zs[i] += c0 * x0[i]
            j += 1
        return 0

    return linear_sum, scale, linear_combination


@cache
def _arithmetic_of_several(size: int) -> tuple[Any, ...]:
    """Return what BDF alone does with several vectors of this size."""

    @compiled_callback(i32(i32, pointer, pointer, pointer, pointer), size)
    def scale_add_multi(k: Any, factors: Any, x: Any, added: Any, sums: Any) -> Any:
        n, xs, c, ys, zs = size or length(x), data(x), doubles(factors), words(added), words(sums)
        for j in range(k):
            y, z, factor = data(ys[j]), data(zs[j]), c[j]
            for i in range(n):
                z[i] = factor * xs[i] + y[i]
        return 0

    @compiled_callback(i32(i32, pointer, pointer, pointer), size)
    def scale_array(k: Any, factors: Any, vectors: Any, scaled: Any) -> Any:
        c, xs, zs = doubles(factors), words(vectors), words(scaled)
        n = size or length(xs[0])
        for j in range(k):
            x, z, factor = data(xs[j]), data(zs[j]), c[j]
            for i in range(n):
                z[i] = factor * x[i]
        return 0

    return scale_add_multi, scale_array


@cache
def norm(n_states: int) -> Any:
    """Return the norm of errors for so many states, in SUNDIALS' weights.

    The root mean square over the states, of the column where it is largest: a column is the
    states, or their derivatives with respect to one parameter, and the tolerance holds for each.
    """

    @compiled_callback(f64(pointer, pointer), n_states)
    def column_norm(x: Any, weights: Any) -> Any:
        xs, ws = data(x), data(weights)
        width = length(x) // n_states
        largest = checked = 0.0
        for s in range(width):
            total = 0.0
            for i in range(n_states):
                error = xs[i * width + s] * ws[i * width + s]
                total += error * error
            largest = max(largest, total)
            checked += total
        return np.sqrt(largest / n_states) if np.isfinite(checked) else np.inf

    return column_norm


def _error_weights(y: Any, weights: Any, user: Any) -> Any:
    """``1 / (rtol * abs(y) + atol)``, or of a part of it, for each state and column."""
    u, ys, ws = doubles(user), data(y), data(weights)
    n, width, rtol, part = int(u[N_STATES]), int(u[WIDTH]), u[RTOL], u[PART]
    atol = int(u[ATOL])
    scale = atol + n
    for i in range(n):
        for s in range(width):
            k = i * width + s
            ws[k] = 1.0 / (part * (rtol * abs(ys[k]) + u[atol + i] * u[scale + s]))
    return 0


def _solve_columns(solver: Any, matrix: Any, x: Any, b: Any, _tolerance: Any) -> Any:
    """Solve ``A x = b`` for every column of b, with the factors that SUNLinSol_Dense has made.

    The Newton matrix of a state with sensitivities has the n x n matrix of the state in each
    diagonal block. What is below the blocks is left out: the iteration converges all the same,
    and one small factorization serves all columns.
    """
    content = words(words(solver)[0])
    n, pivots = content[0], words(content[1])
    a, xs, bs = doubles(SUNDenseMatrix_Data(matrix)), data(x), data(b)
    width = length(x) // n
    if x != b:
        for k in range(n * width):
            xs[k] = bs[k]
    for i in range(n):
        p = pivots[i]
        if p != i:
            for s in range(width):
                xs[i * width + s], xs[p * width + s] = xs[p * width + s], xs[i * width + s]
    for c in range(n - 1):
        for i in range(c + 1, n):
            factor = a[c * n + i]
            if factor != 0.0:
                for s in range(width):
                    xs[i * width + s] -= factor * xs[c * width + s]
    for c in range(n - 1, -1, -1):
        reciprocal = 1.0 / a[c * n + c]
        for s in range(width):
            xs[c * width + s] *= reciprocal
        for i in range(c):
            factor = a[c * n + i]
            if factor != 0.0:
                for s in range(width):
                    xs[i * width + s] -= factor * xs[c * width + s]
    return 0


@cache
def error_weights() -> Any:
    """Return what gives the weights of errors, see above."""
    return compiled_callback(i32(pointer, pointer, pointer))(_error_weights)


@cache
def solve_columns() -> Any:
    """Return what solves for every column, see above; explicit methods never need it."""
    return compiled_callback(i32(pointer, pointer, pointer, pointer, f64))(_solve_columns)


LARGEST_UNROLLED = 64


def operations(n_states: int, width: int, *, implicit: bool) -> list[int]:
    """Return the addresses of the operations, in the order of `sundials.OPERATIONS`.

    A width of 0 is one that is not known yet. Where an explicit method has no use for an
    operation, 0 stands for it.
    """
    size = n_states * width
    size = size if size <= LARGEST_UNROLLED else 0
    addresses = [int(function.address) for function in _arithmetic(size)]
    if implicit:
        addresses += [int(function.address) for function in _arithmetic_of_several(size)]
    else:
        addresses += [0, 0]
    return [*addresses, int(norm(n_states).address)]
