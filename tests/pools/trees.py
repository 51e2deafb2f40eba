"""What is evaluated through a tree of ranks, and what tells of the tree."""

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_mpimap import SerialPool, current_pool, map_rect
from pymc_mpimap.pool.protocol import Layout
from tests.helpers import assert_same_bits

N = 23


def ranks():
    """Return how many ranks work: one under a serial pool."""
    return getattr(current_pool(), "ranks", 1)


def layouts(orders):
    """Return the last layout that each rank was sent."""
    return {rank: order for rank, order in orders if isinstance(order, Layout)}


def check(function, *points):
    for point in points:
        result = function(*point)
        with SerialPool():
            assert_same_bits(result, function(*point))


def stacked(theta, job, x):
    return theta.sum() * job + pt.exp(-((x * theta) ** 2)).sum()


def build(scale, n=N, **options):
    """Return a function of shared and per-job inputs: values and gradients."""
    theta, jobs = pt.dvector("theta", shape=(2,)), pt.dvector("jobs", shape=(n,))
    held = scale * np.random.default_rng(n).normal(size=(n, 2))
    values = map_rect(stacked, theta, jobs, held, **options)
    total = values.sum()
    return pytensor.function([theta, jobs], [values, total, *pt.grad(total, [theta, jobs])])


def points(number, n=N):
    random = np.random.default_rng(3)
    return [(random.normal(size=2), random.normal(size=n)) for _ in range(number)]
