"""MPIPool: one chain on many MPI ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, override

import numpy as np

from pymc_mpimap.errors import ParallelSamplingError, PoolError
from pymc_mpimap.pool.base import Pool
from pymc_mpimap.pool.controller import Controller
from pymc_mpimap.pool.launch import POOL_OWNER, under_launcher
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.report import PoolReport, Recorder
from pymc_mpimap.pool.threads import one_thread_each, report_oversubscription
from pymc_mpimap.pool.wait import SPIN
from pymc_mpimap.pool.worker import serve

__all__ = ["MPIPool"]


class MPIPool(Pool):
    """Puts all MPI ranks to work for the maps of one process.

    Rank 0, the controller, goes on past the ``with`` line; the other ranks serve there and end
    when rank 0 ends. Started without mpiexec (``python fit.py``), it evaluates in this process.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks to use, by default all; a duplicate is made. All of its ranks must enter.
    spin : float
        Seconds that a waiting rank keeps asking before it falls asleep, to be woken on the same
        host and to look up from time to time elsewhere: longer answers faster after a pause of
        the sampler, shorter leaves the cores to others.
    threads : int or None
        How many threads BLAS and OpenMP may use on each rank; None leaves them alone, as does an
        environment variable such as OMP_NUM_THREADS.
    start_timeout : float
        Seconds to wait, on entering, for all ranks to arrive.

    Raises
    ------
    PoolError
        On entering, if not all ranks arrive, or they run different versions.
    ParallelSamplingError
        If a child process (a chain of ``pm.sample(cores=4)``) uses the pool.

    Examples
    --------
    ``mpiexec -n 8 python fit.py`` with this in fit.py; or ``python fit.py``, as here:

    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> def square(theta, job):
    ...     return theta[0] + job**2
    >>> theta = pt.dvector("theta")
    >>> with mpimap.MPIPool() as pool:
    ...     values = mpimap.map_rect(square, theta, np.arange(4.0)).eval({theta: [1.0]})
    >>> values
    array([ 1.,  2.,  5., 10.])
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        spin: float = SPIN,
        threads: int | None = 1,
        start_timeout: float = 120.0,
    ):
        self._comm = comm
        self._spin = spin
        self._threads = threads
        self._start_timeout = start_timeout
        self._lock = threading.RLock()
        self._pid = 0
        self._controller: Controller | None = None
        self._recorder = Recorder([socket.gethostname()])

    @property
    def ranks(self) -> int:
        """How many ranks work, this one included."""
        return len(self._recorder.hosts)

    def __enter__(self) -> Self:
        if multiprocessing.parent_process() is not None:
            raise ParallelSamplingError(
                "MPIPool() was entered in a child process of multiprocessing, probably because a "
                "spawned chain imports your script again. Sample in one process: "
                "pm.sample(cores=1), or nuts_sampler='nutpie'; and put the script's body under "
                "'if __name__ == \"__main__\":'"
            )
        if self._controller is not None:
            raise PoolError("this MPIPool was entered already; make another one")
        self._restore_threads = one_thread_each(self._threads)
        hosts: tuple[str, ...] = (socket.gethostname(),)
        controller: Controller | None = None
        if self._comm is not None or under_launcher():
            from pymc_mpimap.pool.communicator import join

            crew = join(self._comm, self._start_timeout)
            patience = crew.patience(self._spin)
            if crew.comm.rank > 0:
                serve(crew.comm, patience, crew.comm.rank)
                crew.leave()
                sys.exit(0)
            hosts, controller = crew.hosts, crew.controller(patience)
            report_oversubscription(crew.hosts, crew.cores)
        self._pid = os.getpid()
        os.environ[POOL_OWNER] = str(self._pid)
        self._controller = controller or Controller([], hosts)
        self._recorder = Recorder(hosts)
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.environ.pop(POOL_OWNER, None)
        self._restore_threads()
        super().__exit__(kind, error, trace)

    @override
    def evaluate(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._controller is None:
            raise PoolError("this MPIPool is not open; use it as 'with MPIPool():'")
        if os.getpid() != self._pid:
            raise ParallelSamplingError(
                f"process {os.getpid()} was forked from process {self._pid} and tried to use its "
                "MPI ranks, whose answers would be mixed up. Sample in one process: "
                "pm.sample(cores=1), or nuts_sampler='nutpie', whose chains are threads and take "
                "turns on the pool"
            )
        with self._lock:
            return self._controller.evaluate(program, inputs, self._recorder)

    def report(self) -> PoolReport:
        """Return what the pool has done so far."""
        return self._recorder.report()
