"""MPIPool: one chain on many MPI ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, override

import numpy as np

from pymc_mpimap.errors import InputError, MapRectWarning, ParallelSamplingError, PoolError
from pymc_mpimap.pool.base import Pool
from pymc_mpimap.pool.controller import Controller
from pymc_mpimap.pool.launch import (
    POOL_OWNER,
    forked_under_mpi,
    under_launcher,
    under_mpiexec,
    under_open_mpi,
)
from pymc_mpimap.pool.mpi_library import started
from pymc_mpimap.pool.output import print_whole_lines
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.report import PoolReport, Recorder
from pymc_mpimap.pool.serial import note_left
from pymc_mpimap.pool.staff import Staff
from pymc_mpimap.pool.threads import one_thread_each, report_oversubscription
from pymc_mpimap.pool.wait import SPIN, Patience
from pymc_mpimap.pool.work import inside_job

if TYPE_CHECKING:
    from pymc_mpimap.pool.communicator import Crew
    from pymc_mpimap.pool.spawn import SpawnedCrew

__all__ = ["MPIPool"]


class MPIPool(Pool):
    """Puts all MPI ranks to work for the maps of one process.

    Rank 0, the controller, goes on past the ``with`` line; the other ranks serve there and end
    when rank 0 ends. Started without mpiexec (``python fit.py``), it evaluates in this process,
    or starts workers itself if `workers` says how many.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The ranks to use, by default all; a duplicate is made. All of its ranks must enter.
    workers : int, optional
        Start so many workers on this host, where no mpiexec has started any: in a notebook, or by
        ``python fit.py``. This process is rank 0 and does its part, so that with four cores it
        takes three. They take a second or two to start, do not run the script, and end when the
        ``with`` block is left. Enter it before anything imports ``mpi4py.MPI``. Linux only.
    spin : float
        Seconds that a waiting rank keeps asking before it falls asleep, to be woken on the same
        host and to look up from time to time elsewhere: longer answers faster after a pause of
        the sampler, shorter leaves the cores to others.
    threads : int or None
        How many threads BLAS and OpenMP may use on each rank; None leaves them alone, as does an
        environment variable such as OMP_NUM_THREADS.
    start_timeout : float
        Seconds to wait, on entering, for all ranks to arrive. Where MPI itself waits longer, to
        start a worker for example, the process is ended.
    time_limit : float or None
        Seconds that a rank may take longer than rank 0 for an evaluation. Who takes longer is lost:
        a job of it never returns, its process is stopped, or its host is cut off. Ten minutes at
        least where it has to compile or to load `local` data. By default there is no limit. Ranks
        of other hosts end when rank 0's was out of reach for so long, and for ten seconds at least.
    on_loss : {"continue", "end"}
        What follows when a rank is lost: the others do its jobs, with the same results, or an
        error is raised. Where MPI ends all ranks when one dies, as MPICH does, and Open MPI without
        ``--with-ft ulfm``, only ranks that do not answer can be gone on without. One of `workers`
        is replaced by another under Open MPI; under MPICH, all of them end with it, and rank 0 goes
        on alone.

    Raises
    ------
    InputError
        If a limit or a choice is none, or there are both a communicator and workers.
    PoolError
        On entering, if not all ranks arrive, or they run different code; inside a job; or if
        workers cannot be started: under mpiexec, or where MPI was started already.
    RankLostError
        If a rank is lost and `on_loss` is ``"end"``.
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

    In a notebook, with three workers besides the kernel::

        with mpimap.MPIPool(workers=3), model:
            trace = pm.sample(cores=1)
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        workers: int | None = None,
        spin: float = SPIN,
        threads: int | None = 1,
        start_timeout: float = 120.0,
        time_limit: float | None = None,
        on_loss: Literal["continue", "end"] = "continue",
    ):
        if time_limit is not None and not time_limit > 0:
            raise InputError(f"MPIPool(time_limit={time_limit!r}): a number of seconds, or None")
        if on_loss not in {"continue", "end"}:
            raise InputError(f"MPIPool(on_loss={on_loss!r}): 'continue' or 'end'")
        if workers is not None:
            _check_workers(workers, comm)
        self._comm, self._workers = comm, workers
        self._spawned: SpawnedCrew | None = None
        self._time_limit, self._goes_on = time_limit, on_loss == "continue"
        self._spin = spin
        self._threads = threads
        self._start_timeout = start_timeout
        self._lock = threading.RLock()
        self._pid = 0
        self._open = False
        self._controller: Controller | None = None
        self._recorder = Recorder([socket.gethostname()])

    @property
    def ranks(self) -> int:
        """The number of ranks that work, this one included."""
        return len(self._recorder.hosts)

    def __enter__(self) -> Self:
        if multiprocessing.parent_process() is not None:
            raise ParallelSamplingError(
                "MPIPool() was entered in a child process of multiprocessing, probably because a "
                "spawned chain imports your script again. Sample in one process: "
                "pm.sample(cores=1), or nuts_sampler='nutpie'; and put the script's body under "
                "'if __name__ == \"__main__\":'"
            )
        if forked_under_mpi():
            raise ParallelSamplingError(
                f"MPIPool() was entered in process {os.getpid()}, which was forked from a rank and "
                "shares its MPI: answers would be mixed up. Enter it before you fork, and sample "
                "in one process: pm.sample(cores=1), or nuts_sampler='nutpie'"
            )
        if inside_job():
            raise PoolError(
                "MPIPool() was entered inside a job, whose rank is at work for a pool already. "
                "Enter it once, around the model and pm.sample; a map_rect inside a job is "
                "evaluated by the job's own rank"
            )
        if self._controller is not None:
            raise PoolError("this MPIPool was entered already; make another one")
        self._restore_threads = one_thread_each(self._threads)
        hosts: tuple[str, ...] = (socket.gethostname(),)
        controller: Controller | None = None
        if self._workers is not None:
            self._spawned = spawned = self._spawn(self._workers)
            print_whole_lines(rank=0)
            hosts, controller, self._lock = spawned.hosts, spawned.controller, spawned.lock
            report_oversubscription(hosts, [place.cores for place in spawned.places])
        elif self._comm is not None or (under_launcher() and not started()):
            crew = self._join()
            hosts, controller, self._lock = crew.hosts, crew.controller(), crew.lock
            report_oversubscription(hosts, [place.cores for place in crew.places])
        if controller is not None:
            controller.staff.schedule.goes_on = self._goes_on
        self._pid = os.getpid()
        self._open = True
        os.environ[POOL_OWNER] = str(self._pid)
        self._controller = controller or Controller(Staff([], hosts, Patience()))
        self._recorder = Recorder(hosts)
        return super().__enter__()

    def _join(self) -> Crew:
        """Meet the ranks that mpiexec has started; on others than rank 0, serve and end."""
        from pymc_mpimap.pool.communicator import join

        kills_at_ctrl_c = under_open_mpi()
        crew = join(self._comm, self._start_timeout)
        crew.patience.spin, crew.patience.limit = self._spin, self._time_limit
        if crew.comm.size > 1:
            print_whole_lines(crew.comm.rank)
        if crew.comm.rank > 0:
            crew.serve()
            sys.exit(0)
        if kills_at_ctrl_c:
            # Whether anybody can press it is not known here: mpiexec stands in between. And
            # it does the same when the queueing system tells it to end.
            warnings.warn(
                "Open MPI's mpiexec ends all ranks as soon as you press Ctrl-C, so that "
                "pm.sample cannot return the draws made so far. Keep them on disk: "
                "pm.sample(..., trace=pymc_mpimap.disk_trace(path))",
                MapRectWarning,
                stacklevel=3,
            )
        if self._time_limit is not None and crew.blind:
            warnings.warn(
                f"the ranks {list(crew.blind)} cannot find out when they are cut off from "
                "rank 0, as MPI does not connect them by TCP: they may then have to be ended "
                "by hand",
                MapRectWarning,
                stacklevel=3,
            )
        return crew

    def _spawn(self, workers: int) -> SpawnedCrew:
        """Start workers beside this process."""
        from pymc_mpimap.pool.spawn import SpawnedCrew

        patience = Patience(self._spin, limit=self._time_limit)
        try:
            _check_alone(workers)
            return SpawnedCrew(
                workers, patience, threads=self._threads, timeout=self._start_timeout
            )
        except BaseException:
            self._restore_threads()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.environ.pop(POOL_OWNER, None)
        self._restore_threads()
        self._open = False
        if self._spawned is not None:
            self._spawned.end()
        elif self.ranks > 1:
            note_left(self.ranks)
        self._recorder.tell()
        super().__exit__(kind, error, trace)

    @override
    def evaluate(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._controller is None or not self._open:
            raise PoolError(
                f"this MPIPool {'was left' if self._controller else 'is not open'}; use it as "
                "'with MPIPool():'"
            )
        if os.getpid() != self._pid:
            raise ParallelSamplingError(
                f"process {os.getpid()} was forked from process {self._pid} and tried to use its "
                "MPI ranks, whose answers would be mixed up. Sample in one process: "
                "pm.sample(cores=1), or nuts_sampler='nutpie', whose chains are threads and take "
                "turns on the pool"
            )
        with self._lock:
            outputs = self._controller.evaluate(program, inputs, self._recorder)
            self._recorder.gave(program, inputs, outputs)
            return outputs

    def report(self) -> PoolReport:
        """Return what the pool has done so far."""
        return self._recorder.report()


def _check_workers(workers: Any, comm: Any) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(
            f"MPIPool(workers={workers!r}): at least one, the number of processes to start beside "
            "this one; without any, jobs are evaluated here by MPIPool() as well"
        )
    if comm is not None:
        raise InputError(
            f"MPIPool(comm, workers={workers}): either the ranks of a communicator do the jobs, or "
            "workers that are started for this pool"
        )


def _check_alone(workers: int) -> None:
    if under_mpiexec():
        raise PoolError(
            f"MPIPool(workers={workers}) starts its workers itself, but mpiexec or another "
            "launcher has started this process and says which ranks there are: leave workers out, "
            "or start the script by python alone"
        )
