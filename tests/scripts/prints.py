"""Jobs that print, in the way that the argument says; see tests/test_output.py."""

import ctypes
import logging
import os
import signal
import sys
import threading

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap

pytensor.config.mode = "FAST_COMPILE"
logging.basicConfig(format="%(message)s")  # keeps the sys.stderr of now


def print_much(number):
    for k in range(200):
        print("out", number, k, "x" * k)
        print("err", number, k, file=sys.stderr)
        ctypes.CDLL(None).printf(b"c %d %d\n", number, k)
    logging.getLogger("job").warning("logged %d", number)
    sys.stdout.buffer.write("θ\n".encode())
    if number > 1:
        print("begun", number, end="", flush=True)
        print()
    else:  # What rank 0 flushes is passed on at once: others may get in before it is a whole line.
        print("begun", number)
    if number == 5:
        print("never ended", end="", flush=True)


@pymc_mpimap.numeric_job(derivatives=None)
def job(theta, own):
    number = int(own)
    if how == "prints":
        print_much(number)
    elif how == "crashes on rank 0":
        if number == 0:
            ctypes.string_at(0)
        threading.Event().wait(60)  # until rank 0 is gone
    elif number == 5:
        print("the last word")
        print("the last error", file=sys.stderr)
        ctypes.CDLL(None).printf(b"the last of C\n")
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "crashes":
            ctypes.string_at(0)
    elif number == 0 and how != "prints":
        threading.Event().wait(60)  # until the job is aborted
    return theta * own


how = sys.argv[1]
with pymc_mpimap.MPIPool() as pool:
    theta = pt.dscalar("theta")
    function = pytensor.function([theta], pymc_mpimap.map_rect(job, theta, np.arange(6.0)))
    print(function(1.0))
