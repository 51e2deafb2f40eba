"""Parameters and data of any length: none, another in the next call, megabytes."""

import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.gradient import pullback

from pymc_mpimap import map_rect, numeric_job
from tests.helpers import (
    assert_close,
    assert_equals_plain,
    assert_same_bits,
    compiled,
    evaluate,
    without_map_rect,
)


def test_changed_length_of_parameters():
    def job(theta, own):
        return theta.sum() * (own**2).sum()

    theta, own = pt.dvector("theta"), pt.dmatrix("own", shape=(5, None))
    output = map_rect(job, theta, own)
    function = compiled([output, *pt.grad(output.sum(), [theta, own])], [theta, own])
    for n_theta, n_own in [(2, 3), (4, 3), (4, 1), (0, 2), (2, 0), (2, 3)]:
        a, b = np.arange(1.0, n_theta + 1), np.arange(5.0 * n_own).reshape(5, n_own)
        value, d_theta, d_own = function(a, b)
        assert_close(value, a.sum() * (b**2).sum(axis=1))
        assert_close(d_theta, np.full(n_theta, (b**2).sum()))
        assert_close(d_own, 2 * a.sum() * b)


@pytest.mark.parametrize("empty", ["theta", "jobs", "x_r", "x_i", "all"])
@pytest.mark.parametrize("kind", ["traced", "numeric"])
def test_zero_length_inputs_of_jobs(kind, empty):
    sizes = dict.fromkeys(["theta", "jobs", "x_r", "x_i"], 2)
    sizes = dict.fromkeys(sizes, 0) if empty == "all" else {**sizes, empty: 0}

    def traced(theta, job, x_r, x_i):
        return theta.sum() ** 2 + job.sum() ** 3 + x_r.sum() + x_i.sum()

    @numeric_job
    def numeric(theta, job, x_r, x_i):
        value = traced(theta, job, x_r, x_i)
        d_theta = np.full(theta.shape, 2 * theta.sum())
        return value, d_theta, np.full(job.shape, 3 * job.sum() ** 2)

    theta, own = pt.dvector("theta"), pt.dmatrix("own", shape=(6, sizes["jobs"]))
    x_r = np.arange(6.0 * sizes["x_r"]).reshape(6, sizes["x_r"])
    x_i = np.arange(6 * sizes["x_i"]).reshape(6, sizes["x_i"])
    point = {
        theta: np.arange(1.0, 1 + sizes["theta"]),
        own: 0.5 * np.arange(6.0 * sizes["jobs"]).reshape(6, sizes["jobs"]),
    }
    output = map_rect(traced if kind == "traced" else numeric, theta, own, x_r, x_i)
    assert_equals_plain(output, without_map_rect(traced, theta, own, x_r, x_i), point)


def test_large_messages():
    n, size = 10, 30_000
    theta, own = pt.dvector("theta"), pt.dmatrix("own", shape=(n, size))

    def job(theta, own, x):
        return theta * own + x

    random = np.random.default_rng(2)
    x = random.normal(size=(n, size))
    point = {theta: random.normal(size=size), own: random.normal(size=(n, size))}
    output = map_rect(job, theta, own, x)
    cotangent = random.normal(size=n * size)
    value, d_theta, d_own = evaluate(
        [output, *pullback([output], [theta, own], [pt.constant(cotangent)])], point
    )
    cotangent = cotangent.reshape(n, size)
    assert_same_bits(value, (point[theta] * point[own] + x).ravel())
    assert_close(d_theta, (cotangent * point[own]).sum(axis=0))
    assert_same_bits(d_own, cotangent * point[theta])
