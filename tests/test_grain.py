"""How many jobs make a block where the user does not say it."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_mpimap import map_rect, numeric_job

N = 1000


def blocks(f, theta, jobs, *data, **options):
    """Return how many operations a job is said to take, and how many blocks there are."""
    (m,) = map_rect(f, theta, jobs, *data, **options).owner.op.maps
    return m.job.operations, m.blocks.count


def logistic(_theta, job, x):
    eta = x @ job
    return (eta - pt.softplus(eta)).sum()


def normal(theta, mu, y):
    return pm.logp(pm.Normal.dist(mu, theta), y).sum()


def test_operations_are_counted():
    jobs = pt.dmatrix("jobs", shape=(N, 5))
    # 20 x 5 for the product; 20 each for softplus, difference and sum.
    assert blocks(logistic, None, jobs, np.ones((N, 20, 5)))[0] == 160
    outer = blocks(lambda _, job: (pt.outer(job, job) @ pt.ones((5, 7))).sum(), None, jobs)
    assert outer[0] == 25 + 35 + 5 * 5 * 7 + 35
    assert blocks(lambda _, job: job[:2].sum(), None, jobs)[0] == 2
    assert blocks(normal, pt.dscalar("sigma"), pt.dvector(shape=(N,)), np.ones((N, 20)))[0] > 100


@pytest.mark.parametrize(("rows", "expected"), [(1, 16), (20, 16), (100, 40), (1000, 63)])
def test_small_blocks_are_fewer(rows, expected):
    jobs = pt.dmatrix("jobs", shape=(N, 5))
    assert blocks(logistic, None, jobs, np.ones((N, rows, 5)))[1] == expected
    assert blocks(logistic, None, jobs, np.ones((N, rows, 5)), grain_size=1)[1] == N


def test_what_cannot_be_counted_is_divided_as_much_as_is_useful():
    ragged = [np.ones(1 + j % 2) for j in range(N)]
    assert blocks(lambda _, job: job.sum(), None, ragged) == (None, 63)
    matrices = pt.dtensor3("jobs", shape=(N, 3, 3))
    assert blocks(lambda _, job: pt.linalg.slogdet(job)[1], None, matrices) == (None, 63)


def test_numeric_jobs_are_blocks_of_their_own():
    @numeric_job
    def job(_theta, own):
        return own, 1.0

    assert blocks(job, None, pt.dvector(shape=(N,))) == (None, N)


def test_few_jobs_are_not_grouped():
    assert blocks(lambda _, job: job.sum(), None, pt.dmatrix(shape=(7, 2)))[1] == 7
