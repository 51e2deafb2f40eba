"""Boluses and infusions against the closed form, with every derivative."""

from functools import cache

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import Doses, solve_ivp
from tests.helpers import in_modes
from tests.ode.helpers import allowed, assert_within, compiled, linear, vector

TOLERANCE = 1e-8
T0 = 1.5
TS = np.array([1.5, 2.0, 3.0, 4.5, 4.5, 7.0, 11.0])


def one_compartment(p):
    return pt.stacklists([[-p[0] / p[1]]])


def two_compartments(p):
    clearance, v1, q, v2 = (p[i] for i in range(4))
    return pt.stacklists([[-(clearance + q) / v1, q / v2], [q / v1, -q / v2]])


def absorption(p):
    clearance, volume, ka = (p[i] for i in range(3))
    return pt.stacklists([[-ka, 0.0], [ka, -clearance / volume]])


MODELS = {
    "one compartment": (one_compartment, [0.8, 2.5], [1.2]),
    "two compartments": (two_compartments, [0.8, 2.5, 1.1, 4.0], [1.2, 0.4]),
    "absorption": (absorption, [0.8, 2.5, 0.9], [0.5, 0.2]),
}
# Times, amounts, durations and states; a state that a model has not is its first.
CASES = {
    "none": ([], [], [], []),
    "boluses": ([2.5, 4.0, 6.0], [10.0, 20.0, 5.0], [0.0, 0.0, 0.0], [0, 0, 0]),
    "infusions": ([2.5, 6.0], [10.0, 7.0], [1.5, 2.0], [0, 0]),
    "mixed": ([2.5, 3.5, 6.0, 8.0], [10.0, 8.0, 6.0, 4.0], [0.0, 1.0, 0.0, 2.0], [0, 0, 0, 0]),
    "overlapping": ([2.0, 2.5, 2.5, 6.0], [10.0, 8.0, 6.0, 4.0], [6.0, 1.0, 3.0, 9.0], [0] * 4),
    "bolus at t0": ([1.5, 4.0], [10.0, 20.0], [0.0, 0.0], [0, 0]),
    "infusion at t0": ([1.5, 4.0], [10.0, 20.0], [2.0, 0.0], [0, 0]),
    "at outputs": ([3.0, 4.5, 7.0, 11.0], [10.0, 20.0, 5.0, 3.0], [0.0, 0.0, 2.0, 0.0], [0] * 4),
    "ends at outputs": ([2.0, 3.5], [10.0, 20.0], [1.0, 1.0], [0, 0]),
    "after the last": ([2.5, 12.0, 13.0], [10.0, 20.0, 5.0], [0.0, 0.0, 1.0], [0, 0, 0]),
    "unsorted": ([6.0, 2.5, 4.0], [5.0, 10.0, 20.0], [0.0, 0.0, 1.0], [0, 0, 0]),
    "at one time": ([2.5, 2.5, 2.5], [10.0, 20.0, 3.0], [0.0, 0.0, 2.0], [0, 0, 0]),
    "states": ([2.5, 4.0, 4.0, 6.0], [10.0, 20.0, 5.0, 3.0], [0.0, 0.0, 2.0, 0.0], [1, 0, 1, 1]),
    "none at all, and negative": ([2.5, 4.0], [0.0, -0.5], [0.0, 1.0], [0, 0]),
}


def case_of(name, n_states):
    times, amounts, durations, states = (np.array(part, float) for part in CASES[name])
    return times, amounts, durations, (states % n_states).astype(int)


def scenario(model, **options):
    """Return the inputs, the solution and the closed form of a model."""
    matrix, p, y0 = MODELS[model]
    inputs = [vector("p", len(p)), vector("y0", len(y0)), pt.dscalar("t0"), vector("ts")]
    doses = [vector("times"), vector("amounts"), vector("durations"), pt.lvector("states")]
    parameters, start, t0, ts = inputs
    options = {"rtol": TOLERANCE, "atol": TOLERANCE, **options}
    y = solve_ivp(
        lambda t, y, p: matrix(p) @ y,
        t0,
        start,
        ts,
        parameters,
        doses=Doses(doses[0], doses[1], durations=doses[2], states=doses[3]),
        **options,
    )
    return [*inputs, *doses], y, linear(matrix(parameters), start, t0, ts, doses)


@cache
def functions(model, method, mode):
    """Compile what returns solution and gradient, by the solver and by the closed form."""
    inputs, y, closed = scenario(model, method=method)
    weights = pt.dmatrix("weights")
    wrt = [*inputs[:4], inputs[5]]
    return [
        compiled([*inputs, weights], [form, *pt.grad((weights * form).sum(), wrt)], mode=name)
        for form, name in ((y, mode), (closed, "FAST_COMPILE"))
    ]


def jacobians(f, *point):
    """Return the solution and its derivatives, each row by a cotangent that is 1 there."""
    shape = len(point[3]), len(point[1])
    rows = []
    for k in range(shape[0] * shape[1]):
        weights = np.zeros(shape)
        weights.flat[k] = 1.0
        solution, *gradients = f(*point, weights)
        rows.append(gradients)
    stacked = [np.array(part) for part in zip(*rows, strict=True)]
    return solution, [part.reshape(*shape, -1) for part in stacked]


def assert_agrees(f, closed, point, tolerance=TOLERANCE, *, compare_ts=slice(None)):
    """Compare the solution and all derivatives, each with its own tolerance."""
    (result, derivatives), (expected, exact) = jacobians(f, *point), jacobians(closed, *point)
    for i in range(expected.shape[1]):
        assert_within(result[:, i], expected[:, i], allowed(expected[:, i], tolerance))
    sizes = [point[0], point[1], [point[2]], point[3], point[5]]
    for which, (one, other) in enumerate(zip(derivatives, exact, strict=True)):
        if which == 3:
            exact_slopes = other[compare_ts][:, :, compare_ts]
            bound = allowed(exact_slopes, tolerance)
            assert_within(one[compare_ts][:, :, compare_ts], exact_slopes, bound)
            continue
        for i in range(one.shape[1]):
            for k in range(one.shape[2]):
                bound = allowed(other[:, i, k], tolerance, sizes[which][k])
                assert_within(one[:, i, k], other[:, i, k], bound)


def point_of(model, case):
    _, p, y0 = MODELS[model]
    return [np.array(p), np.array(y0), T0, TS, *case_of(case, len(y0))]


# At t0 itself the derivative by the output time is one from above, where the closed form's is not.
LATER = slice(1, None)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["tsit5", "bdf"])
def test_closed_form(method, model, case):
    f, closed = functions(model, method, "FAST_COMPILE")
    assert_agrees(f, closed, point_of(model, case), compare_ts=LATER)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dopri5", "auto", "scipy-LSODA", "scipy-DOP853"])
@pytest.mark.parametrize("case", ["none", "mixed", "overlapping", "at outputs", "states"])
def test_closed_form_by_other_methods(method, case):
    f, closed = functions("two compartments", method, "FAST_COMPILE")
    assert_agrees(f, closed, point_of("two compartments", case), compare_ts=LATER)


@in_modes("NUMBA")
@pytest.mark.parametrize("case", ["none", "overlapping", "unsorted", "states"])
def test_closed_form_in_compiled_code(mode, case):
    f, closed = functions("two compartments", "tsit5", mode)
    assert_agrees(f, closed, point_of("two compartments", case), compare_ts=LATER)


def test_random_regimens():
    """Many doses of both kinds, on times that repeat, with outputs among them."""
    f, closed = functions("two compartments", "tsit5", "FAST_COMPILE")
    rng = np.random.default_rng(5)
    for _ in range(10):
        n = int(rng.integers(1, 12))
        point = point_of("two compartments", "none")
        point[3] = np.sort(T0 + rng.integers(1, 20, size=6) / 2)
        point[4:] = (
            T0 + rng.integers(0, 20, size=n) / 2,
            rng.uniform(0.5, 20, size=n),
            rng.integers(0, 4, size=n) / 2,
            rng.integers(0, 2, size=n),
        )
        point[2] -= 0.25
        assert_agrees(f, closed, point)


def test_output_is_just_before_the_dose():
    y = solve_ivp(lambda t, y: 0.0 * y, 0.0, [1.0], [0.0, 1.0, 1.0, 2.0], doses=Doses([0, 1], 5.0))
    assert y.eval().ravel().tolist() == [1.0, 6.0, 6.0, 11.0]


def test_amounts_of_a_parameter():
    """Amounts may depend on parameters, as with bioavailability; one amount serves all doses."""
    f, k = pt.dscalar("f"), pt.dscalar("k")
    options = {"rtol": TOLERANCE, "atol": TOLERANCE}
    times, amounts, ts = np.array([0.0, 2.0, 3.0]), np.array([10.0, 20.0, 5.0]), TS
    for given in (f * amounts, 10.0 * f):
        every = given * np.ones(3)
        doses = Doses(times, given, durations=[0.0, 0.0, 1.0])
        y = solve_ivp(lambda t, y, k: -k * y, 0.0, [0.0], ts, k, doses=doses, **options)
        parts = [pt.constant(times), every, pt.constant([0.0, 0.0, 1.0]), pt.zeros(3, dtype=int)]
        closed = linear(-k.reshape((1, 1)), pt.zeros(1), 0.0, pt.constant(ts), parts)
        both = [[form, *pt.grad(form.sum(), [f, k])] for form in (y, closed)]
        result = compiled([f, k], both[0])(0.7, 0.3)
        expected = compiled([f, k], both[1])(0.7, 0.3)
        for one, other in zip(result, expected, strict=True):
            assert_within(one, other, len(ts) * allowed(other, TOLERANCE))


def test_one_duration_for_all_doses():
    y = solve_ivp(
        lambda t, y: 0.0 * y, 0.0, [0.0], [1.0, 2.0, 4.0], doses=Doses([0, 2], [2, 4], durations=2)
    )
    np.testing.assert_allclose(y.eval().ravel(), [1.0, 2.0, 6.0], rtol=1e-12)


@pytest.mark.parametrize("method", ["tsit5", "scipy-RK45"])
def test_a_dose_into_a_system_that_is_not_linear(method):
    """The jump is the state's own: y' = -k y^2 has 1/y grow by k (t - s)."""
    k, amount = pt.dscalar("k"), pt.dscalar("amount")
    y = solve_ivp(
        lambda t, y, k: -k * y**2,
        0.0,
        [2.0],
        [1.0, 3.0],
        k,
        doses=Doses([1.0], amount),
        method=method,
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )
    at_1 = 1 / (0.5 + k)
    closed = pt.stack([at_1, 1 / (1 / (at_1 + amount) + 2 * k)])
    results = [
        compiled([k, amount], [form, *pt.grad(form.sum(), [k, amount])])(0.4, 3.0)
        for form in (y[:, 0], closed)
    ]
    for one, other in zip(*results, strict=True):
        assert_within(one, other, 2 * allowed(other, TOLERANCE))


def test_number_of_doses_changes_from_call_to_call():
    """One compiled function; the width of the solve follows the number of doses."""
    inputs, y, _ = scenario("two compartments", method="tsit5")
    f = pytensor.function(inputs, [y, pt.grad(y.sum(), inputs[5])])
    names = ["boluses", "none", "mixed", "boluses", "infusions"]
    results = [f(*point_of("two compartments", name)) for name in names]
    assert [len(gradient) for _, gradient in results] == [3, 0, 4, 3, 2]
    assert all(
        np.array_equal(one, other) for one, other in zip(results[0], results[3], strict=True)
    )
