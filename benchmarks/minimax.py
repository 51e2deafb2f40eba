"""Fit the polynomials of `pymc_mpimap.vectormath.functions` by Remez's algorithm.

From a checkout, with mpmath installed: ``python -m benchmarks.minimax``. Prints, for each, the
base-2 logarithm of the largest weighted error before rounding, and the coefficients, lowest first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[[Any], Any]


def remez(f: Function, weight: Function, low: Any, high: Any, n: int) -> tuple[list[Any], Any]:
    """Return the polynomial of n terms with the least largest weighted error, and that error."""
    from mpmath import cos, lu_solve, matrix, mpf, pi, polyval

    middle, half, n_grid = (low + high) / 2, (high - low) / 2, 60 * n
    grid = [middle - half * cos(pi * i / n_grid) for i in range(n_grid + 1)]
    points = [middle - half * cos(pi * i / n) for i in range(n + 1)]
    for _ in range(12):
        system, values = matrix(n + 1, n + 1), matrix(n + 1, 1)
        for i, x in enumerate(points):
            for j in range(n):
                system[i, j] = x**j
            system[i, n] = mpf(-1) ** i / weight(x)
            values[i] = f(x)
        terms = list(lu_solve(system, values))[:n]
        errors = [weight(x) * (f(x) - polyval(terms[::-1], x)) for x in grid]
        extremes = [0]
        for i in range(1, len(grid)):
            if (errors[i] > 0) != (errors[extremes[-1]] > 0):
                extremes.append(i)
            elif abs(errors[i]) > abs(errors[extremes[-1]]):
                extremes[-1] = i
        if len(extremes) <= n:
            break
        while len(extremes) > n + 1:
            extremes.pop(0 if abs(errors[extremes[0]]) < abs(errors[extremes[-1]]) else -1)
        points = [grid[i] for i in extremes]
    return terms, max(map(abs, errors))


def main() -> None:
    """Fit all polynomials."""
    from mpmath import atanh, exp, log, mp, mpf, sqrt, tanh

    mp.dps = 60
    tiny, half_ln2, smallest = mpf(10) ** -12, log(2) / 2 * mpf("1.001"), mpf(10) ** -8

    def exp_tail(r: Any) -> Any:
        return (exp(r) - 1 - r) / r**2 if abs(r) > tiny else mpf(1) / 2 + r / 6

    def exp_weight(r: Any) -> Any:
        return r * r / exp(r) if abs(r) > mpf(10) ** -5 else smallest

    def log_tail(z: Any) -> Any:
        return (2 * atanh(sqrt(z)) / sqrt(z) - 2) / z if z > tiny else mpf(2) / 3 + z * 2 / 5

    def tanh_tail(z: Any) -> Any:
        return (tanh(sqrt(z)) / sqrt(z) - 1) / z if z > tiny else -mpf(1) / 3 + z * 2 / 15

    def by_size(z: Any) -> Any:
        return max(z, smallest)

    largest_s = (sqrt(2) - 1) / (sqrt(2) + 1)
    fits = {
        "exp": (exp_tail, exp_weight, -half_ln2, half_ln2, 10),
        "expm1": (exp_tail, exp_weight, -half_ln2, half_ln2, 11),
        "log": (log_tail, by_size, mpf(0), largest_s**2 * mpf("1.001"), 7),
        "tanh": (tanh_tail, by_size, mpf(0), mpf("0.55") ** 2, 11),
    }
    for name, fit in fits.items():
        terms, error = remez(*fit)
        print(f"{name}: 2**{float(log(error, 2)):.1f}", *map(float, terms), sep="\n    ")


if __name__ == "__main__":
    main()
