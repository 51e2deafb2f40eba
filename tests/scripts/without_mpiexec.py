"""A program that starts its workers itself, twice, and looks around; see tests/test_spawned.py.

It can be read from stdin too: no worker imports it.
"""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap

pytensor.config.mode, pytensor.config.cxx = "FAST_COMPILE", ""
N_JOBS = 7


@mpimap.numeric_job(derivatives=None)
def job(theta, own):
    if theta.size == N_JOBS:
        print("job", own, flush=True)
    return float(theta @ np.cos(own + np.arange(theta.size)))


@mpimap.numeric_job(derivatives=None)
def process(theta, own):
    return float(os.getpid())


def build(job, size):
    theta = pt.dvector("theta")
    jobs = np.arange(float(size))
    return pytensor.function([theta], mpimap.map_rect(job, theta, jobs))


def compare(function, size):
    """Compare the bits with serial ones, for inputs that change."""
    for k in range(3):
        point = np.linspace(k, 1.0, size)
        result = function(point)
        with mpimap.SerialPool():
            assert np.array_equal(result, function(point)), size


def enter_in_a_child():
    try:
        with mpimap.MPIPool(workers=1):
            return "entered"
    except mpimap.ParallelSamplingError:
        return f"refused, with MPI: {'mpi4py.MPI' in sys.modules}"


def environment():
    """Return what other programs find, of which MPI may have told Python nothing."""
    told = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    return {line.partition("=")[0] for line in told.splitlines()}


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def main():
    before = environment()
    function = build(job, N_JOBS)
    for workers in (2, 1):
        with mpimap.MPIPool(workers=workers) as pool:
            assert pool.ranks == workers + 1
            pids = build(process, workers + 1)(np.ones(1)).astype(int).tolist()
            assert pids[0] == os.getpid()
            assert len(set(pids)) == workers + 1
            for size in (3, 50_000):  # the latter in memory that all have in common
                compare(function, size)
            if workers == 2:
                function(np.ones(N_JOBS))
            if sys.argv[1:] == ["child"]:
                with multiprocessing.get_context("spawn").Pool(1) as children:
                    print("CHILD", children.apply(enter_in_a_child))
        assert all(ended(pid) for pid in pids[1:]), "a worker is left"
    added = [name for name in environment() - before if name.startswith(("PMI_", "OMPI_", "PRTE"))]
    print("ADDED", sorted(added))
    sys.exit(3)


if __name__ == "__main__":
    main()
