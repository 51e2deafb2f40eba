"""A program on ranks to which something happens; see tests/test_faults.py.

It evaluates until so many ranks as its first argument says are lost, and a little longer. Each
result is compared with a serial one.
"""

import os
import signal
import sys
import time
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap
from pymc_mpimap.pool import tree

pytensor.config.mode, pytensor.config.cxx = "FAST_COMPILE", ""
expected_losses, how = int(sys.argv[1]), sys.argv[2]
WORKERS = int(os.environ.get("TEST_WORKERS", "0")) or None  # to start without mpiexec
N_JOBS, CRASHES, HANGS = 12, -1.0, -2.0
LIMIT = 3.0
"""Seconds: a busy machine keeps a rank that is well from answering for more than one."""
BAD = 0 if "first" in how else N_JOBS - 1
if "tree" in how:
    tree.FLAT, tree.FAN_OUT = 1, 2
warnings.simplefilter("always", mpimap.MapRectWarning)


@mpimap.numeric_job(derivatives=None)
def job(theta, own):
    if theta[0] == CRASHES and own == BAD:
        if "exits" not in how:
            os.kill(os.getpid(), signal.SIGSEGV)
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 3:
            os._exit(7)
    while theta[0] == HANGS and own == BAD:
        time.sleep(1)
    time.sleep(1e-4)  # Without any work, a pool could find that it goes quicker without a rank.
    return float(theta.sum() * own)


@mpimap.numeric_job(derivatives=None)
def loading(theta, _own, loaded):
    return float(theta.sum() * loaded)


def slowly(own):
    """Load what a job reads, in more time than there is for an evaluation."""
    time.sleep(LIMIT + 0.2)
    return np.array(float(own))


@mpimap.numeric_job(derivatives=None)
def process(theta, own):
    return float(os.getpid())


theta = pt.dvector("theta")
called, jobs = job, [np.arange(float(N_JOBS))]
given = jobs
if "loads" in how:
    called, jobs, given = loading, [3, mpimap.local(slowly)], [3, np.arange(3.0)]
function = pytensor.function([theta], mpimap.map_rect(called, theta, *jobs))
serially = pytensor.function([theta], mpimap.map_rect(called, theta, *given))
size = 100_000 if "large" in how else 3
with mpimap.MPIPool(
    workers=WORKERS,
    time_limit=LIMIT if "limit" in how else None,
    on_loss="end" if "ends" in how else "continue",
) as pool:
    processes = mpimap.map_rect(process, None, np.arange(float(pool.ranks)))
    print("RANKS", *map(int, pytensor.function([], processes)()), flush=True)
    function(np.ones(size))
    print("READY", os.getpid(), flush=True)
    if "job" in how:
        try:
            function(np.full(size, HANGS if "hangs" in how else CRASHES))
        except mpimap.PoolError as error:
            print("GAVE UP", error, flush=True)
    after = i = 0
    while after < 10:
        i += 1
        point = np.arange(size) + float(i)
        result = function(point)
        with mpimap.SerialPool():
            assert np.array_equal(result, serially(point)), f"evaluation {i}"
        if len(pool.report().lost) >= expected_losses:
            after += 1
            if after == 1:
                print("LOST", expected_losses, flush=True)
            if after == 5 and "comes back" in how:
                sys.stdin.readline()
    print(pool.report())
print("the end", flush=True)
