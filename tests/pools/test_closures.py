"""What f may close over, and outputs that depend on little else."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_mpimap import map_rect
from tests.helpers import (
    assert_equals_plain,
    assert_same_bits,
    compiled,
    evaluate,
    without_map_rect,
)

N = 5
RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize("size", [3, 512, 513, 5000])
def test_closure_over_an_array(size):
    array = RANDOM.normal(size=size)

    def job(theta, own):
        return (pt.constant(array) * theta).sum() * own

    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    plain = array.sum() * theta * own
    assert_equals_plain(map_rect(job, theta, own), plain, {theta: 0.3, own: RANDOM.normal(size=N)})


def test_closure_over_variables_of_the_model():
    scale, shift, own = pt.dvector("scale"), pt.dscalar("shift"), pt.dvector("own", shape=(N,))
    computed = pt.exp(shift) + scale.sum()

    def job(theta, own, x):
        # Both a variable and something computed from it outside; and computed within.
        return theta * own * computed + (scale**2).sum() * x + pt.log1p(shift**2)

    theta = pt.dscalar("theta")
    x = RANDOM.normal(size=N)
    output = map_rect(job, theta, own, x)
    plain = without_map_rect(job, theta, own, x)
    point = {theta: 0.3, own: RANDOM.normal(size=N), scale: RANDOM.normal(size=3), shift: 0.2}
    assert_equals_plain(output, plain, point, hessian=True)


def test_closure_alone():
    scale = pt.dscalar("scale")
    output = map_rect(lambda theta, job, x: scale * x, None, N, np.arange(N) + 1.0)
    value, gradient = evaluate([output, pt.grad(output.sum(), scale)], {scale: 3.0})
    assert_same_bits(value, 3.0 * np.arange(1.0, N + 1))
    assert gradient == 15


def test_output_that_depends_on_nothing():
    output = map_rect(lambda theta, job: pt.constant(1.5, dtype="float64"), None, N)
    assert_same_bits(evaluate(output, {}), np.full(N, 1.5))


def test_output_that_depends_on_theta_alone():
    theta = pt.dvector("theta")
    output = map_rect(lambda theta, job: theta[:2] * 2, theta, N)
    value, gradient = evaluate([output, pt.grad(output.sum(), theta)], {theta: np.arange(3.0)})
    assert_same_bits(value, np.tile([0.0, 2.0], N))
    assert_same_bits(gradient, np.array([2.0 * N, 2.0 * N, 0.0]))


def test_closure_over_data_of_the_model():
    with pm.Model() as model:
        data = pm.Data("data", np.array([1.0, 2.0]))
        theta = pm.Normal("theta")
        output = map_rect(
            lambda theta, job, x: theta * x * data.sum(), theta, N, np.arange(1.0, N + 1)
        )
        function = compiled(output, [theta])
        assert_same_bits(function(1.0), 3.0 * np.arange(1, N + 1))
        pm.set_data({"data": np.array([1.0, 2.0, 4.0])}, model)
        assert_same_bits(function(1.0), 7.0 * np.arange(1, N + 1))
