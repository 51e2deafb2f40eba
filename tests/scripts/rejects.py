"""Reject proposals without a pool, in this process and in one that it starts."""

import multiprocessing

import numpy as np
import pytensor.tensor as pt

import pymc_mpimap


@pymc_mpimap.numeric_job
def fit(theta, job):
    if theta > job:
        raise ZeroDivisionError("no root")
    return theta * job, job


theta = pt.dscalar("theta")
output = pymc_mpimap.map_rect(fit, theta, np.arange(3.0), on_error="reject")


def evaluate(times):
    for _ in range(times):
        output.eval({theta: 1.5}, mode="FAST_COMPILE")


if __name__ == "__main__":
    evaluate(3)
    child = multiprocessing.get_context("fork").Process(target=evaluate, args=(5,))
    child.start()
    child.join()
