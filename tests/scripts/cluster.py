"""A program on several hosts; see tests/test_hosts.py.

Once it has been sent a line, it evaluates until a rank is lost, and a little longer. Each result is
compared with a serial one.
"""

import socket
import sys
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap
from pymc_mpimap.pool import communicator

pytensor.config.mode, pytensor.config.cxx = "FAST_COMPILE", ""
how = sys.argv[1]
FAILS = -1.0
# So that a test need not wait for longer.
communicator.SHORTLY_OUT_OF_REACH, communicator._PARTING = 4.0, 2.0
warnings.simplefilter("always", mpimap.MapRectWarning)


def load(job_id):
    """Return the number in the name of the host that the data are loaded on."""
    return float(socket.gethostname()[1:])


@mpimap.numeric_job(derivatives=None)
def where(theta, job, x_r):
    if theta == FAILS and job == 5:
        raise ValueError("no such job")
    return x_r


def job(theta, own, x_r):
    return (pt.exp(-own * x_r) * theta).sum() / 3


rng = np.random.default_rng(1)
data = [rng.normal(size=4 + j) for j in range(6)]
theta = pt.dscalar("theta")
output = mpimap.map_rect(job, theta, np.arange(6.0), data)
function = pytensor.function([theta], [output, pt.grad(output.sum(), theta)])
hosts = mpimap.map_rect(where, theta, np.arange(6.0), mpimap.local(load))
with mpimap.MPIPool(time_limit=3.0 if how == "limit" else None) as pool:
    print("LOADED ON", *hosts.eval({theta: 1.0}).astype(int), flush=True)
    try:
        hosts.eval({theta: FAILS})
    except mpimap.JobError as error:
        print("FAILED ON", error.failure.host, flush=True)
    after = i = 0
    while after < 100:
        point = i / 1000
        results = function(point)
        with mpimap.SerialPool():
            expected = function(point)
        assert all(map(np.array_equal, results, expected)), f"evaluation {i}"
        if i == 0:
            print("READY", flush=True)
            sys.stdin.readline()
        if i == 10:
            print("EVALUATES", flush=True)
        i += 1
        after += bool(pool.report().lost)
    print(pool.report())
print("the end", flush=True)
