"""Maps within jobs: they are the rank's own work."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.raise_op import Assert

from pymc_mpimap import current_pool, map_rect, numeric_job
from tests.helpers import CountingPool, assert_equals_plain, in_modes, ranks, rejects


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


def reasons(name):
    """Return how often each job was rejected, or not finite, and what was said, by function."""
    report = current_pool().report()
    return {
        reason.function: (reason.text, reason.jobs)
        for reason in (*report.reasons, *report.odd_values)
        if name in reason.function
    }


def fails_within(theta, job, bad):
    if bad:
        raise ZeroDivisionError(f"in job {bad}")
    return theta * job, job, theta


@rejects
@pytest.mark.parametrize("grain_size", [1, 4])
@in_modes("FAST_COMPILE", "NUMBA")
def test_what_is_rejected_within_a_job_is_reported(grain_size, mode):
    """Though the job's own value is finite; once, though jobs of a block are evaluated again."""
    name = f"outer by {grain_size} on {ranks()} in {mode}"

    def inner(theta, job, flags):
        rejecting = {"on_error": "reject", "name": "inner"}
        return map_rect(numeric_job(fails_within), theta, job + np.ones(3), flags, **rejecting)

    def middle(theta, job, flags):
        return pt.logaddexp(inner(theta, job, flags).sum(), 0.0)

    def outer(theta, job, flags):
        total = map_rect(middle, theta, np.ones(1), flags[None], name="middle").sum()
        return Assert("outer")(total + job, pt.lt(job, 6.0))

    own, flags = pt.dvector("own", shape=(7,)), np.zeros((7, 3), int)
    flags[1, 2] = flags[5, 0] = 7
    output = map_rect(outer, 0.0, own, flags, on_error="reject", grain_size=grain_size, name=name)
    function = pytensor.function([own], output)
    for last in (5.0, 6.0):
        values = function(np.r_[np.zeros(6), last])
        assert np.flatnonzero(np.isneginf(values)).tolist() == ([] if last < 6 else [6])
    assert reasons(name) == {
        name: ("AssertionError: outer", {6: 1}),
        f"inner within middle within {name}": (
            "ZeroDivisionError: in job 7",
            {2: 2, 0: 2},
        ),
    }


@pytest.mark.parametrize("summed", [False, True])
def test_values_within_a_job_that_are_not_finite_are_reported(summed):
    name = f"outer of nan, {summed} on {ranks()}"

    def inner(theta, job):
        return theta / job

    def outer(theta, job):
        values = map_rect(inner, theta, job * np.array([1.0, 1.0, 0.0]), name="inner")
        value = values.sum() if summed else values[2]
        return pt.switch(pt.isnan(value), 1.0, value)

    theta = pt.dscalar("theta")
    assert map_rect(outer, theta, np.ones(7), name=name).sum().eval({theta: 0.0}) == 7.0
    assert reasons(name) == {f"inner within {name}": ("nan", {2: 7})}
