"""Data and inputs that change between evaluations, and those that do not."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import map_rect, numeric_job
from tests.helpers import assert_same_bits, compiled

N = 5
RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize("kind", ["traced", "numeric"])
@pytest.mark.parametrize("argument", ["theta", "jobs", "x_r", "x_i"])
def test_set_data(argument, kind):
    def traced(theta, job, x_r, x_i):
        return theta.sum() + job.sum() + x_r.sum() + x_i.sum()

    @numeric_job
    def numeric(theta, job, x_r, x_i):
        return traced(theta, job, x_r, x_i), np.ones_like(theta), np.ones_like(job)

    values = {"theta": np.ones(2), "jobs": np.ones((N, 2)), "x_r": np.ones((N, 2))}
    values["x_i"] = np.ones((N, 2), dtype=int)
    with pm.Model():
        data = pm.Data("data", values[argument])
        f = traced if kind == "traced" else numeric
        function = compiled(map_rect(f, **{**values, argument: data}), [])
        assert_same_bits(function(), np.full(N, 8.0))
        pm.set_data({"data": 3 * values[argument]})
        assert_same_bits(function(), np.full(N, 12.0))
        # Another width; the number of jobs stays.
        wider = np.ones((*values[argument].shape[:-1], 5), dtype=values[argument].dtype)
        pm.set_data({"data": wider})
        assert_same_bits(function(), np.full(N, 11.0))
        pm.set_data({"data": values[argument]})
        assert_same_bits(function(), np.full(N, 8.0))


def test_data_changed_in_place_between_evaluations():
    """The array that PyTensor holds is changed without telling anybody."""
    array = np.arange(1.0, N + 1)
    data = pytensor.shared(array, borrow=True)
    function = compiled(map_rect(lambda theta, job, x: x * 2, None, N, data), [])
    assert_same_bits(function(), 2 * np.arange(1.0, N + 1))
    held = data.get_value(borrow=True, return_internal_type=True)
    held[3] = 100.0
    assert_same_bits(function(), np.array([2.0, 4.0, 6.0, 200.0, 10.0]))
    held[:] = -1.0
    assert_same_bits(function(), np.full(N, -2.0))


def test_input_changed_in_place_between_evaluations():
    theta, own = pt.dvector("theta"), pt.dvector("own", shape=(N,))
    function = pytensor.function([theta, own], map_rect(lambda t, j: t.sum() * j, theta, own))
    a, b = np.ones(2), np.arange(float(N))
    assert_same_bits(function(a, b), 2.0 * np.arange(N))
    a[1] = 2.0
    assert_same_bits(function(a, b), 3.0 * np.arange(N))
    b[0] = 1.0
    assert_same_bits(function(a, b), 3.0 * np.array([1.0, 1.0, 2.0, 3.0, 4.0]))


def test_constant_data_are_those_of_the_call_to_map_rect():
    """A constant is not looked at again: changing the user's array later has no effect."""
    array, ragged = np.arange(1.0, N + 1), [np.ones(k + 1) for k in range(N)]

    def job(theta, own, x_r, x_i):
        return x_r + x_i.sum()

    function = compiled(map_rect(job, None, N, array, ragged), [])
    array[:] = 77.0
    ragged[0][:] = 77.0
    assert_same_bits(function(), 2.0 * np.arange(1, N + 1))


def test_results_of_two_evaluations_are_two_arrays():
    theta = pt.dscalar("theta")
    output = map_rect(lambda theta, job: theta * job, theta, np.arange(1.0, N + 1))
    function = pytensor.function([theta], [output, pt.grad(output.sum(), theta)])
    first = function(1.0)
    function(2.0)
    assert_same_bits(first, [np.arange(1.0, N + 1), np.array(15.0)])
