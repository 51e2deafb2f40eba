"""Print how many threads the numerical libraries of each rank may use."""

import sys

import numpy as np
import pytensor.tensor as pt
import threadpoolctl

import pymc_mpimap

threads = {"one": 1, "left": None}[sys.argv[1]]


@pymc_mpimap.numeric_job(derivatives=None)
def most_threads(theta, job):
    return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info())


with pymc_mpimap.MPIPool(threads=threads) as pool:
    output = pymc_mpimap.map_rect(most_threads, pt.constant(0.0), np.zeros(pool.ranks))
    print("THREADS", output.eval(mode="FAST_COMPILE").astype(int).tolist(), flush=True)
