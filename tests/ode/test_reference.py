"""Four problems against solutions known to many digits: every state and every sensitivity."""

import numpy as np
import pytensor.tensor as pt
import pytest

from pymc_mpimap import solve_ivp
from pymc_mpimap.ode.system import LEAVES, Y0
from tests.ode.helpers import assert_within, compiled, vector, with_derivatives
from tests.ode.problems import PROBLEMS

METHODS = ("dopri5", "tsit5", "bdf", "auto")
STIFF = ("bdf", "auto")
CASES = [(name, method) for name in PROBLEMS for method in (STIFF if name == "rob" else METHODS)]
each_case = pytest.mark.parametrize(("name", "method"), CASES)
each_tolerance = pytest.mark.parametrize("tolerance", [1e-6, 1e-8])


def solve(name, method, tolerance):
    """Return the parameters, the initial states and the solution of a problem."""
    problem = PROBLEMS[name]
    p, y0 = vector("p", len(problem.p)), vector("y0", len(problem.y0))
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    return p, y0, solve_ivp(problem.rhs, 0.0, y0, problem.ts, p, **options)


def entries(name, method, tolerance):
    """Return what a problem's reference has, as solved."""
    problem = PROBLEMS[name]
    p, y0, y = solve(name, method, tolerance)
    f = compiled([p, y0], with_derivatives(y, (Y0, LEAVES)))
    states, by_y0, by_p = f(problem.p, problem.y0)
    return np.concatenate([states[:, :, None], by_p, by_y0], axis=2)


@each_tolerance
@each_case
def test_states_and_sensitivities(name, method, tolerance):
    problem = PROBLEMS[name]
    result = entries(name, method, tolerance)
    assert_within(result, problem.reference, problem.allowed(tolerance, tolerance))


@pytest.mark.parametrize(("name", "method"), [c for c in CASES if c[0] in {"lv", "rob"}])
def test_states_without_sensitivities(name, method):
    problem, tolerance = PROBLEMS[name], 1e-8
    p, y0, y = solve(name, method, tolerance)
    (result,) = compiled([p, y0], [y])(problem.p, problem.y0)
    states = problem.reference[:, :, 0]
    # Without sensitivities BDF takes longer steps, and errors of oscillations add up: CVODE's are
    # 20 times the tolerance here, SciPy's 13.
    times = 30 if (name, method) == ("lv", "bdf") else 10
    assert_within(result, states, problem.allowed(tolerance, tolerance)[:, 0], times)


@pytest.mark.parametrize(
    ("mode", "name", "method"),
    [
        ("FAST_COMPILE", "lv", "tsit5"),
        ("FAST_COMPILE", "fri", "bdf"),
        ("NUMBA", "mm", "bdf"),
    ],
    indirect=["mode"],
)
def test_gradient_of_a_likelihood(mode, name, method):
    """The pullback contracts the same sensitivities with the cotangent."""
    problem, tolerance = PROBLEMS[name], 1e-8
    p, y0, y = solve(name, method, tolerance)
    weights = np.cos(np.arange(y.type.shape[1] * len(problem.ts))).reshape(len(problem.ts), -1)
    value = (weights * y).sum()
    result = compiled([p, y0], [value, *pt.grad(value, [p, y0])])(problem.p, problem.y0)
    expected = np.einsum("ti,tic->c", weights, problem.reference)
    bound = np.einsum("ti,ic->c", np.abs(weights), problem.allowed(tolerance, tolerance))
    assert_within(np.concatenate([result[:1], *result[1:]]), expected, bound)


@pytest.mark.parametrize("method", ["scipy-LSODA", "scipy-BDF", "scipy-Radau"])
def test_scipy_on_a_stiff_problem(method):
    problem, tolerance = PROBLEMS["rob"], 1e-6
    result = entries("rob", method, tolerance)
    assert_within(result, problem.reference, problem.allowed(tolerance, tolerance))


@pytest.mark.parametrize("method", ["scipy-RK23", "scipy-RK45", "scipy-DOP853"])
def test_scipy_on_a_problem_that_is_not_stiff(method):
    problem, tolerance = PROBLEMS["mm"], 1e-6
    result = entries("mm", method, tolerance)
    assert_within(result, problem.reference, problem.allowed(tolerance, tolerance))


def test_tolerances_of_states():
    """A loose tolerance for one state spoils no other that does not depend on it."""
    k = pt.dscalar("k")
    y = solve_ivp(
        lambda t, y, k: [-k * y[0], np.cos(20 * t)],
        0.0,
        [1.0, 0.0],
        [1.0, 3.0],
        k,
        rtol=1e-12,
        atol=[1e-3, 1e-11],
        method="tsit5",
    )
    (result,) = compiled([k], [y])(0.5)
    assert_within(result[:, 0], np.exp([-0.5, -1.5]), 1e-3)
    assert_within(result[:, 1], np.sin([20.0, 60.0]) / 20, 1e-11)
