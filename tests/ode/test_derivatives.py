"""Derivatives as PyTensor sees them, and what is solved for them: in every backend, in batches."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import DisconnectedInputError, NullTypeGradError, pushforward, verify_grad
from pytensor.graph.replace import vectorize_graph

from pymc_mpimap import Doses, Steps, solve_ivp
from pymc_mpimap.ode.system import LEAVES, T0, TS, Y0
from tests import COMPILER
from tests.helpers import assert_same_bits, in_modes
from tests.ode.helpers import (
    POINT,
    TIMES,
    compiled,
    node_of,
    solution,
    solve_nodes,
    solves,
    the_inputs,
    vector,
    with_derivatives,
)

# Each compiles a problem of its own: a second or two, the first time.
pytestmark = pytest.mark.slow

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def forced(t, y, p):
    return [p["u"] - p["k"] * y[0] * y[1], p["k"] * y[0] - y[1] ** 2]


# Derivatives.


@pytest.mark.parametrize("method", ["dopri5", "bdf", "auto", "scipy-DOP853"])
def test_verify_grad(method):
    def f(t0, y0, ts, growth, rates):
        values = (t0, y0, ts, growth, rates)
        return solution(dict(zip(POINT, values, strict=True)), method=method, **EXACT)

    verify_grad(f, list(POINT.values()), rng=np.random.default_rng(1), abs_tol=1e-5, rel_tol=1e-5)


@pytest.mark.parametrize("method", ["tsit5", "bdf", "scipy-DOP853"])
def test_verify_grad_by_amounts_and_steps(method):
    def f(k, amounts, values):
        return solve_ivp(
            forced,
            0.0,
            [0.5, 1.0],
            TIMES,
            {"k": k, "u": Steps([0.75, 1.5], values)},
            doses=Doses([0.0, 0.6, 1.1], amounts, durations=[0.0, 0.8, 0.3], states=[0, 1, 0]),
            method=method,
            **EXACT,
        )

    point = [np.array(0.7), np.array([1.0, 0.5, 2.0]), np.array([0.3, 2.0, 0.1])]
    verify_grad(f, point, rng=np.random.default_rng(1), abs_tol=1e-5, rel_tol=1e-5)


def test_derivatives_by_what_the_function_closes_over():
    inner = pt.dscalar("inner")

    def f(k):
        y = solve_ivp(lambda t, y: -k * inner * y, 0.0, [1.0], TIMES, **EXACT)
        return pytensor.graph.replace.graph_replace(y, {inner: k + 1.0})

    verify_grad(f, [np.array(0.4)], rng=np.random.default_rng(1), abs_tol=1e-5, rel_tol=1e-5)


def test_pushforward_agrees_with_pullback():
    inputs = the_inputs()
    y = solution(inputs)
    rng = np.random.default_rng(2)
    tangents = {name: rng.normal(size=np.shape(value)) for name, value in POINT.items()}
    weights = rng.normal(size=(len(TIMES), 2))
    forward = pushforward(y, list(inputs.values()), [pt.constant(t) for t in tangents.values()])
    gradients = pt.grad((weights * y).sum(), list(inputs.values()))
    f = pytensor.function(list(inputs.values()), [forward, *gradients])
    forward, *gradients = f(*POINT.values())
    backward = sum(np.sum(g * t) for g, t in zip(gradients, tangents.values(), strict=True))
    np.testing.assert_allclose(np.sum(weights * forward), backward, rtol=1e-12)


def test_second_derivatives_are_refused():
    inputs = the_inputs()
    y = solution(inputs)
    gradient = pt.grad(y.sum(), inputs["growth"])
    with pytest.raises(NullTypeGradError, match=r"second derivatives of solve_ivp\(predators"):
        pt.grad(gradient, inputs["growth"])
    with pytest.raises(NullTypeGradError, match="second derivatives"):
        pt.grad(gradient, inputs["y0"])


def test_integer_inputs_are_disconnected():
    states = pt.lvector("states")
    y = solve_ivp(lambda t, y: -y, 0.0, [1.0], TIMES, doses=Doses([0.5], 1.0, states=states))
    with pytest.raises((DisconnectedInputError, NullTypeGradError)):
        pt.grad(y.sum(), states)


# Rewrites.


def sensitivities(f):
    """Return the sensitivities of the one solve that a function has."""
    (node,) = solve_nodes(f)
    return node.op.wrt


@in_modes("FAST_COMPILE", "NUMBA")
def test_value_and_gradient_are_one_solve(mode):
    inputs = the_inputs()
    y = solution(inputs)
    value = (y**2).sum()
    f = pytensor.function(list(inputs.values()), [value, *pt.grad(value, list(inputs.values()))])
    assert sensitivities(f) == (T0, Y0, TS, LEAVES, LEAVES + 1)
    assert solves(lambda: f(*POINT.values())) == 1


def test_value_alone_has_no_sensitivities():
    inputs = the_inputs()
    f = pytensor.function(list(inputs.values()), solution(inputs).sum())
    assert sensitivities(f) == ()
    assert solves(lambda: f(*POINT.values())) == 1


def test_only_the_sensitivities_in_use_are_computed():
    inputs = the_inputs()
    y = solution(inputs)
    total, everything = y.sum(), list(inputs.values())

    def wrt(*names):
        outputs = [total, *pt.grad(total, [inputs[name] for name in names])]
        return sensitivities(compiled(everything, outputs))

    assert wrt("growth", "rates") == (LEAVES, LEAVES + 1)
    assert wrt("rates") == (LEAVES + 1,)
    assert wrt("y0") == (Y0,)
    assert wrt("ts") == (TS,)
    # Of a gradient by all, only one is taken.
    assert sensitivities(compiled(everything, pt.grad(total, everything)[3])) == (LEAVES,)
    forward = pushforward(y, [inputs["y0"]], [pt.ones(2)])
    assert sensitivities(compiled(everything, [y, forward])) == (Y0,)


def test_separate_gradients_are_one_solve():
    inputs = the_inputs()
    y = solution(inputs)
    one, other = pt.grad(y.sum(), inputs["y0"]), pt.grad((y**2).sum(), inputs["growth"])
    f = compiled(inputs.values(), [one, other, y])
    assert sensitivities(f) == (Y0, LEAVES)
    again = compiled(inputs.values(), [one, solution(inputs)])
    assert sensitivities(again) == (Y0,)


def test_other_inputs_or_tolerances_are_other_solves():
    inputs = the_inputs()
    outputs = [solution(inputs), solution({**inputs, "y0": 2 * inputs["y0"]})]
    outputs.append(solution(inputs, rtol=1e-8))
    assert len(solve_nodes(compiled(inputs.values(), outputs))) == 3


def test_merging_keeps_the_bits():
    """Sensitivities that are not wanted would change steps: each function solves for its own."""
    inputs = the_inputs()
    y = solution(inputs)
    direct = with_derivatives(y, (Y0, LEAVES))
    merged = [y, with_derivatives(y, (Y0,))[1], with_derivatives(y, (LEAVES,))[1]]
    results = [compiled(inputs.values(), outputs)(*POINT.values()) for outputs in (direct, merged)]
    assert_same_bits(*results)


# Backends and batches.


@pytest.mark.parametrize("method", ["tsit5", "bdf"])
def test_backends_agree_to_the_bit(method):
    inputs, amounts = the_inputs(), vector("amounts")
    y = solution(inputs, method=method, doses=Doses([0.5, 0.75], amounts))
    outputs = with_derivatives(y, (T0, Y0, TS, LEAVES, LEAVES + 1, node_of(y).op.system.amounts))
    results = {}
    for mode in ("FAST_COMPILE", "FAST_RUN", "CVM", "NUMBA"):
        compiler = {"cxx": COMPILER} if mode == "CVM" else {}
        with pytensor.config.change_flags(mode=mode, **compiler):
            results[mode] = compiled([*inputs.values(), amounts], outputs)(
                *POINT.values(), np.array([1.0, 2.0])
            )
    for mode in ("FAST_RUN", "CVM", "NUMBA"):
        assert_same_bits(results[mode], results["FAST_COMPILE"])


def test_jax_calls_the_same_solver():
    inputs = the_inputs()
    outputs = with_derivatives(solution(inputs, method="tsit5"), (T0, Y0, TS, LEAVES, LEAVES + 1))
    expected = compiled([*inputs.values()], outputs)(*POINT.values())
    with pytensor.config.change_flags(mode="JAX"):
        results = compiled([*inputs.values()], outputs)(*POINT.values())
    for result, other in zip(results, expected, strict=True):
        assert_same_bits(np.asarray(result), other)


@pytest.mark.parametrize(
    ("mode", "method"),
    [("FAST_COMPILE", "tsit5"), ("FAST_COMPILE", "bdf"), ("NUMBA", "auto")],
    indirect=["mode"],
)
def test_a_batch_is_a_loop(method, mode):
    inputs = the_inputs()
    y = solution(inputs, method=method)
    outputs = [y, *pt.grad((y**2).sum(), [inputs["growth"], inputs["rates"], inputs["y0"]])]
    growths, rates = vector("growths", 5), pt.dmatrix("rates", shape=(5, 2))
    replace = {inputs["growth"]: growths, inputs["rates"]: rates}
    others = [inputs[name] for name in ("t0", "y0", "ts")]
    batch = pytensor.function([*others, growths, rates], vectorize_graph(outputs, replace))
    alone = pytensor.function(list(inputs.values()), outputs)
    rng = np.random.default_rng(3)
    rows = rng.uniform(0.3, 1.5, size=5), rng.uniform(0.3, 1.5, size=(5, 2))
    point = [POINT[name] for name in ("t0", "y0", "ts")]
    results = []
    assert solves(lambda: results.extend(batch(*point, *rows))) == 5
    each = [alone(*point, *row) for row in zip(*rows, strict=True)]
    expected = [np.stack(part) for part in zip(*each, strict=True)]
    # The contraction with the cotangent may be summed in another order.
    assert_same_bits(results[0], expected[0])
    for one, other in zip(results[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)


def test_number_of_times_changes_from_call_to_call():
    inputs = the_inputs()
    y = solution(inputs, method="tsit5")
    f = pytensor.function(list(inputs.values()), [y, pt.grad(y.sum(), inputs["growth"])])
    results = {n: f(**{**POINT, "ts": TIMES[:n]}) for n in (3, 0, 1, 2)}
    for n, (states, gradient) in results.items():
        assert states.shape == (n, 2)
        assert np.isfinite(gradient)
    assert_same_bits(f(**POINT), results[3])
