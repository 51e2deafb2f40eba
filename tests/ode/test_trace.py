"""Right-hand sides traced into scalars: the same function on floats is the reference."""

import math

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import scipy.special
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.traversal import ancestors

from pymc_mpimap.errors import InputError
from pymc_mpimap.ode.scalarize import as_elements, scalarize
from pymc_mpimap.ode.trace import trace_system
from pymc_mpimap.structure import NOTHING, flatten
from tests.ode.right_hand_sides import CONSTANT, FUNCTIONS, PARAMS, T, Y, evaluated, trace

ELEMENTWISE = """
    exp expm1 exp2 log log1p log2 log10 sqrt sin cos tan arctan sinh cosh tanh arcsinh sign floor
    ceil trunc abs fabs square reciprocal negative cbrt deg2rad isnan
"""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_numpy_function_means_the_same_traced(name):
    f = FUNCTIONS[name]
    expected = np.asarray(f(T, Y.copy(), PARAMS), float)
    np.testing.assert_allclose(evaluated(trace(f)), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ELEMENTWISE.split())
@pytest.mark.parametrize("of", ["vector", "scalars"])
def test_an_elementwise_function_means_the_same_traced(name, of):
    f = getattr(np, name)
    rhs = {"vector": lambda t, y, p: f(y), "scalars": lambda t, y, p: [f(x) for x in y]}[of]
    np.testing.assert_allclose(evaluated(trace(rhs)), f(Y), rtol=1e-13)


def pt_assign(t, y, p):
    dy = pt.zeros(3)
    dy = pt.set_subtensor(dy[0], y[1])
    dy = pt.inc_subtensor(dy[[1, 1]], y[0])
    return dy[2].set(p["k"])


A = pt.dvector(shape=(3,))
SQUARES = OpFromGraph([A], [A**2])
PYTENSOR = {
    "exp": (lambda t, y, p: pt.exp(y), np.exp(Y)),
    "left": (lambda t, y, p: pt.exp(y) * y + pt.sum(y), np.exp(Y) * Y + Y.sum()),
    "right": (lambda t, y, p: y * pt.exp(y) - y @ pt.eye(3), Y * np.exp(Y) - Y),
    "stack": (lambda t, y, p: pt.stack([y[0], 1.0, p["k"]]), [0.3, 1.0, 0.4]),
    "dot": (lambda t, y, p: pt.dot(p["K"], y), PARAMS["K"] @ Y),
    "switch": (lambda t, y, p: pt.switch(t > 0.5, y, p["v"]), Y),
    "where of y": (lambda t, y, p: pt.where(pt.gt(y, 1), y, 0), np.where(Y > 1, Y, 0)),
    "sigmoid": (lambda t, y, p: pt.sigmoid(y), scipy.special.expit(Y)),
    "erf": (lambda t, y, p: [pt.erf(y[0]), pt.gammaln(y[1]), 0], None),
    "subtensors": (pt_assign, [1.2, 0.6, 0.4]),
    "set": (lambda t, y, p: pt.set_subtensor(y[0], 5.0), [5.0, 1.2, 2.1]),
    "concatenate": (lambda t, y, p: pt.concatenate([y[1:], pt.stack([p["k"]])]), [1.2, 2.1, 0.4]),
    "split": (lambda t, y, p: pt.join(0, *pt.split(y, [1, 2])[::-1]), Y[[1, 2, 0]]),
    "softmax": (lambda t, y, p: pt.special.softmax(y), scipy.special.softmax(Y)),
    "logsumexp": (lambda t, y, p: y - pt.logsumexp(y), Y - scipy.special.logsumexp(Y)),
    "diag": (lambda t, y, p: pt.diag(y) @ y, Y**2),
    "alloc": (lambda t, y, p: pt.full((3,), y[1]) + pt.ones((3,)), np.full(3, 2.2)),
    "batched": (
        lambda t, y, p: (p["K"][None] @ pt.stack([CONSTANT, CONSTANT]))[1] @ y,
        PARAMS["K"] @ CONSTANT @ Y,
    ),
    "arange": (lambda t, y, p: y * pt.arange(3), Y * np.arange(3)),
    "specified": (lambda t, y, p: pt.specify_shape(y * 2, (3,)), Y * 2),
    "integer": (lambda t, y, p: [pt.constant(1), 2, y[0] > 0], [1, 2, 1]),
    "checked": (lambda t, y, p: pytensor.raise_op.Assert("")(y * 2, True), Y * 2),
    "inner graph": (lambda t, y, p: SQUARES(pt.as_tensor(y)), Y**2),
    "order": (lambda t, y, p: pt.sub(1, y) / pt.true_div(y, p["v"]), (1 - Y) / Y * PARAMS["v"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PYTENSOR)
def test_a_pytensor_function_is_traced(name):
    rhs, expected = PYTENSOR[name]
    if expected is None:
        expected = [math.erf(Y[0]), math.lgamma(Y[1]), 0]
    np.testing.assert_allclose(evaluated(trace(rhs)), expected, rtol=1e-13)


@pytest.mark.parametrize(
    "returned", [lambda y: y[0], lambda y: y, lambda y: [y[0]]], ids=["scalar", "vector", "list"]
)
def test_one_state_and_no_parameters(returned):
    system = trace_system(lambda t, y: returned(y), 1, [], NOTHING, "f")
    assert system.leaves == ()
    np.testing.assert_allclose(evaluated(system, Y[:1], None), Y[:1])


def test_the_system_is_made_of_float64_scalars():
    leaves, structure = flatten({"n": pt.iscalar().type, "v": pt.fvector(shape=(2,)).type}, "p")
    f = lambda t, y, p: [p["n"] // 2, y[0] > p["v"][1]]  # noqa: E731
    system = trace_system(f, 2, leaves, structure, "f")
    assert [v.name for leaf in system.leaves for v in leaf] == ["p['n']", "p['v'][0]", "p['v'][1]"]
    assert [v.name for v in system.states] == ["y[0]", "y[1]"]
    for v in (system.t, *system.states, *system.leaves[1], *system.derivatives):
        assert (v.type.dtype, v.type.ndim) == ("float64", 0)
    scalars = {system.t, *system.states, *system.leaves[0], *system.leaves[1]}
    inputs = {
        v for v in ancestors(system.derivatives) if v.owner is None and not hasattr(v, "data")
    }
    assert inputs <= scalars


def test_what_is_not_float64_is_cast():
    for f in (lambda t, y, p: y > 1, lambda t, y, p: np.arange(3), lambda t, y, p: (1, 2, 3)):
        assert {v.type.dtype for v in trace(f).derivatives} == {"float64"}


def nodes(system):
    return {v.owner for v in ancestors(system.derivatives) if v.owner is not None}


def test_the_graph_is_cheap():
    f = trace(lambda t, y, p: [np.exp(y[0] * p["k"]) * 1 + 0, np.exp(p["k"] * y[0]) / 1, 2.0 * 3.0])
    assert len(nodes(f)) == 2
    assert f.derivatives[0] is f.derivatives[1]
    assert f.derivatives[2].data == 6.0
    # CONSTANT has four entries, of which two are one.
    assert len(nodes(trace(lambda t, y, p: CONSTANT @ y))) == 3


class TestClosure:
    def test_numbers_and_arrays_are_constants(self):
        system = trace(lambda t, y, p: T * CONSTANT @ y)
        assert system.closure == ()
        np.testing.assert_allclose(evaluated(system), T * CONSTANT @ Y)

    def test_random_variables_are_leaves(self):
        with pm.Model():
            ka = pm.Normal("ka")
            rates = pm.Normal("rates", shape=(3, 3))
        system = trace(lambda t, y, p: ka * y + ka * y[0] - pt.exp(rates) @ y)
        assert system.closure[0] is ka
        assert system.closure[1].owner.inputs[0] is rates
        assert [len(leaf) for leaf in system.leaves[-2:]] == [1, 9]
        values = np.linspace(0, 1, 9).reshape(3, 3)
        made = evaluated(system, closure=[2.0, *values.ravel()])
        np.testing.assert_allclose(made, 2 * Y + 2 * Y[0] - values @ Y)

    def test_an_integer_stays_one(self):
        n = pt.iscalar("n")
        system = trace(lambda t, y, p: y * (n & 3))
        np.testing.assert_allclose(evaluated(system, closure=[2.0]), Y * 2)

    def test_an_unknown_shape_is_refused(self):
        outer = pt.dvector("outer")
        with pytest.raises(InputError, match=r"outer.*pt\.specify_shape\(outer"):
            trace(lambda t, y, p: outer * y)
        trace(lambda t, y, p: pt.specify_shape(outer, (3,)) * y)

    def test_a_leaf_of_unknown_shape_is_refused(self):
        leaves, structure = flatten({"ka": pt.dvector().type}, "params")
        with pytest.raises(InputError, match=r"params\['ka'\].*pt\.specify_shape"):
            trace_system(lambda t, y, p: y, 1, leaves, structure, "f")

    def test_a_random_variable_of_its_own_is_refused(self):
        with pytest.raises(InputError, match="random variable"):
            trace(lambda t, y, p: y * pm.Normal.dist())


def test_composites_and_empty_sums_are_unrolled():
    y = pt.dvector("y", shape=(2,))
    a, b = pt.dscalars("a", "b")
    fgraph = pytensor.function([y], pt.exp(y) * 2 + y, mode="FAST_RUN").maker.fgraph
    known = {fgraph.inputs[0]: as_elements([a, b], (2,))}
    [made] = scalarize(fgraph.outputs, known)
    assert made[1].eval({b: 0.5}) == pytest.approx(np.exp(0.5) * 2 + 0.5)
    [empty] = scalarize([y[:0].sum()], {y: as_elements([a, b], (2,))})
    assert empty[()].data == 0
