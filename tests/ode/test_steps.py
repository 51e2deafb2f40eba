"""Piecewise-constant parameters and discontinuous right-hand sides, and what times are refused."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import NullTypeGradError

from pymc_mpimap import Doses, Steps, solve_ivp
from pymc_mpimap.errors import InputError
from pymc_mpimap.ode.evaluate import evaluate
from pymc_mpimap.ode.schedule import PROBLEMS, SIZES
from tests.helpers import assert_same_bits, in_modes
from tests.ode.helpers import allowed, assert_within, compiled, linear, node_of, vector

TOLERANCE = 1e-8
SOLVERS = ["tsit5", "bdf", "auto", "scipy-LSODA"]
each_method = pytest.mark.parametrize("method", SOLVERS)


def options(method="tsit5", tolerance=TOLERANCE):
    return {"method": method, "rtol": tolerance, "atol": tolerance}


def assert_same_derivatives(one, other, inputs, point, tolerance=TOLERANCE):
    """Compare two expressions, and the gradients of their sums and weighted sums."""
    weights = pt.dvector("weights")
    functions = []
    for form in (one, other):
        gradients = pt.grad((weights * form.ravel()).sum(), inputs)
        functions.append(compiled([*inputs, weights], [form, *gradients]))
    n = one.type.shape[0] * one.type.shape[1]
    for values in (np.ones(n), np.cos(np.arange(n))):
        result, expected = (f(*point, values) for f in functions)
        assert_within(result[0], expected[0], allowed(expected[0], tolerance))
        for x, exact, size in zip(result[1:], expected[1:], point, strict=True):
            bound = n * allowed(exact, tolerance, np.max(np.abs(size)))
            assert_within(x, exact, bound)


# Steps.


def as_infusions(times, values, t0, end):
    """Return what equals a forcing of state 0 by these steps: one infusion after the other."""
    edges = np.concatenate([[t0], times, [end]])
    durations = np.diff(edges)
    states = pt.zeros(len(durations), dtype="int64")
    return [pt.constant(edges[:-1]), values * durations, pt.constant(durations), states]


@each_method
@pytest.mark.parametrize("when", [[], [2.0], [1.0, 2.5, 4.0, 9.0]])
def test_forcing(method, when):
    """With steps before t0, at outputs and after the last of them."""
    when, ts = np.array(when), np.array([0.5, 1.0, 3.0, 4.0, 6.0])
    k, values = pt.dscalar("k"), vector("values", len(when) + 1)
    y = solve_ivp(
        lambda t, y, p: p["u"] - p["k"] * y,
        0.25,
        [1.5],
        ts,
        {"k": k, "u": Steps(when, values)},
        **options(method),
    )
    doses = as_infusions(when, values, 0.25, 20.0)
    closed = linear(-k.reshape((1, 1)), pt.constant([1.5]), 0.25, pt.constant(ts), doses)
    point = [0.6, np.array([2.0, -1.0, 30.0, 0.0, 4.0])[: len(when) + 1]]
    assert_same_derivatives(y, closed, [k, values], point)


def test_steps_before_t0_have_passed():
    y = solve_ivp(
        lambda t, y, u: u + 0.0 * y,
        2.0,
        [0.0],
        [3.0, 5.0],
        Steps([0.0, 1.0, 2.0, 4.0], [9.0, 8.0, 7.0, 1.0, 3.0]),
    )
    np.testing.assert_allclose(y.eval().ravel(), [1.0, 5.0], rtol=1e-10)


@each_method
def test_steps_of_vectors_and_several(method):
    """Values of any shape, and two stepped parameters with times of their own."""
    rates, gains = pt.dmatrix("rates", shape=(3, 2)), vector("gains", 2)

    def rhs(t, y, p):
        rate, gain = p
        return [rate[0] * gain - 0.3 * y[0], rate[1] - 0.7 * y[1]]

    ts = np.array([1.0, 2.0, 3.5, 5.0])
    y = solve_ivp(
        rhs,
        0.0,
        [1.0, 2.0],
        ts,
        (Steps([1.0, 3.0], rates), Steps([2.0], gains)),
        **options(method),
    )
    edges = [0.0, 1.0, 2.0, 3.0, 5.0]
    forcing = [
        [rates[0, 0] * gains[0], rates[1, 0] * gains[0], rates[1, 0] * gains[1]],
        [rates[0, 1], rates[1, 1], rates[1, 1]],
    ]
    forcing[0].append(rates[2, 0] * gains[1])
    forcing[1].append(rates[2, 1])
    durations = np.diff(edges)
    closed = []
    for u, k, start in zip(forcing, [0.3, 0.7], [1.0, 2.0], strict=True):
        doses = [
            pt.constant(edges[:-1]),
            pt.stack(u) * durations,
            pt.constant(durations),
            pt.zeros(4, dtype="int64"),
        ]
        matrix = pt.constant([[-k]])
        closed.append(linear(matrix, pt.constant([start]), 0.0, pt.constant(ts), doses)[:, 0])
    point = [np.array([[1.0, 2.0], [3.0, 0.5], [0.25, 4.0]]), np.array([1.5, 0.5])]
    assert_same_derivatives(y, pt.stack(closed, axis=1), [rates, gains], point)


def test_number_of_steps_changes_from_call_to_call():
    when, values = vector("when"), vector("values")
    y = solve_ivp(lambda t, y, u: u + 0.0 * y, 0.0, [0.0], [1.0, 3.0], Steps(when, values))
    f = pytensor.function([when, values], [y[:, 0], pt.grad(y.sum(), values)])
    for n in (0, 2, 1, 5, 0):
        times, height = np.arange(1.0, n + 1), np.arange(2.0, n + 3)
        states, gradient = f(times, height)
        held = np.diff(np.concatenate([[0.0], times[times < 3], [3.0]]))
        np.testing.assert_allclose(states[1], held @ height[: len(held)], rtol=1e-6)
        assert gradient.shape == (n + 1,)
        np.testing.assert_allclose(gradient[0], 1.0 + held[0], rtol=1e-6)


def test_a_constant_has_no_steps():
    """One value and no times is the value itself."""
    k = pt.dscalar("k")
    one = solve_ivp(lambda t, y, k: -k * y, 0.0, [1.0], [1.0, 2.0], Steps([], [k]))
    other = solve_ivp(lambda t, y, k: -k * y, 0.0, [1.0], [1.0, 2.0], k)
    for form in ([one, other], [pt.grad(one.sum(), k), pt.grad(other.sum(), k)]):
        np.testing.assert_allclose(*pytensor.function([k], form)(0.7), rtol=1e-6)


# Breaks.


def switched(t, y, p):
    return [pt.switch(t < 5.0, p[0], p[1]) - p[2] * y[0], pt.switch(t <= 2.5, -y[1], 3.0 * y[0])]


@each_method
def test_breaks(method):
    """Both sides of each break, with gradients; in whatever order the breaks are."""
    p, ts = vector("p", 3), np.array([1.0, 2.5, 4.0, 5.0, 5.5, 9.0])
    tolerance = 1e-9
    y = solve_ivp(switched, 0.0, [1.0, 2.0], ts, p, breaks=[5.0, 2.5], **options(method, tolerance))
    edges, k = np.array([0.0, 5.0]), p[2]
    durations = np.array([5.0, 15.0])
    doses = [
        pt.constant(edges),
        p[:2] * durations,
        pt.constant(durations),
        pt.zeros(2, dtype="int64"),
    ]
    first = linear(-k.reshape((1, 1)), pt.constant([1.0]), 0.0, pt.constant(ts), doses)[:, 0]

    def integral(a, b):
        """Of the first state, from its equation: k times it is p - y'."""
        level = p[0] * (min(b, 5.0) - min(a, 5.0)) + p[1] * (max(b, 5.0) - max(a, 5.0))
        ends = linear(-k.reshape((1, 1)), pt.constant([1.0]), 0.0, pt.constant([a, b]), doses)
        return (level - ends[1, 0] + ends[0, 0]) / k

    second = [2 * np.exp(-min(t, 2.5)) + (3 * integral(2.5, t) if t > 2.5 else 0.0) for t in ts]
    closed = pt.stack([first, pt.stack(second)], axis=1)
    point = [np.array([2.0, -1.0, 0.4])]
    # What is near 1e-8 at these tolerances would be near 1e-4 were a break stepped over.
    assert_same_derivatives(y, closed, [p], point, tolerance)


def test_breaks_are_not_stepped_over():
    """A pulse that is short against the steps around it."""
    ts = [10.0, 100.0]
    y = solve_ivp(
        lambda t, y, a: a * pt.switch((t > 50.0) & (t < 50.001), 1000.0, 0.0) - 1e-3 * y,
        0.0,
        [0.0],
        ts,
        1.0,
        breaks=[50.0, 50.001],
        **options(),
    )
    np.testing.assert_allclose(y.eval().ravel(), [0.0, np.exp(-0.05)], atol=1e-6)


@pytest.mark.parametrize("less", [False, True])
def test_which_side_has_the_break_itself_is_of_no_account(less):
    def rhs(t, y):
        return pt.switch(t < 1.0 if less else t <= 1.0, 1.0, -1.0) * y

    y = solve_ivp(rhs, 0.0, [1.0], [0.5, 1.0, 2.0], breaks=[1.0], **options("tsit5", 1e-10))
    np.testing.assert_allclose(y.eval().ravel(), np.exp([0.5, 1.0, 0.0]), rtol=1e-9)


@each_method
def test_the_break_itself_is_never_looked_at(method):
    """Of either side, only the inside is: the right-hand side may have no value there at all."""
    ts = vector("ts")
    y = solve_ivp(
        lambda t, y: pt.switch(pt.eq(t, 1.0), np.nan, 0.5) * y,
        0.0,
        [1.0],
        ts,
        breaks=[1.0],
        **options(method),
    )
    states, slopes = compiled([ts], [y[:, 0], pt.grad(y.sum(), ts)])([0.5, 1.0, 2.0])
    np.testing.assert_allclose(states, np.exp([0.25, 0.5, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(slopes, states / 2)


def test_breaks_outside_of_the_times_are_ignored():
    solutions = [
        solve_ivp(lambda t, y: -y, 0.0, [1.0], [1.0, 2.0], breaks=breaks).eval()
        for breaks in (None, [-1.0, 0.0, 7.0])
    ]
    assert_same_bits(*solutions)


# What times may be.


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("doses.times", lambda x: {"doses": Doses(x[None], 1.0)}),
        ("doses.durations", lambda x: {"doses": Doses([1.0], 1.0, durations=x[None])}),
        ("breaks", lambda x: {"breaks": x[None] + 1.0}),
        ("params.times", lambda x: {"params": Steps(2 * x[None], [1.0, 2.0])}),
    ],
)
def test_random_times_are_refused(what, make):
    with pm.Model():
        drawn = pm.Normal("lag")
    arguments = {"params": 1.0, **make(drawn)}
    with pytest.raises(InputError, match=f"{what} depends on the random variable lag") as error:
        solve_ivp(lambda t, y, p: -p * y, 0.0, [1.0], [1.0], **arguments)
    assert "must be data" in str(error.value)


def test_random_amounts_are_welcome():
    with pm.Model():
        drawn = pm.Normal("amount", 3.0, 1e-9)
    y = solve_ivp(lambda t, y: -y, 0.0, [1.0], [1.0], doses=Doses([0.0], drawn))
    np.testing.assert_allclose(pm.draw(y), [[4.0 * np.exp(-1.0)]], rtol=1e-5)


@pytest.mark.parametrize("method", ["tsit5", "scipy-LSODA"])
def test_no_gradient_by_times(method):
    times, durations, breaks, when = (vector(name) for name in ("a", "b", "c", "d"))
    y = solve_ivp(
        lambda t, y, u: u - y,
        0.0,
        [1.0],
        [1.0],
        Steps(when, [1.0, 2.0]),
        doses=Doses(times, 1.0, durations=durations),
        breaks=breaks,
        method=method,
    )
    for variable in (times, durations, breaks, when):
        with pytest.raises(NullTypeGradError, match="not differentiable with respect to the times"):
            pt.grad(y.sum(), variable)


def refusing(method):
    """Return a function whose times are all inputs."""
    t0, ts = pt.dscalar("t0"), vector("ts")
    doses = [vector("times"), vector("amounts"), vector("durations"), pt.lvector("states")]
    when, values, breaks = vector("when"), vector("values"), vector("breaks")
    y = solve_ivp(
        lambda t, y, u: [u - y[0], y[0]],
        t0,
        [1.0, 2.0],
        ts,
        Steps(when, values),
        doses=Doses(doses[0], doses[1], doses[3], doses[2]),
        breaks=breaks,
        method=method,
    )
    f = pytensor.function([t0, ts, *doses, when, values, breaks], y)
    names = ["t0", "ts", "times", "amounts", "durations", "states", "when", "values", "breaks"]
    good = {
        "t0": 1.0,
        "ts": [2.0, 3.0],
        "times": [2.0, 1.0],
        "amounts": [1.0, 1.0],
        "durations": [0.0, 1.0],
        "states": [0, 1],
        "when": [2.0],
        "values": [1.0, 2.0],
        "breaks": [1.5],
    }
    return lambda **given: f(*({**good, **given}[name] for name in names))


WRONG = [
    (1, {"ts": [3.0, 2.0]}),
    (1, {"ts": [0.5, 2.0]}),
    (1, {"ts": [2.0, np.nan]}),
    (1, {"ts": [np.nan, 2.0]}),
    (1, {"ts": [2.0, np.inf]}),
    (2, {"t0": np.nan}),
    (2, {"t0": -np.inf}),
    (3, {"amounts": [1.0]}),
    (3, {"durations": [1.0, 1.0, 1.0]}),
    (3, {"states": [0]}),
    (3, {"times": []}),
    (4, {"times": [0.5, 2.0]}),
    (4, {"times": [np.nan, 2.0]}),
    (4, {"times": [2.0, np.inf]}),
    (5, {"durations": [0.0, -1.0]}),
    (5, {"durations": [0.0, np.nan]}),
    (5, {"durations": [np.inf, 0.0]}),
    (6, {"states": [0, 2]}),
    (6, {"states": [-1, 0]}),
    (7, {"values": [1.0]}),
    (7, {"when": [2.0, 1.0], "values": [1.0, 2.0, 3.0]}),
    (7, {"when": [2.0, 2.0], "values": [1.0, 2.0, 3.0]}),
    (7, {"when": [np.nan]}),
    (8, {"breaks": [np.nan]}),
    (8, {"breaks": [1.5, np.inf]}),
]


@pytest.mark.parametrize(
    ("mode", "method"),
    [("FAST_COMPILE", "tsit5"), ("FAST_COMPILE", "scipy-LSODA"), ("NUMBA", "tsit5")],
    indirect=["mode"],
)
def test_times_that_make_no_sense(mode, method):
    f = refusing(method)
    before = f()
    for number, wrong in WRONG:
        with pytest.raises(ValueError, match=PROBLEMS[number]):
            f(**wrong)
    assert_same_bits(f(), before)
    assert {number for number, _ in WRONG} == set(range(1, len(PROBLEMS))) - {SIZES}


@pytest.mark.parametrize("method", ["tsit5", "scipy-LSODA"])
def test_sizes_that_the_graph_does_not_have(method):
    """PyTensor sees to them; who calls the Op by hand is refused."""
    k = vector("k", 2)
    op = node_of(solve_ivp(lambda t, y, k: -k * y, 0.0, [1.0, 2.0], [1.0], k, method=method)).op
    good = [np.array(0.0), np.ones(2), np.ones(1), np.empty(0), np.ones(2)]
    (expected,) = evaluate(op.solve, good)
    for position in (1, 3, 4):
        wrong = [*good[:position], np.ones(3), *good[position + 1 :]]
        with pytest.raises(ValueError, match=PROBLEMS[SIZES]):
            evaluate(op.solve, wrong)
    assert_same_bits(evaluate(op.solve, good)[0], expected)


@in_modes("FAST_COMPILE", "NUMBA")
def test_no_times_at_all(mode):
    ts, k = vector("ts"), pt.dscalar("k")
    y = solve_ivp(lambda t, y, k: -k * y, 0.0, [1.0, 2.0], ts, k, doses=Doses([1.0], 1.0))
    states, gradient = pytensor.function([ts, k], [y, pt.grad(y.sum(), k)])([], 0.5)
    assert states.shape == (0, 2)
    assert gradient == 0.0


@each_method
@pytest.mark.parametrize("t0", [0.0, 1.0])
@pytest.mark.parametrize("gap", [1e-200, 1e-30, 1e-16, 1e-14, 1e-10])
def test_times_that_are_nearly_one(method, t0, gap):
    """Closer than a step can be: the state has not moved."""
    ts = t0 + np.array([gap, 2 * gap, 1.0, 1.0 + gap])
    result = solve_ivp(lambda t, y: -y, t0, [1.0], ts, **options(method)).eval()
    np.testing.assert_allclose(result[:, 0], np.exp(t0 - ts), rtol=1e-6)
