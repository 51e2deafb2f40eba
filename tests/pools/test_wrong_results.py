"""Numeric jobs that return something else than they should."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import JobError, map_rect, numeric_job

N = 6

WRONG = {
    "no tuple": (lambda theta, job: theta * job, r"should return \(value, d_theta, d_job\)"),
    "too many": (lambda theta, job: (1.0, 1.0, 1.0, 1.0), r"should return \(value, d_theta"),
    "vector value": (lambda theta, job: (np.ones(2), 1.0, 1.0), r"shape \(2,\).*scalar"),
    "d_theta": (lambda theta, job: (1.0, np.ones(2), 1.0), r"respect to theta of shape \(2,\)"),
    "d_job": (lambda theta, job: (1.0, 1.0, np.ones((1, 1))), r"respect to job of shape \(1, 1\)"),
    "no d_theta": (lambda theta, job: (1.0, None, 1.0), "no derivative with respect to theta"),
    "no d_job": (lambda theta, job: (1.0, 1.0), "no derivative with respect to job"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_results(wrong):
    function, message = WRONG[wrong]
    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    total = map_rect(numeric_job(function), theta, own, name="wrong").sum()
    with pytest.raises(JobError, match=message):
        pytensor.function([theta, own], pt.grad(total, [theta, own]))(1.0, np.ones(N))


@pytest.mark.parametrize(
    ("length", "value", "message"),
    [
        (3, np.ones(2), r"returned 2 values.*length=3"),
        (3, np.array(1.0), r"shape \(\).*a vector"),
        (lambda: 3, np.ones(2), r"shape \(2,\) for job 0.*\(3,\)"),
        (3, np.ones((3, 1)), r"shape \(3, 1\).*a vector"),
    ],
)
def test_wrong_lengths(length, value, message):
    f = numeric_job(derivatives=None, length=length)(lambda theta, job: value)
    with pytest.raises(JobError, match=message):
        map_rect(f, None, N).eval()


def test_wrong_structure_of_derivatives():
    theta = {"a": pt.dscalar("a"), "b": pt.dscalar("b")}
    for d_theta, message in [
        ({"a": 1.0, "c": 1.0}, r"d_theta .*has the keys \['c'\]"),
        ({"a": 1.0}, r"no derivative with respect to theta\['b'\]"),
        (1.0, "d_theta .*should be a dict"),
    ]:
        f = numeric_job(partial(lambda d, theta, job: (1.0, d), d_theta))
        total = map_rect(f, theta, N).sum()
        with pytest.raises(JobError, match=message):
            pytensor.function(list(theta.values()), pt.grad(total, theta["b"]))(1.0, 1.0)


def test_imaginary_part_that_is_lost():
    f = numeric_job(derivatives="complex-step")(lambda theta, job: abs(theta) * job)
    theta = pt.dscalar("theta")
    total = map_rect(f, theta, np.ones(N)).sum()
    with pytest.raises(JobError, match="imaginary part is lost"):
        pytensor.function([theta], pt.grad(total, theta))(1.0)
