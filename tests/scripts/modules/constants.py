"""A module of a user's own, with variables that its jobs read."""

import numpy as np

import pymc_mpimap as mpimap

SCALE = 2.0
OFFSET = 0.0
WEIGHTS = np.ones(3)
CALLS = 0


def scale_of(_unused):
    return SCALE


@mpimap.numeric_job
def scaled(t, _j):
    return scale_of(None) * t, scale_of(None)


def weights_of(_unused):
    return WEIGHTS


@mpimap.numeric_job
def weighted(t, _j):
    return weights_of(None).sum() * t, weights_of(None).sum()


def count():
    global CALLS  # noqa: PLW0603 # as users' modules do
    CALLS += 1


@mpimap.numeric_job
def counting(t, _j):
    count()
    return t, 1.0
