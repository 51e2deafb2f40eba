"""A program on several hosts, two ranks on each; see tests/test_hosts.py."""

import socket
import sys
import time

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap
from pymc_mpimap.pool import communicator

pytensor.config.mode = "FAST_COMPILE"
FAILS = -1.0


def load(job_id):
    """Return the number in the name of the host that the data are loaded on."""
    return float(socket.gethostname()[1:])


@pymc_mpimap.numeric_job(derivatives=None)
def where(theta, job, x_r):
    if theta == FAILS and job == 5:
        raise ValueError("no such job")
    return x_r


def job(theta, own, x_r):
    return (pt.exp(-own * x_r) * theta).sum() / 3


how = sys.argv[1]
options = {"time_limit": 2.0} if how in {"sampling", "stops"} else {}
communicator.SHORTLY_OUT_OF_REACH = 4.0
rng = np.random.default_rng(1)
data = [rng.normal(size=4 + j) for j in range(6)]
theta = pt.dscalar("theta")
with pymc_mpimap.MPIPool(**options) as pool:
    output = pymc_mpimap.map_rect(job, theta, np.arange(6.0), data)
    function = pytensor.function([theta], [output, pt.grad(output.sum(), theta)])

    def evaluate(point):
        """Return what the pool gives, compared with what is computed here."""
        results = function(point)
        with pymc_mpimap.SerialPool():
            expected = function(point)
        assert all(np.array_equal(*pair) for pair in zip(results, expected, strict=True))

    evaluate(0.5)
    if how == "looks":
        hosts = pymc_mpimap.map_rect(where, theta, np.arange(6.0), pymc_mpimap.local(load))
        print("LOADED ON", hosts.eval({theta: 1.0}).astype(int).tolist())
        links = pool._controller.staff.links
        print("BELLS", [link.rank for link in links if link._bell is not None])
        try:
            hosts.eval({theta: FAILS})
        except pymc_mpimap.JobError as error:
            print("FAILED", error.failure.rank, error.failure.host)
    print("READY", flush=True)
    if how == "raises":
        raise ValueError("the user's own error")
    if how in {"sampling", "stops"}:
        # For long enough that whoever is lost is noticed, and a little longer.
        end, k = None, 0
        while end is None or time.monotonic() < end:
            k += 1
            evaluate(k / 1000)
            if end is None and pool.report().lost:
                print("LOST", *pool.report().lost, sep="\n", flush=True)
                end = time.monotonic() + 3.0
    print("REPORT", pool.report())
print("the end", flush=True)
