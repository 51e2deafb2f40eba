"""One PyMC chain on many MPI ranks: `map_rect` and the pools that evaluate it."""

import pymc_mpimap.dispatch.numba
import pymc_mpimap.inner_graphs
import pymc_mpimap.ode.dispatch
import pymc_mpimap.ode.merge
import pymc_mpimap.rewriting
import pymc_mpimap.samplers.guards
import pymc_mpimap.summing  # noqa: F401 # they register themselves with PyTensor and Python
from pymc_mpimap.api import map_rect
from pymc_mpimap.draws.disk import disk_trace, read_draws
from pymc_mpimap.errors import (
    DerivativeError,
    InputError,
    JobError,
    MapRectError,
    MapRectWarning,
    ParallelSamplingError,
    PoolError,
    RankLostError,
)
from pymc_mpimap.job.derivatives import FiniteDifferences, numeric_job
from pymc_mpimap.local_data import local
from pymc_mpimap.ode.op import SolveIVP
from pymc_mpimap.ode.solve import Doses, Steps, solve_ivp
from pymc_mpimap.op import MapRectOp
from pymc_mpimap.pool.base import Pool
from pymc_mpimap.pool.current import current_pool
from pymc_mpimap.pool.mpi import MPIPool
from pymc_mpimap.pool.serial import SerialPool
from pymc_mpimap.version import __version__

__all__ = [
    "DerivativeError",
    "Doses",
    "FiniteDifferences",
    "InputError",
    "JobError",
    "MPIPool",
    "MapRectError",
    "MapRectOp",
    "MapRectWarning",
    "ParallelSamplingError",
    "Pool",
    "PoolError",
    "RankLostError",
    "SerialPool",
    "SolveIVP",
    "Steps",
    "__version__",
    "current_pool",
    "disk_trace",
    "local",
    "map_rect",
    "numeric_job",
    "read_draws",
    "solve_ivp",
]
