"""How many round trips a compiled function makes, and how often it evaluates a job."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from pymc_mpimap import MapRectOp, map_rect, numeric_job
from tests.helpers import (
    AS_WRITTEN,
    CALLS,
    CountingPool,
    assert_close,
    assert_same_bits,
    in_modes,
    without_map_rect,
)

N = 5
RANDOM = np.random.default_rng(8)
X = RANDOM.normal(size=(N, 3))

each_mode = in_modes("FAST_COMPILE", "CVM", "NUMBA")
# C takes seconds a function to compile, and rewrites as numba does.
two_modes = in_modes("FAST_COMPILE", "NUMBA")


def job(theta, own, x):
    return pt.sin(theta["a"] * own * x).sum() + theta["b"].sum() * own


@numeric_job
def numeric(theta, own, x):
    CALLS["numeric"] += 1
    cosine, b = np.cos(theta["a"] * own * x), theta["b"].sum()
    value = np.sin(theta["a"] * own * x).sum() + b * own
    d_theta = {"a": (cosine * own * x).sum(), "b": np.full(2, own)}
    return value, d_theta, (cosine * theta["a"] * x).sum() + b


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def variables(n=N):
    theta = {"a": pt.dscalar("a"), "b": pt.dvector("b", shape=(2,))}
    own = pt.dvector("own", shape=(n,))
    point = {theta["a"]: np.array(0.3), theta["b"]: np.array([0.1, -0.4])}
    return theta, own, {**point, own: np.linspace(-1, 1, n)}


def count(outputs, point, expected=None):
    """Return the results and the round trips of one evaluation; `CALLS` counts this one too."""
    with CountingPool() as pool:
        function = pytensor.function(list(point), outputs, on_unused_input="ignore")
        pool.calls = 0
        CALLS.clear()
        results = function(*point.values())
    if expected is not None:
        plain = pytensor.function(list(point), expected, mode=AS_WRITTEN, on_unused_input="ignore")
        assert_close(results, plain(*point.values()))
    return results, pool.calls, function.maker.fgraph


def map_nodes(fgraph):
    return [node for node in fgraph.apply_nodes if isinstance(node.op, MapRectOp)]


def with_gradient(total, point):
    return [total, *pt.grad(total, list(point))]


each_job = pytest.mark.parametrize("f", [job, numeric], ids=["traced", "numeric"])


@each_mode
@each_job
def test_value_and_gradient(f):
    theta, own, point = variables()
    total = map_rect(f, theta, own, X).sum()
    plain = without_map_rect(job, theta, own, X).sum()
    _, calls, fgraph = count(with_gradient(total, point), point, with_gradient(plain, point))
    assert calls == 1
    assert len(map_nodes(fgraph)) == 1
    assert CALLS["numeric"] == (N if f is numeric else 0)


@each_job
def test_gradient_alone(f):
    """The value is not evaluated for nothing."""
    theta, own, point = variables()
    total = map_rect(f, theta, own, X).sum()
    plain = without_map_rect(job, theta, own, X).sum()
    wrt = list(point)
    _, calls, fgraph = count(pt.grad(total, wrt), point, pt.grad(plain, wrt))
    assert calls == 1
    (node,) = map_nodes(fgraph)
    assert len(node.outputs) == 3


@two_modes
def test_three_maps_of_different_numbers_of_jobs():
    theta, own, point = variables()
    other = pt.dvector("other", shape=(2,))
    point[other] = np.array([0.2, 0.7])

    def totals(evaluate, last):
        first = evaluate(job, theta, own, X).sum()
        second = evaluate(job, {"a": theta["a"] ** 2, "b": other}, other, X[:2]).sum()
        third = evaluate(last, theta, 3 * own[:3], X[:3]).sum()
        return first + 2 * second + 3 * third

    total, plain = totals(map_rect, numeric), totals(without_map_rect, job)
    _, calls, fgraph = count(with_gradient(total, point), point, with_gradient(plain, point))
    assert calls == 1
    assert {m.n_jobs for node in map_nodes(fgraph) for m in node.op.maps} == {2, 3, N}
    assert CALLS["numeric"] == 3


@each_job
def test_two_potentials_of_a_model(f):
    x = X[:, ::-1].copy()

    def build(evaluate, function):
        with pm.Model() as model:
            a = pm.HalfNormal("a")
            b = pm.Normal("b", shape=2)
            own = pm.Normal("own", shape=N)
            for name, data in (("first", X), ("second", x)):
                output = evaluate(function, {"a": a, "b": b}, own, data)
                pm.Potential(name, output.sum())
        return model

    mapped, plain = build(map_rect, f), build(without_map_rect, job)
    point = mapped.initial_point()
    with CountingPool() as pool:
        function = mapped.compile_fn([mapped.logp(), mapped.dlogp()], point_fn=True)
        pool.calls = 0
        CALLS.clear()
        values = function(point)
    expected = plain.compile_fn([plain.logp(), plain.dlogp()], point_fn=True)(point)
    assert_close(values, expected)
    assert pool.calls == 1
    assert CALLS["numeric"] == (2 * N if f is numeric else 0)


class Counted(Op):
    """The identity, which counts in Python how often it is evaluated."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        CALLS["traced"] += 1
        outputs[0][0] = inputs[0].copy()

    def pullback(self, inputs, outputs, cotangents):
        return cotangents

    def infer_shape(self, node, shapes):
        return shapes


def predictions(theta, own, x):
    return pt.exp(0.1 * theta["a"] * own * x) + theta["b"].sum() * own


def counted_predictions(theta, own, x):
    return pt.exp(Counted()(0.1 * theta["a"] * own * x)) + theta["b"].sum() * own


@numeric_job(length=3)
def numeric_predictions(theta, own, x):
    CALLS["numeric"] += 1
    e = np.exp(0.1 * theta["a"] * own * x)
    d_theta = {"a": 0.1 * own * x * e, "b": np.full((3, 2), own)}
    return e + theta["b"].sum() * own, d_theta, 0.1 * theta["a"] * x * e + theta["b"].sum()


@each_mode
def test_likelihood_outside_solves_no_numeric_job_twice():
    theta, own, point = variables()
    # A point that no test was at: what ranks remember outlives a pool.
    point[own] = RANDOM.normal(size=N)
    gathered = map_rect(numeric_predictions, theta, own, X)
    plain = without_map_rect(predictions, theta, own, X)
    outputs = [with_gradient((v**2).sum(), point) for v in (gathered, plain)]
    _, calls, _ = count(*outputs[:1], point, outputs[1])
    assert calls == 2
    assert CALLS["numeric"] == N
    # And another point is another evaluation: what is remembered is not taken for it.
    with CountingPool():
        functions = [
            pytensor.function(list(point), outputs[0]),
            pytensor.function(list(point), outputs[1], mode=AS_WRITTEN),
        ]
        for shift in (0.0, 0.5, 0.0, -0.5):
            values = [np.asarray(v) + shift for v in point.values()]
            assert_close(*(function(*values) for function in functions))


def test_likelihood_outside_solves_no_traced_job_twice():
    theta, own, point = variables()
    # Vectorized or not, a job's forward pass is evaluated as often as for the value alone.
    value = map_rect(counted_predictions, theta, own, X)
    count(value, point)
    alone = CALLS["traced"]
    assert alone >= 1
    plain = without_map_rect(predictions, theta, own, X)
    outputs = [with_gradient((v**2).sum(), point) for v in (value, plain)]
    _, calls, _ = count(*outputs[:1], point, outputs[1])
    assert calls == 2
    assert CALLS["traced"] == alone


def test_value_and_gradient_of_a_traced_job_are_one_evaluation():
    theta, own, point = variables()

    def counted(theta, own, x):
        return counted_predictions(theta, own, x).sum()

    value = map_rect(counted, theta, own, X)
    count(value, point)
    alone = CALLS["traced"]
    _, calls, _ = count(with_gradient(value.sum(), point), point)
    assert (calls, CALLS["traced"]) == (1, alone)


def test_two_evaluations_with_changed_data():
    """What is remembered between the two round trips is by the content of data, too."""
    theta, own, point = variables()
    data = pytensor.shared(X, name="data")
    gathered = map_rect(numeric_predictions, theta, own, data)
    outputs = with_gradient((gathered**2).sum(), point)
    plain = with_gradient((without_map_rect(predictions, theta, own, data) ** 2).sum(), point)
    with CountingPool():
        functions = [
            pytensor.function(list(point), outputs),
            pytensor.function(list(point), plain, mode=AS_WRITTEN),
        ]
        for x in (X, 2 * X, X, -X):
            data.set_value(x)
            assert_close(*(function(*point.values()) for function in functions))


def test_maps_that_depend_on_each_other_stay_apart():
    theta, own, point = variables()
    first = map_rect(job, theta, own, X).sum()
    second = map_rect(job, {"a": first, "b": theta["b"]}, own, X).sum()
    plain_first = without_map_rect(job, theta, own, X).sum()
    plain = without_map_rect(job, {"a": plain_first, "b": theta["b"]}, own, X).sum()
    _, calls, _ = count([first, second], point, [plain_first, plain])
    assert calls == 2
    _, calls, _ = count(with_gradient(second, point), point, with_gradient(plain, point))
    # First; second with its pullback; the pullback of the first, which needs theirs.
    assert calls == 3


def test_chain_and_an_independent_map():
    """A map that could go with either of two goes with one of them, and makes no cycle."""
    theta, own, point = variables()
    first = map_rect(job, theta, own, X).sum()
    second = map_rect(job, {"a": first, "b": theta["b"]}, own, X).sum()
    apart = map_rect(job, {"a": theta["a"] + 1, "b": theta["b"]}, own, X).sum()
    _, calls, _ = count([second, apart], point)
    assert calls == 2


@each_job
def test_unused_outputs_are_dropped(f):
    theta, own, point = variables()
    total = map_rect(f, theta, own, X).sum()
    gradient = pt.grad(total, list(point))
    plain = pt.grad(without_map_rect(job, theta, own, X).sum(), list(point))
    for k in range(3):
        _, calls, fgraph = count(gradient[k], point, plain[k])
        (node,) = map_nodes(fgraph)
        assert calls == 1
        assert len(node.outputs) == 1


def test_inputs_are_sent_once():
    theta, own, point = variables()
    total = map_rect(job, theta, own, X).sum() + map_rect(job, theta, own, 2 * X).sum()
    _, calls, fgraph = count(with_gradient(total, point), point)
    (node,) = map_nodes(fgraph)
    assert calls == 1
    assert len(set(node.inputs)) == len(node.inputs)
    assert sum(variable in fgraph.inputs for variable in node.inputs) == 3


@two_modes
def test_raise_and_reject_are_not_mixed():
    """Maps with different answers to a failure go in one message, each with its own answer."""

    @numeric_job
    def fragile(theta, own):
        if own < 0:
            raise ValueError("negative")
        return theta * own, own, theta

    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    rejecting = map_rect(fragile, theta, own, on_error="reject")
    raising = map_rect(fragile, theta, own**2)
    total = rejecting.sum() + raising.sum()
    point = {theta: np.array(2.0), own: np.array([1.0, -1.0, 2.0, 3.0, -4.0])}
    (value, d_theta), calls, _ = count([rejecting, pt.grad(total, theta)], point)
    assert calls == 1
    assert_same_bits(value, np.array([2.0, -np.inf, 4.0, 6.0, -np.inf]))
    assert d_theta == 6 + 31


@two_modes
def test_values_are_those_without_the_rewrites(mode):
    theta, own, point = variables()
    total = map_rect(job, theta, own, X).sum() * map_rect(numeric, theta, own, X).sum()
    outputs = with_gradient(total, point)
    rewritten, calls, _ = count(outputs, point)
    with CountingPool() as pool:
        untouched = pytensor.function(
            list(point),
            outputs,
            mode=pytensor.compile.mode.get_mode(mode).excluding(
                "map_rect_merge", "map_rect_drop_unused", "map_rect_remember"
            ),
        )
        assert_close(rewritten, untouched(*point.values()))
    assert calls < pool.calls
