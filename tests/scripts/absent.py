"""Rank 1 does not enter the pool; it starts MPI if the argument says so."""

import sys
import threading

import pymc_mpimap
from pymc_mpimap.pool.launch import launched_ranks

_, rank = launched_ranks()
if sys.argv[1] == "started":
    import mpi4py.MPI  # noqa: F401 # starts MPI
if rank == 1:
    threading.Event().wait(20)
    sys.exit(0)
with pymc_mpimap.MPIPool(start_timeout=3):
    print("ENTERED", flush=True)
