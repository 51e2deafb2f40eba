"""Solves of several jobs under the numba linker, where one call of the driver does all of them."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph
from pytensor.tensor.blockwise import Blockwise

from pymc_mpimap import Doses, Steps, solve_ivp
from pymc_mpimap.ode.each import SolveEach
from tests.helpers import assert_same_bits, in_modes
from tests.ode.helpers import node_of, vector, with_derivatives

TS = np.array([0.5, 1.0, 3.0])


def rhs(_t, y, p):
    return [p["k"] * y[1] + p["u"][0], -p["k"] * y[0] + p["u"][1]]


# Everything that a solve can depend on, with a value for each of three jobs.
ROWS = {
    "t0": np.array([0.0, 0.1, -0.5]),
    "y0": np.array([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]]),
    "ts": np.array([[0.5, 1.0], [1.0, 1.0], [0.2, 4.0]]),
    "k": np.array([0.3, 1.0, 2.0]),
    "levels": np.random.default_rng(1).normal(size=(3, 2, 2)),
    "when": np.array([[0.4], [0.9], [0.3]]),
    "times": np.array([[0.1, 0.2], [0.3, 0.3], [0.0, 3.0]]),
    "amounts": np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0]]),
    "durations": np.array([[0.0, 1.0], [0.2, 0.0], [0.0, 0.0]]),
    "states": np.array([[0, 1], [1, 1], [0, 0]]),
    "breaks": np.array([[0.25], [0.35], [2.0]]),
}


def the_inputs():
    return {
        name: pt.TensorType(values.dtype, shape=values.shape[1:])(name)
        for name, values in ROWS.items()
    }


def solution(v, method="tsit5"):
    return solve_ivp(
        rhs,
        v["t0"],
        v["y0"],
        v["ts"],
        {"k": v["k"], "u": Steps(v["when"], v["levels"])},
        doses=Doses(v["times"], v["amounts"], v["states"], v["durations"]),
        breaks=v["breaks"],
        method=method,
        atol=[1e-6, 1e-8],
    )


def compiled(per_job, method="tsit5"):
    """Return functions of all inputs for one job, and for several with these inputs per job."""
    v = the_inputs()
    y = solution(v, method)
    outputs = with_derivatives(y, node_of(y).op.system.differentiable)
    batched = {
        name: pt.TensorType(v[name].dtype, shape=(None, *v[name].type.shape))() for name in per_job
    }
    together = vectorize_graph(outputs, {v[name]: batched[name] for name in per_job})
    alone = pytensor.function(list(v.values()), outputs)
    each = pytensor.function([batched.get(name, v[name]) for name in v], together)
    return alone, each


def ops_of(function):
    return {type(node.op) for node in function.maker.fgraph.apply_nodes}


@in_modes("NUMBA")
@pytest.mark.parametrize(
    ("per_job", "method"),
    [
        (tuple(ROWS), "tsit5"),
        (tuple(ROWS), "bdf"),
        (("k",), "auto"),
        (("t0", "levels", "times"), "dopri5"),
        (("ts", "amounts", "breaks"), "tsit5"),
        (("y0", "when", "durations", "states"), "tsit5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:4]),
)
def test_each_job_is_what_it_is_alone(per_job, method, mode):
    alone, each = compiled(per_job, method)
    assert SolveEach in ops_of(each)
    assert Blockwise not in ops_of(each)
    shared = {name: values[0] for name, values in ROWS.items()}
    results = each(*(ROWS[name] if name in per_job else shared[name] for name in ROWS))
    for j in range(3):
        expected = alone(*(ROWS[name][j] if name in per_job else shared[name] for name in ROWS))
        for result, one in zip(results, expected, strict=True):
            assert_same_bits(result[j], one)
    # No jobs at all, and numbers that are not one after the other.
    none = each(*(ROWS[name][:0] if name in per_job else shared[name] for name in ROWS))
    assert [r.shape for r in none] == [(0, *r.shape[1:]) for r in results]
    views = {name: np.asfortranarray(np.repeat(ROWS[name], 2, axis=0))[::2] for name in per_job}
    again = each(*(views.get(name, shared[name]) for name in ROWS))
    for result, other in zip(results, again, strict=True):
        assert_same_bits(result, other)


@in_modes("NUMBA")
def test_a_job_that_makes_no_sense_is_refused(mode):
    _, each = compiled(tuple(ROWS))
    before = each(*ROWS.values())
    wrong = {**ROWS, "states": np.array([[0, 1], [1, 2], [0, 0]])}
    with pytest.raises(ValueError, match="a dose goes to a state that there is not"):
        each(*wrong.values())
    wrong = {**ROWS, "k": ROWS["k"][:2]}
    with pytest.raises(ValueError, match="different numbers of jobs"):
        each(*wrong.values())
    for one, other in zip(each(*ROWS.values()), before, strict=True):
        assert_same_bits(one, other)


@in_modes("NUMBA")
def test_what_else_is_vectorized(mode):
    """Two axes of jobs, and SciPy's methods, are PyTensor's own loops."""
    k, ks, grid = pt.dscalar("k"), vector("ks"), pt.dmatrix("grid")
    y = solve_ivp(lambda _t, y, k: -k * y, 0.0, [1.0], TS, k)
    alone = pytensor.function([k], y)
    rows = pytensor.function([grid], vectorize_graph(y, {k: grid}))
    assert SolveEach not in ops_of(rows)
    point = np.array([[0.1, 0.2], [1.0, 3.0]])
    assert_same_bits(rows(point), np.array([[alone(k) for k in row] for row in point]))
    z = solve_ivp(lambda _t, y, k: -k * y, 0.0, [1.0], TS, k, method="scipy-RK45")
    assert SolveEach not in ops_of(pytensor.function([ks], vectorize_graph(z, {k: ks})))


def test_the_op_in_python():
    """As PyTensor runs it in its debug mode, and to fold constants."""
    v = the_inputs()
    y = solution(v)
    per_job = [variable is v["k"] for variable in y.owner.inputs]
    ks = vector("ks")
    inputs = [ks if flag else x for x, flag in zip(y.owner.inputs, per_job, strict=True)]
    each = SolveEach(y.owner.op, per_job)(*inputs)
    assert each.type.shape == (None, 2, 2)
    shared = {v[name]: values[0] for name, values in ROWS.items() if name != "k"}
    alone = [y.eval({**shared, v["k"]: k}) for k in ROWS["k"]]
    assert_same_bits(each.eval({**shared, ks: ROWS["k"]}), np.array(alone))
    assert each.eval({**shared, ks: ROWS["k"][:0]}).shape == (0, 2, 2)
    assert str(each.owner.op).startswith("SolveEach{SolveIVP{rhs")
    assert each.owner.op == SolveEach(y.owner.op, per_job)
    assert each.shape.eval({**shared, ks: ROWS["k"]}).tolist() == [3, 2, 2]


@in_modes("FAST_COMPILE", "NUMBA")
@pytest.mark.parametrize("shape", [(2,), (1, 2)], ids=["jobs", "two axes"])
def test_integers_become_floats(mode, shape):
    k = pt.dscalar("k")
    y = solve_ivp(lambda _t, y, k: -k * y, 0.0, [1.0], [1.0], k)
    ks = pt.TensorType("int64", shape=(None,) * len(shape))("ks")
    values = np.array([1, 2]).reshape(shape)
    result = pytensor.function([ks], vectorize_graph(y, {k: ks}))(values)
    np.testing.assert_allclose(result.ravel(), np.exp([-1.0, -2.0]), rtol=1e-5)


@in_modes("NUMBA")
def test_shared_inputs_that_are_computed(mode):
    """With what is computed in them more than once, and constants."""
    k, a, ks = pt.dscalar("k"), pt.dscalar("a"), vector("ks")
    rate = a
    for _ in range(30):
        rate = pt.sin(rate) * rate
    y = solve_ivp(lambda _t, y, p: -p[0] * p[1] * y, 0.0, [1.0], TS, (k, rate + 1.0))
    together = pytensor.function([a, ks], vectorize_graph(y, {k: ks}))
    alone = pytensor.function([a, k], y)
    assert SolveEach in ops_of(together)
    assert_same_bits(together(0.5, [1.0, 2.0]), np.array([alone(0.5, 1.0), alone(0.5, 2.0)]))
