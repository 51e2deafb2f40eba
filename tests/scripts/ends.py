"""A program on MPI ranks that ends in the way its argument names; see tests/test_programs.py."""

import os
import sys
import time

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap

pytensor.config.mode = "FAST_COMPILE"


@pymc_mpimap.numeric_job(derivatives=None)
def job(theta, own):
    if theta == LONG:
        time.sleep(60)
    if theta == LEAVES:
        sys.exit(5)
    return theta * own


LONG, LEAVES = 60.0, -1.0
WORKERS = int(os.environ.get("TEST_WORKERS", "0")) or None  # to start without mpiexec
how = sys.argv[1]
with pymc_mpimap.MPIPool(workers=WORKERS) as pool:
    theta = pt.dscalar("theta")
    function = pytensor.function([theta], pymc_mpimap.map_rect(job, theta, np.arange(6.0)))
    function(1.0)
    try:  # From here on, a signal can come.
        print("READY", flush=True)
        while how == "evaluates and is interrupted":
            function(1.0)
    except KeyboardInterrupt:
        if how != "evaluates and is interrupted":
            raise
        print("interrupted", function(3.0))
    if how == "exit 0":
        sys.exit(0)
    if how == "exit 3":
        sys.exit(3)
    if how == "raises":
        raise ValueError("the user's own error")
    if how == "job exits":
        try:
            function(LEAVES)
        except pymc_mpimap.JobError as error:
            print(error.failure.exception)
        print(function(2.0))
    if how == "evaluates":
        while True:
            function(1.0)
    if how == "long job":
        function(LONG)
    if how == "idle":
        sys.stdin.readline()
    if how == "vanishes":
        os._exit(7)
print("the end of", how, flush=True)
