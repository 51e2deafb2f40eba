"""Right-hand sides whose derivative is infinite, or no number, where a state is 0."""

import re

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from pymc_mpimap import Doses, SerialPool, Steps, solve_ivp
from pymc_mpimap.tally import NOT_FINITE_DERIVATIVE
from tests.ode.helpers import failures, vector

# Each compiles a few problems: some seconds, the first time.
pytestmark = pytest.mark.slow

METHODS = [
    "dopri5",
    "tsit5",
    "bdf",
    "auto",
    "scipy-RK45",
    "scipy-LSODA",
    "scipy-BDF",
    "scipy-Radau",
]
FEW = ["tsit5", "bdf", "scipy-LSODA"]
each_method = pytest.mark.parametrize("method", METHODS)
few_methods = pytest.mark.parametrize("method", FEW)
TS = np.array([0.3, 1.0, 2.5])

# Ways to write x**h. At x = 0 some of their derivatives are infinite, others are 0 * inf.
POWERS = {
    "power": lambda x, h: x**h,
    "exponential": lambda x, h: np.exp(h * np.log(x)),
    "reciprocal": lambda x, h: 1 / (1 / x) ** h,
    "maximum": lambda x, h: np.maximum(x, 0.0) ** h,
    "clip": lambda x, h: np.clip(x, 0.0, 100.0) ** h,
    "where": lambda x, h: np.where(x > 0, x**h, 0.0),
    "choice within a choice": lambda x, h: np.where(x < 0, 0.0, np.maximum(x, 0.0) ** h),
    "absolute value": lambda x, h: np.abs(x) ** h,
}
CASES = [(way, "tsit5") for way in POWERS]
CASES += [(way, method) for way in ("power", "exponential") for method in METHODS]


def exact(rate, h, since):
    """Return the integral of ``(rate s)**h`` up to a time, by the rate and by h."""
    since = np.maximum(since, 1e-300)
    z = rate**h * since ** (h + 1) / (h + 1)
    return z, h * z / rate, z * (np.log(rate * since) - 1 / (h + 1))


def derivatives(y, inputs):
    """Return the last state, and its derivatives at each time."""
    last = y[:, -1]
    each = [pt.stack([pt.grad(last[k], v) for k in range(len(TS))]) for v in inputs]
    return pytensor.function(inputs, [last, *each])


@pytest.mark.parametrize(("way", "method"), dict.fromkeys(CASES))
@pytest.mark.parametrize("at", [0.8, 0.5])
def test_a_power_of_a_state_that_starts_at_0(way, method, at):
    """It grows at a rate, and its power is summed: value and derivatives are known."""
    rate, h = pt.dscalar("rate"), pt.dscalar("h")

    def growing(t, y, p):
        x, _ = y
        return [p["rate"], POWERS[way](x, p["h"])]

    params = {"rate": rate, "h": h}
    y = solve_ivp(growing, 0.0, [0.0, 0.0], TS, params, method=method, rtol=1e-8, atol=1e-8)
    results = derivatives(y, [rate, h])(1.5, at)
    for result, expected in zip(results, exact(1.5, at, TS), strict=True):
        np.testing.assert_allclose(result, expected, rtol=3e-6, atol=3e-6)


@each_method
def test_a_state_that_waits_for_its_dose(method):
    """Before it, the state and its sensitivities stay exactly 0."""
    amount, h = pt.dscalar("amount"), pt.dscalar("h")

    def waiting(t, y, h):
        x, _ = y
        return [0.0 * x, x**h]

    options = {"method": method, "rtol": 1e-8, "atol": 1e-8}
    given = {"bolus": 0.0, "infusion": 4.0}
    for kind, duration in given.items():
        doses = Doses([0.5], amount, 0, [duration])
        y = solve_ivp(waiting, 0.0, [0.0, 0.0], TS, h, doses=doses, **options)
        value, by_amount, by_h = derivatives(y, [amount, h])(2.0, 0.8)
        since = np.maximum(TS - 0.5, 0.0)
        if kind == "bolus":
            wanted = 2**0.8 * since, 0.8 * 2**-0.2 * since, np.log(2) * 2**0.8 * since
        else:
            z, by_rate, by_h_wanted = exact(0.5, 0.8, since)
            wanted = z, by_rate / 4, by_h_wanted
        for result, expected in zip((value, by_amount, by_h), wanted, strict=True):
            np.testing.assert_allclose(result, expected, rtol=3e-6, atol=3e-6)


@few_methods
def test_steps_have_columns_that_come_and_go(method):
    rates, h = vector("rates", 2), pt.dscalar("h")

    def growing(t, y, p):
        x, _ = y
        return [p["rate"], np.exp(p["h"] * np.log(x))]

    params = {"rate": Steps([0.5], rates), "h": h}
    y = solve_ivp(growing, 0.0, [0.0, 0.0], TS, params, method=method, rtol=1e-8, atol=1e-8)
    f = pytensor.function([rates, h], [y[:, 1], *pt.grad(y[1, 1], [rates, h])])
    value, by_rates, by_h = f([0.0, 1.5], 0.8)
    wanted = exact(1.5, 0.8, np.maximum(TS - 0.5, 0.0))
    np.testing.assert_allclose(value, wanted[0], rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(by_rates[1], wanted[1][1], rtol=3e-6)
    np.testing.assert_allclose(by_h, wanted[2][1], rtol=3e-6)


@each_method
def test_a_state_that_slows_itself_down(method):
    """Its own sensitivity meets the infinite derivative at the first time alone."""
    p, k = pt.dscalar("p"), pt.dscalar("k")

    def turnover(t, y, r):
        (response,) = y
        return [r[0] - r[1] * response**0.8]

    y = solve_ivp(turnover, 0.0, [0.0], TS, (p, k), method=method, rtol=1e-9, atol=1e-9)
    results = derivatives(y, [p, k])(1.0, 0.5)

    def slope(v):
        return 1.0 - 0.5 * v**0.8

    # The time is the integral of 1 / slope up to the state.
    precise = {"epsabs": 1e-13, "epsrel": 1e-13}
    for k, t in enumerate(TS):
        end = brentq(lambda x, t=t: quad(lambda v: 1 / slope(v), 0, x, **precise)[0] - t, 0, 2.3)
        by_p = slope(end) * quad(lambda v: slope(v) ** -2, 0, end, **precise)[0]
        by_k = -slope(end) * quad(lambda v: v**0.8 * slope(v) ** -2, 0, end, **precise)[0]
        made = [result[k] for result in results]
        np.testing.assert_allclose(made, [end, by_p, by_k], rtol=2e-6)


@few_methods
def test_a_guard_against_negative_states_has_a_derivative(method):
    """It runs empty, and rounding takes it below 0, where only the guard keeps it from NaN."""
    k = pt.dscalar("k")

    def emptying(t, y, k):
        return -k * np.maximum(y, 0.0) ** 0.8

    y = solve_ivp(emptying, 0.0, [1.0], [1.0, 20.0], k, method=method)
    value, by_first, by_last = pytensor.function(
        [k], [y[:, 0], pt.grad(y[0, 0], k), pt.grad(y[1, 0], k)]
    )(2.0)
    np.testing.assert_allclose(value, [0.6**5, 0.0], atol=1e-5)
    np.testing.assert_allclose(by_first, -(0.6**4), atol=1e-5)
    np.testing.assert_allclose(by_last, 0.0, atol=1e-5)


def test_a_derivative_that_is_chosen_is_that_of_the_choice():
    """At a negative state the branch that was not taken is NaN, and so is its derivative."""
    a, b = pt.dscalar("a"), pt.dscalar("b")

    def chosen(t, y, p):
        x, z = y
        root = np.where(x > 0, np.sqrt(x), p["a"] * x)
        return [0.0 * x, np.minimum(root * p["b"], 5.0) + np.clip(np.log(z), -1.0, 1.0) * 0.0]

    y = solve_ivp(chosen, 0.0, [-2.0, 1.0], TS, {"a": a, "b": b}, method="tsit5")
    value, by_a, by_b = derivatives(y, [a, b])(0.3, 0.5)
    np.testing.assert_allclose(value, 1.0 - 0.3 * TS)
    np.testing.assert_allclose(by_a, -1.0 * TS)
    np.testing.assert_allclose(by_b, -0.6 * TS)


@pytest.mark.parametrize("method", ["bdf", "auto", "scipy-BDF"])
def test_without_derivatives_too_a_state_may_stay_at_0(method):
    """BDF needs the Jacobian for itself, and it has an infinite entry at all times."""
    k = pt.dscalar("k")

    def independent(t, y, k):
        gut, central = y
        return [-k * gut**0.8, -k * 300 * central]

    y = solve_ivp(independent, 0.0, [0.0, 1.0], [0.01, 2.0], k, method=method)
    value = pytensor.function([k], y)(1.0)
    np.testing.assert_allclose(value[:, 0], 0.0, atol=0)
    np.testing.assert_allclose(value[:, 1], [np.exp(-3.0), 0.0], atol=1e-5)


@each_method
def test_a_derivative_that_is_infinite_is_told(method, capfd):
    """By a vector of initial states, all of them count, and one of them is 0."""
    y0, h = vector("y0", 2), pt.dscalar("h")

    def named(t, y, h):
        gut, response = y
        return [1.0 - gut, gut**h - response]

    y = solve_ivp(named, 2.0, y0, 2.0 + TS, h, method=method)
    f = pytensor.function([y0, h], [y, pt.grad(y.sum(), y0)])
    assert all(np.isfinite(part).all() for part in f([0.1, 1.0], 0.8))
    results = []
    with SerialPool() as pool:
        assert failures(lambda: results.extend(f([0.0, 1.0], 0.8))) == {NOT_FINITE_DERIVATIVE: 1}
    assert all(np.isnan(part).all() for part in results)
    expected = (
        "the derivative of the right-hand side is not finite where state gut is 0 "
        "(named, near t = 2)"
    )
    assert pool.report().failed_solves == {expected: 1}
    assert np.isfinite(pytensor.function([y0, h], y)([0.0, 1.0], 0.8)).all()
    assert capfd.readouterr() == ("", "")


@few_methods
def test_initial_states_that_are_constants_have_no_derivative(method):
    """A list's constant of 0 would have an infinite one, which nobody has asked for."""
    dose, h = pt.dscalar("dose"), pt.dscalar("h")

    def absorbed(t, y, h):
        gut, central, _ = y
        return [-gut, gut, central**h]

    y = solve_ivp(absorbed, 0.0, [dose, 0.0, 0], TS, h, method=method, rtol=1e-8, atol=1e-8)
    value, by_dose, by_h = derivatives(y, [dose, h])(2.0, 0.8)
    for k, end in enumerate(TS):
        unit = quad(lambda s: (1 - np.exp(-s)) ** 0.8, 0, end, epsabs=1e-12)[0]
        by_power = quad(
            lambda s: (2 * (1 - np.exp(-s))) ** 0.8 * np.log(2 * (1 - np.exp(-s)) + 1e-300), 0, end
        )[0]
        made = value[k], by_dose[k], by_h[k]
        expected = 2**0.8 * unit, 0.8 * 2**-0.2 * unit, by_power
        np.testing.assert_allclose(made, expected, rtol=3e-6, atol=3e-6)


@each_method
def test_a_negative_state_is_told_with_its_time(method, capfd):
    """It would be 0 from t = 2.5 on; the power of what rounding makes of it is NaN."""
    k = pt.dscalar("k")

    def emptying(t, y, k):
        (gut,) = y
        return [-k * gut**0.8]

    y = solve_ivp(emptying, 0.0, [1.0], [1.0, 20.0], k, method=method)
    f = pytensor.function([k], y)
    with SerialPool() as pool:
        assert np.isnan(f(2.0)).all()
    [(reason, times)] = pool.report().failed_solves.items()
    assert times == 1
    pattern = (
        r"the right-hand side was not finite where state gut is (\S+) \(emptying, near t = (\S+)\)"
    )
    value, time = map(float, re.fullmatch(pattern, reason).groups())
    assert -1e-3 < value < 0
    assert 1.5 < time < 3.0
    assert capfd.readouterr() == ("", "")
