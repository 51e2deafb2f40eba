"""Maps within jobs: they are the rank's own work."""

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_mpimap import map_rect, numeric_job
from tests.helpers import CountingPool, assert_equals_plain


def test_nested_call_in_a_traced_job():
    inner_data = np.array([1.0, 2.0, 3.0])

    def inner(theta, job, x):
        return theta * x

    def outer(theta, job):
        return map_rect(inner, theta * job, 3, inner_data).sum() ** 2

    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(7,))
    output = map_rect(outer, theta, own)
    plain = 36 * (theta * own) ** 2
    point = {theta: 0.7, own: np.arange(7.0)}
    assert_equals_plain(output, plain, point, hessian=True)


@numeric_job
def nests(theta, job):
    x = pt.dscalar("x")
    inner = map_rect(lambda x, j, d: x * d, x, 3, np.array([1.0, 2.0, 3.0]))
    total = inner.sum()
    value, gradient = pytensor.function([x], [total, pt.grad(total, x)])(theta * job)
    return value, gradient * job, gradient * theta


def test_nested_call_in_a_numeric_job():
    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(7,))
    output = map_rect(nests, theta, own)
    point = {theta: np.array(0.7), own: np.arange(7.0)}
    assert_equals_plain(output, 6 * theta * own, point)


def test_nested_call_does_not_go_to_the_pool():
    """On a rank a map within a job is the rank's own work: it would wait for itself."""
    with CountingPool() as pool:
        map_rect(nests, pt.constant(1.0, dtype="float64"), np.arange(4.0)).eval()
    assert pool.calls == 1
