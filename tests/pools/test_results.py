"""Results of several calls and several functions: each its own."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import map_rect, numeric_job
from tests.helpers import assert_equals_plain, assert_same_bits, compiled, evaluate, weighted


def test_several_interleaved():
    theta = pt.dvector("theta", shape=(2,))

    def first(theta, job, x):
        return theta[0] * x

    def second(theta, job, x):
        return theta[1] ** 2 * x

    @numeric_job
    def third(theta, job, x):
        return x * theta @ theta, 2 * x * theta

    data = [np.arange(1.0, n + 1) for n in (3, 10, 7)]
    a = map_rect(first, theta, 3, data[0])
    b = map_rect(second, theta, 10, data[1])
    c = map_rect(third, theta, 7, data[2])
    chained = map_rect(first, pt.stack([a.sum(), b.sum()]), 3, data[0])
    total = a.sum() * b.sum() + c.sum() * chained.sum()
    expected_a, expected_b = 6 * theta[0], 55 * theta[1] ** 2
    plain = expected_a * expected_b + 28 * (theta**2).sum() * 6 * expected_a
    point = {theta: np.array([0.3, -1.2])}
    assert_equals_plain(total[None], plain[None], point)
    # And one compiled function after the other, with the same pool, in turns.
    functions = [compiled([m, pt.grad(weighted(m), theta)], [theta]) for m in (a, b, c, chained)]
    results = [[f(point[theta]) for f in functions] for _ in range(2)]
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("n_jobs", [1, 2, 5])
def test_results_are_not_overwritten_by_the_next_call(n_jobs):
    """Also where a single rank has all of the work, and its answer is the result."""
    theta = pt.dvector("theta", shape=(3,))
    total = map_rect(lambda theta, job: (theta**2).sum() * job, theta, np.ones(n_jobs)).sum()
    output = map_rect(lambda theta, job: theta * job, theta, np.ones(n_jobs))
    function = pytensor.function([theta], [output, pt.grad(total, theta)])
    first = function(np.ones(3))
    kept = [result.copy() for result in first]
    function(np.full(3, 7.0))
    assert_same_bits(first, kept)


def test_a_function_that_returns_the_same_arrays_each_time():
    value, by_theta = np.empty(2), np.empty((2, 2))

    @numeric_job(length=2)
    def reuses(theta, job):
        value[:] = theta * job
        by_theta[:] = np.diag([job, job])
        return value, by_theta, theta.copy()

    theta = pt.dvector("theta", shape=(2,))
    output = map_rect(reuses, theta, np.arange(4.0))
    both = [output, pt.grad((output**2).sum(), theta)]
    result = evaluate(both, {theta: np.array([1.0, 10.0])})
    assert_same_bits(result[0], np.outer(np.arange(4.0), [1.0, 10.0]).ravel())
    assert_same_bits(result[1], np.array([28.0, 280.0]))
