"""Workers that rank 0 has started itself, where no mpiexec did."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymc_mpimap.errors import MapRectWarning, PoolError
from pymc_mpimap.pool import detach, spawned
from pymc_mpimap.pool.commons import Trial
from pymc_mpimap.pool.controller import Controller
from pymc_mpimap.pool.doorbell import Doorbell
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.mpi_library import limited, start_library
from pymc_mpimap.pool.portrait import Portrait, check_agreement, new_seal
from pymc_mpimap.pool.process import Process
from pymc_mpimap.pool.staff import Staff, countdown
from pymc_mpimap.pool.wait import Patience, wait_until

__all__ = ["SpawnedCrew"]

_STOP_TIMEOUT = 1.0
"""Seconds that a worker gets to end its job, then to break it off, and then to end."""

_END_TIMEOUT = 10.0
"""Seconds that a worker that was told to stop gets to end: Python takes up to one, and more where
the machine is busy."""

_PROVEN = 20
"""Evaluations after which a worker that took a lost one's place is replaced as well: where one dies
at once again, the jobs are the reason, and each of their ranks would."""


@dataclass
class _Worker:
    """A worker and what leads to it.

    Attributes
    ----------
    hired_at : int
        How many evaluations there had been; negative for a first worker.
    stopped : bool
        Whether it has said that it will end.
    """

    comm: Any
    process: Process
    hired_at: int
    stopped: bool = False


class SpawnedCrew:
    """Rank 0, which is this process, and the workers that it has started beside it.

    Parameters
    ----------
    workers : int
    patience : Patience
        How to wait for them; its bell is set here.
    threads : int or None
        See `MPIPool`.
    timeout : float
        Seconds that each step of starting may take.

    Attributes
    ----------
    hosts : tuple of str
    places : tuple of Place
        Where each rank runs.
    controller : Controller
    lock : RLock
        Who has it may talk to the workers.

    Raises
    ------
    PoolError
        If there is no MPI library that can start workers, or they do not come.
    """

    def __init__(self, workers: int, patience: Patience, *, threads: int | None, timeout: float):
        self._library = start_library(timeout)
        self._patience, self._threads, self._timeout = patience, threads, timeout
        self._bell = patience.bell = Doorbell.over(workers + 1)
        self._portraits = {0: Portrait.of_this_process()}
        self._seal, self._trial = new_seal(self._portraits[0]), Trial.made()
        self._workers: dict[int, _Worker] = {}
        self._gone: list[_Worker] = []
        self._ending = False
        self._pid = os.getpid()
        self.lock = threading.RLock()
        self.controller: Controller
        atexit.register(self.end)
        try:
            # MPI starts them one by one; they meet this rank, and import, at the same time.
            for rank in range(1, workers + 1):
                self._workers[rank] = self._start(rank, hired_at=-_PROVEN)
            links = [self._meet(rank) for rank in self._workers]
        except BaseException:
            self.end()
            raise
        self.places = tuple(self._portraits[rank].place for rank in range(workers + 1))
        self.hosts = tuple(place.host for place in self.places)
        self._staff = Staff(
            links, self.hosts, patience, replace=self._replace, dismiss=self._dismiss
        )
        self.controller = Controller(self._staff)

    def _start(self, rank: int, hired_at: int) -> _Worker:
        """Start a worker's process, and MPI in it."""
        mpi = self._library.mpi
        command = [
            *("-IS", detach.__file__, str(signal.SIGKILL.value)),
            *(sys.executable, "-P", *(f"-W{option}" for option in sys.warnoptions)),
            spawned.__file__,
        ]
        with _held_back(signal.SIGINT), self._library.surroundings(), limited(self._timeout):
            try:
                comm = mpi.COMM_SELF.Spawn(sys.executable, args=command, maxprocs=1)
            except mpi.Exception as error:
                raise PoolError(
                    f"MPI ({self._library.name}) could not start worker {rank}: {error}. Where "
                    "the site's MPI does not allow it, start the script by mpiexec, without "
                    "workers="
                ) from error
        comm.Set_errhandler(mpi.ERRORS_RETURN)
        pid = int.from_bytes(self._hear(comm, rank, lambda: False), "little")
        worker = _Worker(comm, _process_here(pid, rank), hired_at)
        welcome = {
            "path": sys.path,
            "folder": str(Path.cwd()),
            "rank": rank,
            "zero": os.getpid(),
            "outputs": {number: _output(number) for number in (1, 2)},
            "bell": None if self._bell is None else self._bell.address(rank),
            "trial": None if self._trial is None else self._trial.said,
            "seal": self._seal,
            "threads": self._threads,
            "spin": self._patience.spin,
            "limit": self._patience.limit,
            "finalize": not self._library.survives,
        }
        comm.send(welcome, dest=0, tag=spawned.WELCOME)
        return worker

    def _meet(self, rank: int) -> Link:
        """Hear what a worker says of itself; return the link to it."""
        worker = self._workers[rank]
        near, *portrait = self._hear(worker.comm, rank, worker.process.ended)
        self._portraits[rank] = Portrait.decode(bytes(portrait))
        check_agreement({0: self._portraits[0], rank: self._portraits[rank]})
        return Link(
            worker.comm,
            rank,
            self._patience,
            place=0,
            seal=self._seal,
            near=bool(near),
            ended=worker.process.ended,
        )

    def _hear(self, comm: Any, rank: int, ended: Callable[[], bool]) -> bytes:
        """Wait for what a worker says before there is a link to it."""
        mpi = self._library.mpi
        status = mpi.Status()

        def said() -> bool:
            return bool(comm.Iprobe(source=0, tag=spawned.COME, status=status)) or ended()

        in_time = wait_until(said, Patience(), self._timeout)
        if not comm.Iprobe(source=0, tag=spawned.COME, status=status):
            how = (
                "ended while it started; its output says why"
                if in_time
                else (f"did not come within {self._timeout:.0f} s")
            )
            raise PoolError(f"worker {rank}, which this process has started, {how}")
        message = bytearray(status.Get_count(mpi.BYTE))
        comm.Recv(message, source=0, tag=spawned.COME)
        return bytes(message)

    def _replace(self, loss: Loss) -> Link | None:
        """Start another worker in a lost one's place, where that can be done."""
        rank = loss.rank
        evaluation = self._staff.schedule.evaluation
        before = self._workers.pop(rank, None)
        if before is not None:
            # MPI may still know its communicator.
            self._gone.append(before)
            if self._library.survives:  # If not, the others would end with it: see `_dismiss`.
                before.process.kill()
            if evaluation - before.hired_at < _PROVEN:
                return None
        if not self._library.survives or self._ending:
            return None
        with Uninterrupted():
            try:
                self._workers[rank] = self._start(rank, hired_at=evaluation)
                return self._meet(rank)
            except (PoolError, self._library.mpi.Exception) as error:
                warnings.warn(
                    f"no other worker could take the place of rank {rank}: {error}",
                    MapRectWarning,
                    stacklevel=2,
                )
                return None

    def _dismiss(self, loss: Loss) -> bool:
        """End a worker that does not answer, if the others survive it; say whether it could be."""
        if not (self._library.survives or self._ending):
            return False
        self._workers[loss.rank].process.kill()
        return True

    def end(self) -> None:
        """End the workers; nothing of them is left then."""
        if self._ending or os.getpid() != self._pid:  # What was forked has no workers.
            return
        self._ending = True
        atexit.unregister(self.end)
        # Another thread may be at an evaluation, which it is let to end; or a job does not return.
        free = self.lock.acquire(timeout=_END_TIMEOUT)
        try:
            with Uninterrupted():
                try:
                    if free and hasattr(self, "controller"):
                        self._say_goodbye()
                finally:
                    self._end_processes()
        finally:
            if free:
                self.lock.release()

    def _end_processes(self) -> None:
        for worker in (*self._workers.values(), *self._gone):
            if not worker.process.ended(_END_TIMEOUT if worker.stopped else 0.0):
                self._library.lost = True
                worker.process.kill()
                worker.process.ended(_STOP_TIMEOUT)
            worker.process.close()
        self._trial = None
        if self._bell is not None:
            self._bell.close()

    def _say_goodbye(self) -> None:
        left = countdown(_STOP_TIMEOUT)
        for link in self._staff.present():
            with contextlib.suppress(Lost):
                if not link.settle(left()):
                    # It breaks its job off, answers, and hears what follows.
                    self._workers[link.rank].process.kill(signal.SIGUSR1)
        self._staff.stop(_STOP_TIMEOUT)
        if self._staff.schedule.losses:
            self._library.lost = True
        for link in self._staff.present():
            self._workers[link.rank].stopped = True


def _process_here(pid: int, rank: int) -> Process:
    """Return a worker's process, which must be one of this host: it may be killed."""
    try:
        process = Process(pid)
        if spawned.__file__ in Path(f"/proc/{pid}/cmdline").read_text():
            return process
        process.close()
    except OSError:
        pass
    raise PoolError(
        f"MPI has started worker {rank} on another host. To use several hosts, start the script by "
        "mpiexec, without workers="
    )


def _output(number: int) -> str:
    """Return where a worker finds this process's stdout or stderr.

    It prints there itself: Open MPI's daemon passes on what the first worker prints, and of the
    others nothing.
    """
    with contextlib.suppress(OSError):  # It is closed: the worker keeps its own.
        if stat.S_ISREG(os.fstat(number).st_mode):
            # Who opens the file anew writes at a place of its own. So all write at the end.
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
            fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_APPEND)
    return f"/proc/{os.getpid()}/fd/{number}"


@contextlib.contextmanager
def _held_back(number: int) -> Iterator[None]:
    """Keep a signal from this thread, and from the processes that it starts, for a while."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
