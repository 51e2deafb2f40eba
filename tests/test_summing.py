"""Values of jobs that are only summed are summed where the jobs are."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import MapRectOp, SerialPool, map_rect, numeric_job
from tests.helpers import AS_WRITTEN, CountingPool, assert_close, in_modes, without_map_rect

N = 5
X = np.random.default_rng(3).normal(size=(N, 3))
RAGGED = [np.arange(1.0 + j) for j in (2, 0, 3, 1, 2)]

two_modes = in_modes("FAST_COMPILE", "NUMBA")


def scalar(theta, own, x):
    return pt.sin(theta * own * x).sum()


def vector(theta, own, x):
    return pt.sin(theta * own * x)


def numeric(f, **options):
    """Return the same as a numeric job."""

    @numeric_job(**options)
    def job(theta, own, x):
        angles, cosines = theta * own * x, np.cos(theta * own * x)
        if f is scalar:
            return np.sin(angles).sum(), (cosines * own * x).sum(), (cosines * theta * x).sum()
        return np.sin(angles), cosines * own * x, cosines * theta * x

    return job


JOBS = {
    "scalar": (scalar, scalar, X),
    "vector": (vector, vector, X),
    "ragged": (vector, vector, RAGGED),
    "numeric scalar": (numeric(scalar), scalar, X),
    "numeric vector": (numeric(vector, length=3), vector, X),
    "numeric ragged": (numeric(vector, length=len), vector, RAGGED),
}
each_job = pytest.mark.parametrize("name", JOBS)

theta, own, scale = pt.dscalar("theta"), pt.dvector("own", shape=(N,)), pt.dscalar("scale")
POINT = {theta: 0.7, own: np.linspace(-1, 1, N), scale: 1.5}


def build(name, total):
    """Return the total of a map, and of the same without one."""
    f, plain, data = JOBS[name]
    return total(map_rect(f, theta, own, data)), total(without_map_rect(plain, theta, own, data))


def run(outputs, expected):
    """Compare with what is expected; return the round trips and the maps' outputs."""
    with CountingPool() as pool:
        function = pytensor.function(list(POINT), outputs, on_unused_input="ignore")
        pool.calls = 0
        results = function(*POINT.values())
    plain = pytensor.function(list(POINT), expected, mode=AS_WRITTEN, on_unused_input="ignore")
    assert_close(results, plain(*POINT.values()))
    nodes = [n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, MapRectOp)]
    return pool.calls, [output.type.shape for node in nodes for output in node.outputs]


def gradients(total):
    return [total, *pt.grad(total, list(POINT), disconnected_inputs="ignore")]


TOTALS = {
    "sum": lambda values: values.sum(),
    "constant": lambda values: (-0.5 * values).sum(),
    "scaled": lambda values: (scale * values / (1 + scale)).sum(),
    "twice": lambda values: values.sum() + (values * scale).sum() ** 2,
}


@two_modes
@each_job
def test_value_and_gradient_in_one_round_trip(name):
    total, plain = build(name, TOTALS["sum"])
    calls, shapes = run(gradients(total), gradients(plain))
    assert calls == 1
    # The values' sum, the derivative by theta, and those by the jobs' own.
    assert sorted(shapes) == [(), (), (N,)]


@two_modes
@pytest.mark.parametrize("made", TOTALS)
def test_scaled_sums(made):
    for name in ("scalar", "ragged"):
        total, plain = build(name, TOTALS[made])
        assert run(total, plain) == (1, [()])


def test_tempered_values_do_not_delay_the_gradient():
    for name in ("scalar", "ragged"):
        total, plain = build(name, lambda values: (scale * values).sum())
        wrt = [theta, own]
        calls, shapes = run([total, *pt.grad(total, wrt)], [plain, *pt.grad(plain, wrt)])
        assert (calls, sorted(shapes)) == (1, [(), (), (N,)])


@two_modes
@each_job
def test_gradient_that_depends_on_the_sum(name):
    total, plain = build(name, lambda values: pt.exp(values.sum()))
    calls, shapes = run(gradients(total), gradients(plain))
    assert calls == 2
    assert sorted(shapes) == [(), (), (N,)]


def test_values_that_are_used_otherwise_too():
    for use in (
        lambda values: [values.sum(), values],
        lambda values: [values.sum(), values[0]],
        lambda values: [(values * pt.arange(values.shape[0])).sum()],
        lambda values: [(scale / values).sum()],
        lambda values: [values.sum(), (values**2).sum()],
    ):
        total, plain = build("scalar", use)
        assert run(total, plain) == (1, [(N,)])


def test_some_sums_alone():
    total, plain = build("vector", lambda values: values.reshape((N, 3)).sum(axis=0))
    assert run(total, plain) == (1, [(N, 3)])


def test_no_jobs():
    none = pt.dvector("none", shape=(0,))
    total = map_rect(lambda theta, job: theta * job, theta, none).sum()
    function = pytensor.function([theta, none], [total, pt.grad(total, theta)])
    assert [float(x) for x in function(2.0, np.zeros(0))] == [0.0, 0.0]


def test_integers_are_left_to_pytensor():
    values = map_rect(lambda _, job: job, None, np.arange(N))
    function = pytensor.function([], values.sum())
    assert function() == 10
    assert function().dtype == np.int64


def test_sums_that_other_maps_depend_on():
    first = map_rect(scalar, theta, own, X).sum()
    second = map_rect(scalar, first, own, X[:, ::-1].copy()).sum()
    plain = without_map_rect(scalar, theta, own, X).sum()
    expected = without_map_rect(scalar, plain, own, X[:, ::-1].copy()).sum()
    assert run([first, second], [plain, expected]) == (2, [(), ()])


@pytest.mark.parametrize("grain_size", [1, 3])
@pytest.mark.parametrize("length", [None, 2])
def test_rejected_jobs_are_counted(length, grain_size):
    """The sum is -inf, and so the proposal is rejected; each job that failed is known."""

    @numeric_job(length=length)
    def fails(theta, own):
        if own < 0:
            raise ValueError("negative")
        value = theta * own
        return (value, own) if length is None else (np.full(2, value), np.full(2, own))

    total = map_rect(fails, theta, own, on_error="reject", grain_size=grain_size).sum()
    function = pytensor.function([theta, own], [total, pt.grad(total, theta)])
    with SerialPool() as pool:
        value, gradient = function(2.0, np.array([1.0, -1.0, 2.0, -3.0, 0.5]))
    assert value == -np.inf
    assert gradient == (1.0 + 2.0 + 0.5) * (length or 1)
    assert pool.report().rejected == {"job 1 of fails": 1, "job 3 of fails": 1}
    assert pool.report().not_finite == {}


def test_potential_of_a_model():
    def model(evaluate):
        with pm.Model() as built:
            a = pm.Normal("a")
            b = pm.Normal("b", shape=N)
            pm.Potential("lik", evaluate(scalar, a, b, X))
        return built

    mapped, plain = model(map_rect), model(without_map_rect)
    point = mapped.initial_point()
    function = mapped.logp_dlogp_function(ravel_inputs=True)._pytensor_function
    raveled = np.concatenate([np.ravel(point[v.name]) for v in mapped.value_vars])
    assert_close(function(raveled)[0], plain.compile_logp()(point))
    nodes = function.maker.fgraph.apply_nodes
    (node,) = [n for n in nodes if isinstance(n.op, MapRectOp)]
    assert sorted(v.type.shape for v in node.outputs) == [(), (), (N,)]


@each_job
def test_derivatives_of_sums(name):
    """A job's sum has the derivatives of its values' sum."""
    f, plain, data = JOBS[name]
    node = map_rect(f, theta, own, data)
    while not isinstance(node.owner.op, MapRectOp):
        node = node.owner.inputs[0]
    (m,), inputs = node.owner.op.maps, node.owner.inputs
    total = MapRectOp.of(m.derived(m.job.summed([0]))).make_node(*inputs).outputs[0]
    run(gradients(total), gradients(without_map_rect(plain, theta, own, data).sum()))
