"""The ranks: how they find each other, and how they end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pymc_mpimap.errors import PoolError
from pymc_mpimap.pool.commons import neighbours
from pymc_mpimap.pool.controller import Controller
from pymc_mpimap.pool.doorbell import Doorbell
from pymc_mpimap.pool.launch import forget_launcher
from pymc_mpimap.pool.launcher import end_launcher, end_launcher_later
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.meeting import meet
from pymc_mpimap.pool.module_state import Snapshot
from pymc_mpimap.pool.output import drain
from pymc_mpimap.pool.portrait import Place
from pymc_mpimap.pool.process import ending
from pymc_mpimap.pool.staff import Staff
from pymc_mpimap.pool.wait import Patience
from pymc_mpimap.pool.watchdog import Watchdog, addresses, connected
from pymc_mpimap.pool.worker import serve

__all__ = ["Crew", "join"]

_ABORTING = 5.0
"""Seconds that ending takes at most, before this process ends by a signal."""

STOP_TIMEOUT = 1.0
"""Seconds that workers get to hear of the end before they are aborted."""

OUT_OF_REACH = 900.0
"""Seconds after which a rank ends that is cut off from rank 0: by then TCP gives up, too."""

SHORTLY_OUT_OF_REACH = 10.0
"""Seconds for which that may be so at least, whatever the pool's time limit is."""

_PARTING = 5.0
"""Seconds that mpiexec gets to end after the ranks, before it is ended."""


@dataclass
class Crew:
    """The ranks of one communicator, for the life of this process.

    Attributes
    ----------
    places : tuple of Place
        Where each rank runs.
    seal : int
        What all orders in this crew carry.
    lock : RLock
        Who has it may talk to the other ranks: all pools of the crew take turns.
    survives : bool
        Whether MPI and its launcher leave the other ranks alone when one dies.
    addresses : frozenset of str
        Of rank 0's host, where MPI connects to it by TCP.
    blind : tuple of int
        The ranks that cannot find out that they are cut off from rank 0.
    lost : bool
        Whether a rank was lost: MPI must then not be finalized, which can hang.
    """

    base: Any
    comm: Any
    places: tuple[Place, ...]
    seal: int
    patience: Patience
    near: frozenset[int]
    survives: bool
    addresses: frozenset[str]
    blind: tuple[int, ...]
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    left: bool = False
    lost: bool = False
    exit_code: int = 1
    _controller: Controller | None = field(default=None, repr=False)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host of each rank."""
        return tuple(place.host for place in self.places)

    def controller(self) -> Controller:
        """Return the controller's end of the lines, made once: workers know its programs."""
        if self._controller is None:
            links = [
                Link(
                    self.comm,
                    rank,
                    self.patience,
                    seal=self.seal,
                    near=rank in self.near,
                    ended=self._ending(rank),
                )
                for rank in range(1, len(self.places))
            ]
            staff = Staff(links, self.hosts, self.patience, dismiss=self._dismiss, start=Snapshot())
            self._controller = Controller(staff)
        return self._controller

    def _dismiss(self, loss: Loss) -> bool:
        """End a rank that does not answer, if the others survive it; say whether it could be."""
        if not self.survives or self._far(loss.rank):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.places[loss.rank].pid, signal.SIGKILL)
        return True

    def _ending(self, rank: int) -> Callable[[], bool] | None:
        """Return what tells whether a rank's process has ended, if it can be seen from here.

        Open MPI does not tell of one that ends by itself, and with a status that is not 0.
        """
        here = self.places[self.comm.rank]
        place = self.places[rank]
        return ending(place.pid) if self.survives and place.space == here.space else None

    def _far(self, rank: int) -> bool:
        """Return whether a rank's process cannot be seen from rank 0, as on another host."""
        return self.places[rank].space != self.places[0].space

    def serve(self) -> None:
        """Work for the controller until it says stop; end with it if it dies."""
        limit = self.patience.limit
        watchdog = Watchdog(
            None if self._far(self.comm.rank) else self.places[0].pid,
            self.addresses,
            OUT_OF_REACH if limit is None else max(limit, SHORTLY_OUT_OF_REACH),
            self._without_controller,
        )
        try:
            self.lost = serve(self.comm, self.patience, self.comm.rank, self.seal, self._ending)
        except Lost as lost:
            watchdog.call_off()
            self._without_controller(lost.losses[0].how)
        watchdog.call_off()
        self.left = True
        # A worker has nothing left to do: looking for garbage at Python's end takes half a second.
        gc.freeze()

    def _without_controller(self, how: str, cut_off: bool = False) -> None:
        """End this rank, and what else can be reached from here."""
        _end_soon()
        try:
            sys.stderr.write(
                f"pymc_mpimap: rank {self.comm.rank} on {self.hosts[self.comm.rank]} ends, because "
                f"rank 0 on {self.hosts[0]} {how}\n"
            )
            if cut_off:
                drain()
                end_launcher()
            else:
                if self._far(self.comm.rank):  # From there, mpiexec may be out of reach, too.
                    end_launcher_later(_PARTING)
                _abort(self, 1)
        finally:  # Whoever would read the message may be gone.
            os._exit(1)

    def end_launcher(self, *, after_this_process: bool) -> None:
        """See to it that mpiexec ends also where a host cannot be reached."""
        losses = () if self._controller is None else self._controller.staff.schedule.losses
        if any(self._far(loss.rank) for loss in losses):
            end_launcher_later(_PARTING, after_this_process=after_this_process)


_crews: list[Crew] = []


def join(comm: Any, timeout: float) -> Crew:
    """Meet the other ranks and return the crew; later calls return the same one.

    Raises
    ------
    PoolError
        If not all ranks arrive in time, they run different code, or serve another pool.
    """
    # MPI starts on all ranks together or not at all, and waits for them without a limit, where
    # Python can do nothing: this thread of C ends the process, and shows where it stood.
    starting = "mpi4py.MPI" not in sys.modules
    if starting:
        _finalize_here()
        faulthandler.dump_traceback_later(timeout, exit=True, file=sys.__stderr__ or 2)
    from mpi4py import MPI

    if starting:
        faulthandler.cancel_dump_traceback_later()
    base = MPI.COMM_WORLD if comm is None else comm
    for crew in _crews:
        if crew.base == base:
            if crew.left:
                raise PoolError(
                    "MPIPool was entered on a rank that was told to stop, as rank 0 had ended: "
                    "other ranks leave 'with MPIPool():' by SystemExit, which must not be caught"
                )
            return crew
        if MPI.Group.Intersection(crew.base.Get_group(), base.Get_group()).size > 1:
            raise PoolError(
                "MPIPool was entered with a communicator of which other ranks serve the MPIPool "
                "that was entered before, and so never come: use one communicator for both, or "
                "two that have rank 0 alone in common"
            )
    try:
        places, seal = meet(MPI, base, timeout)
    except Exception:
        # Ranks that never came, or wait for an answer, would be waited for when MPI is finalized:
        # after the traceback, end them all.
        atexit.register(base.Abort, 1)
        atexit.register(drain)
        raise
    comm = base.Dup()
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    reachable: frozenset[str] = comm.bcast(addresses())
    blind = np.zeros(comm.size, dtype=np.uint8)
    far = places[comm.rank].space != places[0].space
    comm.Allgather(np.array([far and not connected(reachable)], dtype=np.uint8), blind)
    crew = Crew(
        base,
        comm,
        places,
        seal,
        Patience(bell=Doorbell.hang(node, comm.rank, comm.size)),
        neighbours(node, comm.rank),
        survives=_survives(MPI),
        addresses=reachable,
        blind=tuple(np.flatnonzero(blind).tolist()),
    )
    node.Free()
    _crews.append(crew)
    _end_together(crew)
    forget_launcher()
    return crew


def _survives(mpi: Any) -> bool:
    """Return whether the launcher lets ranks outlive others (Open MPI's --with-ft ulfm)."""
    told = os.environ.get("OMPI_MCA_mpi_ft_enable", "0")  # noqa: SIM112 # Open MPI spells it so
    return mpi.ERR_PROC_FAILED != mpi.ERR_UNKNOWN and told.lower() in {"1", "true", "yes"}


def _finalize_here() -> None:
    """Finalize MPI at the end of this process, unless a rank was lost; before MPI is started.

    mpi4py would do so in any case.
    """
    import mpi4py

    if mpi4py.rc.finalize is None:
        mpi4py.rc.finalize = False
        atexit.register(_finalize_last, os.getpid())


def _finalize_last(pid: int) -> None:
    """Let MPI be finalized when all of Python is gone, as mpi4py does.

    All ranks wait there for each other. What a rank did after that could still be at it when rank 0
    ends with a status that is not 0, and mpiexec would kill it, and report that instead.
    """
    if os.getpid() == pid and _to_be_finalized():
        from mpi4py import MPI

        finalize = ctypes.CDLL(MPI.__file__).MPI_Finalize
        ctypes.pythonapi.Py_AtExit(ctypes.cast(finalize, ctypes.c_void_p))


def _finalize_now() -> None:
    """Finalize MPI before this process ends without Python's own end."""
    if _to_be_finalized():
        from mpi4py import MPI

        MPI.Finalize()


def _to_be_finalized() -> bool:
    """Return whether MPI is to be finalized, and is known to return from it."""
    if "mpi4py.MPI" not in sys.modules or any(crew.lost for crew in _crews):
        return False
    from mpi4py import MPI

    return not MPI.Is_finalized()


def _end_together(crew: Crew) -> None:
    """See to it that however one rank ends, all end, and nothing is left running."""
    pid = os.getpid()

    def at_exit() -> None:
        # Registered after mpi4py's own, and so run before MPI is finalized.
        if os.getpid() == pid and not crew.left:
            crew.left = True
            # A worker that was not told to leave ends the others with it.
            if crew.comm.rank > 0 or not _stopped(crew):
                _abort(crew, crew.exit_code)
            crew.lost = bool(crew.controller().staff.schedule.losses)
            crew.end_launcher(after_this_process=True)

    def on_signal(number: int, _frame: Any) -> None:
        if os.getpid() == pid:
            _abort(crew, 128 + number)
        # A child that was forked has inherited this: it ends alone, as it would without it.
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    previous = sys.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        previous(kind, error, trace)
        if issubclass(kind, KeyboardInterrupt) and os.getpid() == pid:
            # Python would end by sending itself SIGINT, which mpiexec reports as a crash. Do what
            # it does at exit, and leave with the status that a shell gives to Ctrl-C.
            crew.exit_code = 130
            atexit._run_exitfuncs()  # noqa: SLF001 # there is no public name for it
            drain()
            _finalize_now()
            os._exit(130)

    atexit.register(at_exit)
    sys.excepthook = uncaught
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    if crew.comm.rank > 0:
        # Rank 0 alone decides what Ctrl-C means: the sampler there returns its draws.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stopped(crew: Crew) -> bool:
    """Tell the workers to stop; say whether all did, which they cannot while a thread uses them."""
    if not crew.lock.acquire(timeout=STOP_TIMEOUT):
        return False
    try:
        staff = crew.controller().staff
        if staff.at_large and not crew.survives:
            return False  # A worker that ends before the abort would decide on mpiexec's status.
        return staff.stop(STOP_TIMEOUT)
    except Exception:
        # Whatever it was, nobody may be left waiting.
        traceback.print_exc()
        return False
    finally:
        crew.lock.release()


def _abort(crew: Crew, code: int) -> None:
    drain()
    crew.end_launcher(after_this_process=False)
    # The launcher may be gone, or be waiting for this process to end.
    _end_soon()
    crew.comm.Abort(code)


def _end_soon() -> None:
    """Let the system end this process in a while, whatever it is waiting for then."""
    faulthandler.unregister(signal.SIGALRM)
    with contextlib.suppress(ValueError):  # Not in the main thread: then it is as it was.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, _ABORTING)
