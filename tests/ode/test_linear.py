"""Linear systems that Hypothesis makes, against the exponential of a matrix."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from pytensor import tensor as pt
from scipy.linalg import expm

from pymc_mpimap import solve_ivp
from pymc_mpimap.ode.system import LEAVES, T0, TS, Y0
from tests.ode.helpers import compiled, vector, with_derivatives

TOLERANCE = 1e-7
N = 3


def floats(low, high):
    return st.floats(low, high, allow_subnormal=False)


def vectors(low, high):
    return arrays(float, N, elements=floats(low, high))


GENTLE = arrays(float, (N, N), elements=floats(-1.5, 1.5))


@st.composite
def stiff(draw):
    """Eigenvalues from about -1 to about -10^4, whose directions are not orthogonal."""
    rates = [-(10.0 ** draw(floats(0.0, 4.0))) for _ in range(N)]
    turns = np.eye(N) + draw(arrays(float, (N, N), elements=floats(-0.25, 0.25)))
    return turns @ np.diag(rates) @ np.linalg.inv(turns)


GAPS = st.lists(st.just(0.0) | floats(1e-9, 1.5), max_size=6)


@cache
def solver(method):
    """Compile, once for all examples, what returns the solution and all its derivatives."""
    a, b = pt.dmatrix("a", shape=(N, N)), vector("b", N)
    t0, y0, ts = pt.dscalar("t0"), vector("y0", N), vector("ts")
    y = solve_ivp(
        lambda t, y, p: p["a"] @ y + p["b"],
        t0,
        y0,
        ts,
        {"a": a, "b": b},
        method=method,
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )
    outputs = with_derivatives(y, (T0, Y0, TS, LEAVES, LEAVES + 1))
    return compiled([a, b, t0, y0, ts], outputs, mode="FAST_COMPILE")


def exact(a, b, t0, y0, ts):
    """Return the same: a sensitivity s' = A s + E y is one more block of a linear system."""
    states, by_a, by_b, by_y0 = [], [], [], []
    for t in ts:
        matrix = np.zeros((2 * N + 1, 2 * N + 1))
        matrix[:N, :N] = matrix[N:-1, N:-1] = a
        matrix[:N, -1] = b
        start = np.concatenate([y0, np.zeros(N), [1.0]])
        states.append((expm(matrix * (t - t0)) @ start)[:N])
        columns = []
        for i, j in np.ndindex(N, N):
            coupled = matrix.copy()
            coupled[N + i, j] = 1.0
            columns.append((expm(coupled * (t - t0)) @ start)[N:-1])
        by_a.append(np.array(columns).T.reshape(N, N, N))
        matrix[N:-1, :N] = 0.0
        whole = expm(matrix[:N, :N] * (t - t0))
        by_y0.append(whole)
        # The integral of the exponential: its last column for each unit b.
        columns = []
        for i in range(N):
            forced = np.zeros((N + 1, N + 1))
            forced[:N, :N] = a
            forced[i, N] = 1.0
            columns.append(expm(forced * (t - t0))[:N, N])
        by_b.append(np.array(columns).T)
    shape = (len(ts), N)
    states, by_y0 = np.reshape(states, shape), np.reshape(by_y0, (*shape, N))
    by_a, by_b = np.reshape(by_a, (*shape, N, N)), np.reshape(by_b, (*shape, N))
    return [states, -by_y0 @ (a @ y0 + b), by_y0, states @ a.T + b, by_a, by_b]


def assert_solved(method, example):
    a, b, t0, y0, gaps = example
    ts = t0 + np.cumsum(gaps)
    result, expected = solver(method)(a, b, t0, y0, ts), exact(a, b, t0, y0, ts)
    sizes = [None, t0, y0, None, a, b]
    for which, (one, other, size) in enumerate(zip(result, expected, sizes, strict=True)):
        assert one.shape == other.shape
        if not gaps:
            continue
        # Of a column, that is of a state and its like, the largest is the scale: entries of it
        # that stay small are as exact as what drives them.
        scale = np.max(np.abs(other), axis=(0, 1))
        bound = TOLERANCE * (scale + 1 / np.maximum(1.0, np.abs(1.0 if size is None else size)))
        if which == 3:
            # The derivative by the output time is the right-hand side at the solution.
            bound = bound + np.abs(a).sum(axis=1).max() * TOLERANCE * (
                1 + np.abs(expected[0]).max()
            )
        off = np.max(np.abs(one - other) / bound)
        assert off <= 10.0, f"output {which} is off by {off:.3g} times the tolerance"


def examples(systems):
    """Return systems with all else that a solve needs."""
    return st.tuples(systems, vectors(-3, 3), floats(-2, 2), vectors(-5, 5), GAPS)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "auto", "scipy-DOP853"])
@given(examples(GENTLE))
def test_gentle_systems(method, example):
    assert_solved(method, example)


@pytest.mark.parametrize("method", ["bdf", "auto"])
@given(examples(stiff()))
def test_stiff_systems(method, example):
    assert_solved(method, example)


@given(examples(GENTLE.map(lambda a: a - 3 * np.eye(N))))
def test_decaying_systems_by_bdf(example):
    """Where solutions grow, errors of BDF grow with them: CVODE's and SciPy's to 50 times."""
    assert_solved("bdf", example)
