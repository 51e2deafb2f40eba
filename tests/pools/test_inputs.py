"""What theta, jobs, x_r and x_i may be, and the number of a job."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import DisconnectedInputError

from pymc_mpimap import map_rect, numeric_job
from tests.helpers import (
    assert_close,
    assert_equals_plain,
    assert_same_bits,
    evaluate,
    evaluations,
    in_modes,
    ranks,
    without_map_rect,
)

N = 5
RANDOM = np.random.default_rng(3)


def leaves(nest):
    """Return the tensors of a nest; ints are no data, None is nothing."""
    if isinstance(nest, dict):
        nest = tuple(nest.values())
    if isinstance(nest, tuple):
        return [leaf for item in nest for leaf in leaves(item)]
    return [] if nest is None else [nest]


def general(theta, job, x_r=None, x_i=None):
    """A scalar that depends on every entry of every argument, and not linearly."""
    total = 0.3
    given = [leaf for part in (theta, job, x_r, x_i) for leaf in leaves(part)]
    for k, leaf in enumerate(map(pt.as_tensor_variable, given)):
        weights = 1.0 + pt.arange(leaf.size).reshape(leaf.shape)
        total = total * pt.cos(0.1 * total) + (0.1 * (k + 1) * weights * leaf).sum() ** 2
    return total


def vector(theta, job, x_r=None, x_i=None):
    """As many entries as the last argument that is given has in its first leaf."""
    last = next(leaves(part)[0] for part in (x_i, x_r, job, theta) if leaves(part))
    return general(theta, job, x_r, x_i) * pt.cos(1.0 * pt.as_tensor_variable(last).ravel())


def symbolic(nest, name, point, per_job=False):
    """Return variables like these arrays, and note the arrays in `point`."""
    if isinstance(nest, dict):
        return {k: symbolic(v, f"{name}_{k}", point, per_job) for k, v in nest.items()}
    if isinstance(nest, tuple):
        return tuple(symbolic(v, f"{name}_{i}", point, per_job) for i, v in enumerate(nest))
    if isinstance(nest, list):
        return [symbolic(v, f"{name}_{i}", point) for i, v in enumerate(nest)]
    if nest is None or isinstance(nest, int):
        return nest
    shape = (nest.shape[0], *[None] * (nest.ndim - 1)) if per_job else (None,) * nest.ndim
    variable = pt.tensor(name, dtype=nest.dtype, shape=shape)
    point[variable] = nest
    return variable


def normal(*shape):
    return RANDOM.normal(size=shape)


THETAS = {
    "scalar": normal(),
    "vector": normal(4),
    "matrix": normal(2, 3),
    "3-d": normal(2, 1, 3),
    "dict": {"a": normal(), "b": normal(3)},
    "tuple": (normal(2), normal()),
    "nested": {"a": (normal(), {"b": normal(2, 2)}), "c": normal(3)},
    "empty vector": normal(0),
    "empty matrix": normal(3, 0),
    "nothing": None,
    "empty dict": {},
}
JOBS = {
    "vector": normal(N),
    "matrix": normal(N, 3),
    "3-d": normal(N, 2, 3),
    "empty rows": normal(N, 0),
    "ragged": [normal(k) for k in (2, 0, 3, 1, 2)],
    "ragged matrices": [normal(k, 2) for k in (2, 0, 3, 1, 2)],
    "list of scalars": [normal() for _ in range(N)],
    "dict": {"a": normal(N), "b": normal(N, 2)},
    "tuple": (normal(N, 2), [normal(k) for k in (1, 2, 3, 1, 2)]),
    "nested": {"a": (normal(N), {"b": normal(N, 2)}), "c": [normal(k) for k in (0, 2, 3, 1, 2)]},
    "number": N,
}
DATA = {
    "vector": normal(N),
    "matrix": normal(N, 3),
    "3-d": normal(N, 2, 3),
    "empty rows": normal(N, 0),
    "integers": RANDOM.integers(-3, 4, size=(N, 2)),
    "booleans": RANDOM.random((N, 2)) > 0.5,
    "ragged vectors": [normal(k) for k in (2, 0, 3, 1, 2)],
    "ragged matrices": [normal(k, 2) for k in (2, 0, 3, 1, 2)],
    "ragged both ways": [normal(k, 4 - k) for k in (2, 0, 3, 1, 2)],
    "ragged integers": [np.arange(k) for k in (2, 0, 3, 1, 2)],
    "nested lists": [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0], [7.0], [8.0]],
    "dict": {"a": normal(N), "b": [normal(k) for k in (2, 0, 3, 1, 2)]},
    "tuple": (normal(N, 2), RANDOM.integers(0, 4, size=N)),
    "non-contiguous": normal(3, N).T,
    "reversed": normal(N, 3)[::-1],
}


def check(f, theta, jobs, x_r=None, x_i=None, *, hessian=False):
    point = {}
    theta = symbolic(theta, "theta", point)
    jobs = symbolic(jobs, "jobs", point, per_job=True)
    return assert_equals_plain(
        map_rect(f, theta, jobs, x_r, x_i),
        without_map_rect(f, theta, jobs, x_r, x_i),
        point,
        hessian=hessian,
    )


@pytest.mark.parametrize("theta", THETAS)
def test_theta(theta):
    check(vector, THETAS[theta], JOBS["vector"])


@pytest.mark.parametrize("jobs", JOBS)
def test_jobs(jobs):
    check(vector, THETAS["vector"], JOBS[jobs])


@pytest.mark.parametrize("x_r", DATA)
def test_data(x_r):
    check(vector, THETAS["scalar"], JOBS["vector"], DATA[x_r])


@pytest.mark.parametrize(
    ("theta", "jobs"), [("dict", "vector"), ("vector", "ragged"), ("nothing", "matrix")]
)
def test_scalar_jobs_and_second_derivatives(theta, jobs):
    check(general, THETAS[theta], JOBS[jobs], hessian=True)


def test_all_at_once():
    check(vector, THETAS["nested"], JOBS["nested"], DATA["dict"], DATA["ragged integers"])


@pytest.mark.parametrize("x_r", ["dict", "matrix"])
def test_second_data_alone(x_r):
    check(general, THETAS["dict"], JOBS["ragged"], None, DATA[x_r])


@in_modes("NUMBA")
@pytest.mark.parametrize(("jobs", "x_r"), [("matrix", "matrix"), ("number", "ragged integers")])
def test_in_numba(jobs, x_r):
    check(vector, THETAS["vector"], JOBS[jobs], DATA[x_r])


@pytest.mark.parametrize("n", ["no", "one", "W - 1", "W + 1"])
@pytest.mark.parametrize("f", [general, vector], ids=["scalar", "vector"])
def test_number_of_jobs(f, n):
    n = {"no": 0, "one": 1, "W - 1": ranks() - 1, "W + 1": ranks() + 1}[n]
    if n > 0:
        check(f, THETAS["dict"], normal(n, 2), normal(n, 3))
        check(f, THETAS["dict"], [normal(k % 3) for k in range(n)], [normal(k) for k in range(n)])
        return
    point = {}
    theta = symbolic(THETAS["dict"], "theta", point)
    jobs = symbolic(normal(0, 2), "jobs", point, per_job=True)
    output = map_rect(f, theta, jobs, np.empty((0, 3)))
    results = evaluate([output, *pt.grad(output.sum(), list(point))], point)
    assert_same_bits(results, [np.empty(0), *(np.zeros_like(v) for v in point.values())])


def test_no_jobs_in_a_list():
    output = map_rect(general, pt.constant(1.0), [], [])
    assert evaluate(output, {}).shape == (0,)


def test_integers_have_no_derivative():
    theta, own = pt.lvector("theta"), pt.lmatrix("own", shape=(N, 2))
    real = pt.dscalar("real")
    output = map_rect(general, {"a": theta, "b": real}, own)
    point = {theta: np.arange(3), own: np.arange(2 * N).reshape(N, 2), real: np.array(0.3)}
    assert_equals_plain(output, without_map_rect(general, {"a": theta, "b": real}, own), point)
    for integers in (theta, own):
        with pytest.raises((DisconnectedInputError, TypeError)):
            pt.grad(output.sum(), integers)


def test_single_precision():
    theta, own = pt.fvector("theta"), pt.fmatrix("own", shape=(N, 2))
    x = DATA["matrix"].astype(np.float32)

    def job(theta, own, x):
        return (theta * own).sum() * x

    output = map_rect(job, theta, own, x)
    gradients = pt.grad(output.sum(), [theta, own])
    assert [v.type.dtype for v in (output, *gradients)] == ["float32"] * 3
    point = {theta: np.array([0.3, -1.2], np.float32), own: normal(N, 2).astype(np.float32)}
    value, d_theta, d_own = evaluate([output, *gradients], point)
    sums = (point[theta] * point[own]).sum(axis=1, keepdims=True)
    eps = np.finfo(np.float32).eps
    assert_close(value, (sums * x).ravel(), rtol=8 * eps)
    assert_close(d_theta, x.sum(axis=1) @ point[own], rtol=16 * eps)
    assert_close(d_own, x.sum(axis=1, keepdims=True) * point[theta], rtol=16 * eps)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["theta", "jobs", "x_r"])
@pytest.mark.parametrize("kind", ["traced", "numeric"])
def test_values_that_are_not_finite_pass_through(kind, where, bad):
    def traced(theta, job, x):
        return theta * job + x

    @numeric_job
    def numeric(theta, job, x):
        return theta * job + x, job, theta

    values = {"theta": np.array(2.0), "jobs": np.arange(1.0, N + 1), "x_r": np.arange(1.0, N + 1)}
    if where == "theta":
        values[where] = np.array(bad)
    else:
        values[where][3] = bad
    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    output = map_rect(traced if kind == "traced" else numeric, theta, own, values["x_r"])
    results = evaluate(
        [output, *pt.grad(output.sum(), [theta, own])],
        {theta: values["theta"], own: values["jobs"]},
    )
    with np.errstate(invalid="ignore"):
        expected = values["theta"] * values["jobs"] + values["x_r"]
        gradients = [values["jobs"].sum(), np.full(N, values["theta"])]
    assert_same_bits(results, [expected, *gradients])


# The job's number.


@pytest.mark.parametrize("keyword_only", [True, False])
def test_job_id(keyword_only):
    weights = normal(N)

    def keyword(theta, job, *, job_id):
        return theta * pt.constant(weights)[job_id] + job_id

    def positional(theta, job, job_id):
        return keyword(theta, job, job_id=job_id)

    theta = pt.dscalar("theta")
    f = keyword if keyword_only else positional
    output = map_rect(f, theta, N)
    value, gradient = evaluate([output, pt.grad(output.sum(), theta)], {theta: 0.4})
    assert_close(value, 0.4 * weights + np.arange(N))
    assert_close(gradient, weights.sum())


def test_job_id_of_a_numeric_job():
    @numeric_job
    def job(theta, own, x, *, job_id):
        assert type(job_id) is int
        return theta * job_id, job_id

    theta = pt.dscalar("theta")
    output = map_rect(job, theta, N, np.zeros(N))
    value, gradient = evaluate([output, pt.grad(output.sum(), theta)], {theta: 2.0})
    assert_same_bits(value, 2.0 * np.arange(N))
    assert gradient == 10


def test_missing_arguments():
    """Trailing ones are left out; one in between is None, and so is that of a bare number."""
    seen = []

    def job(*arguments):
        seen.append(arguments)
        return pt.constant(1.0)

    x = np.zeros(N)
    for arguments in [(None, N), (None, N, x), (None, N, None, x), (None, x, x, x)]:
        map_rect(job, *arguments)
        nothing = [argument is None or isinstance(argument, int) for argument in arguments]
        assert [value is None for value in seen.pop()] == nothing


def test_no_round_trip_is_spent_on_shapes():
    theta = pt.dvector("theta")
    output = map_rect(lambda theta, job: theta * job, theta, np.arange(float(N)))
    length = pytensor.function([theta], output.shape[0], mode="FAST_RUN")
    before = evaluations()
    assert length(np.ones(3)) == 3 * N
    assert evaluations() == before


def test_inputs_in_fortran_order():
    theta, jobs = pt.dmatrix("theta"), pt.dmatrix("jobs", shape=(6, 40))
    output = map_rect(lambda theta, job: (theta @ job).sum(), theta, jobs)
    random = np.random.default_rng(3)
    point = {
        theta: np.asfortranarray(random.normal(size=(50, 40))),
        jobs: random.normal(size=(6, 40)),
    }
    evaluate([output, pt.grad(output.sum(), theta)], point)
