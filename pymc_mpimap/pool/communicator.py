"""The ranks: how they find each other, and how they end."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytensor

from pymc_mpimap.errors import PoolError
from pymc_mpimap.pool.controller import Controller
from pymc_mpimap.pool.doorbell import Doorbell
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.staff import Staff
from pymc_mpimap.pool.wait import Patience, wait_until
from pymc_mpimap.pool.worker import serve
from pymc_mpimap.version import __version__

__all__ = ["Crew", "join"]

HELLO, WELCOME = 32001, 32002
"""Tags on the user's communicator, used once, before there is a private one."""

_GRACE = 5.0
"""Seconds that rank 0, when a rank is missing, gets to say so and to end the others."""

STOP_TIMEOUT = 1.0
"""Seconds that workers get to hear of the end before they are aborted."""

# A child that finds these would take itself for a rank of this job and hang or abort.
_LAUNCHER_VARIABLES = (
    "PMI", "PMIX", "OMPI_", "PRTE", "OPAL", "HYDRA", "HYDI", "MPI_LOCAL", "I_MPI", "MPIR",
)  # fmt: skip


@dataclass(frozen=True)
class Process:
    """A rank's process; the number means something within its space of processes alone."""

    pid: int
    space: str


@dataclass
class Crew:
    """The ranks of one communicator, for the life of this process.

    Attributes
    ----------
    survives : bool
        Whether MPI and its launcher leave the other ranks alone when one dies.
    lost : bool
        Whether a rank was lost: MPI must then not be finalized, which can hang.
    """

    base: Any
    comm: Any
    hosts: tuple[str, ...]
    cores: tuple[frozenset[int], ...]
    processes: tuple[Process, ...]
    patience: Patience
    survives: bool
    left: bool = False
    lost: bool = False
    exit_code: int = 1
    _controller: Controller | None = field(default=None, repr=False)

    def controller(self) -> Controller:
        """Return the controller's end of the lines, made once: workers know its programs."""
        if self._controller is None:
            links = [Link(self.comm, rank, self.patience) for rank in range(1, len(self.hosts))]
            staff = Staff(links, self.hosts, self.patience, dismiss=self._dismiss)
            self._controller = Controller(staff)
        return self._controller

    def _dismiss(self, loss: Loss) -> bool:
        """End a rank that does not answer, if the others survive it; say whether it could be."""
        process = self.processes[loss.rank]
        if not self.survives or process.space != self.processes[0].space:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return True

    def serve(self) -> None:
        """Work for the controller until it says stop; end with it if it dies."""
        try:
            self.lost = serve(self.comm, self.patience, self.comm.rank)
        except Lost as lost:
            sys.stderr.write(
                f"pymc_mpimap: rank {self.comm.rank} on {self.hosts[self.comm.rank]} ends, because "
                f"rank 0 on {self.hosts[0]} {lost.losses[0].how}\n"
            )
            _abort(self, 1)
        self.left = True


_crews: list[Crew] = []


def join(comm: Any, timeout: float) -> Crew:
    """Meet the other ranks and return the crew; later calls return the same one.

    Raises
    ------
    PoolError
        If not all ranks arrive in time, or they run different versions.
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
            return crew
    try:
        portraits = _meet(MPI, base, timeout)
    except PoolError:
        # Ranks that never came would be waited for when MPI is finalized: after the traceback,
        # end them all.
        atexit.register(base.Abort, 1)
        raise
    comm = base.Dup()
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    crew = Crew(
        base,
        comm,
        tuple(portrait["host"] for portrait in portraits),
        tuple(portrait["cores"] for portrait in portraits),
        tuple(portrait["process"] for portrait in portraits),
        Patience(bell=Doorbell.hang(node, comm.rank, comm.size)),
        survives=_survives(MPI),
    )
    node.Free()
    _crews.append(crew)
    _end_together(crew)
    for name in list(os.environ):
        if name.startswith(_LAUNCHER_VARIABLES):
            del os.environ[name]
    return crew


def _self_portrait() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "cores": _cores(),
        "process": Process(os.getpid(), _space()),
        "versions": {
            "Python": ".".join(map(str, sys.version_info[:3])),
            "pymc_mpimap": __version__,
            "pytensor": pytensor.__version__,
            "numpy": np.__version__,
        },
    }


def _cores() -> frozenset[int]:
    """Return the cores that this rank may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _space() -> str:
    """Return what names the space of processes that this one's number belongs to."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return boot + str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname()


def _survives(mpi: Any) -> bool:
    """Whether the launcher was told to let ranks outlive others (Open MPI's --with-ft ulfm)."""
    told = os.environ.get("OMPI_MCA_mpi_ft_enable", "0")  # noqa: SIM112 # Open MPI spells it so
    return mpi.ERR_PROC_FAILED != mpi.ERR_UNKNOWN and told.lower() in {"1", "true", "yes"}


def _finalize_here() -> None:
    """Finalize MPI at the end of this process, unless a rank was lost; before MPI is started.

    mpi4py would do so later, at a moment where nothing can prevent it.
    """
    import mpi4py

    if mpi4py.rc.finalize is None:
        mpi4py.rc.finalize = False
        atexit.register(_finalize, os.getpid())


def _finalize(pid: int) -> None:
    """Finalize MPI, where that is known to end."""
    if os.getpid() == pid and "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if not MPI.Is_finalized() and not any(crew.lost for crew in _crews):
            MPI.Finalize()


def _meet(mpi: Any, comm: Any, timeout: float) -> list[dict[str, Any]]:
    """Exchange who is where. Point to point, so that a rank that never comes is named."""
    patience = Patience()
    portrait = _self_portrait()
    if comm.rank > 0:
        comm.isend(portrait, dest=0, tag=HELLO)
        _hear(comm, patience, timeout, "rank 0 did not enter MPIPool")
        # Rank 0 is there: it waits as long for the others, and it alone says who is missing.
        everyone: list[dict[str, Any]] = _hear(
            comm, patience, timeout + _GRACE, "rank 0, once in MPIPool, did not answer"
        )
        return everyone
    greetings = [comm.isend(None, dest=rank, tag=WELCOME) for rank in range(1, comm.size)]
    portraits: dict[int, dict[str, Any]] = {0: portrait}

    def all_here() -> bool:
        status = mpi.Status()
        while comm.iprobe(source=mpi.ANY_SOURCE, tag=HELLO, status=status):
            portraits[status.source] = comm.recv(source=status.source, tag=HELLO)
        return len(portraits) == int(comm.size)

    if not wait_until(all_here, patience, timeout):
        missing = [rank for rank in range(comm.size) if rank not in portraits]
        raise PoolError(
            f"the ranks {missing} did not enter MPIPool within {timeout:.0f} s: all ranks must "
            "run the same script up to that line"
        )
    _check_versions(portraits)
    everyone = [portraits[rank] for rank in range(comm.size)]
    for rank in range(1, comm.size):
        comm.send(everyone, dest=rank, tag=WELCOME)
    wait_until(lambda: all(greeting.test()[0] for greeting in greetings), patience, timeout)
    return everyone


def _hear(comm: Any, patience: Patience, timeout: float, else_said: str) -> Any:
    """Return what rank 0 says next, waiting for it with a bound."""
    request = comm.irecv(source=0, tag=WELCOME)
    heard: list[Any] = []

    def arrived() -> bool:
        done, value = request.test()
        if done:
            heard.append(value)
        return bool(done)

    if not wait_until(arrived, patience, timeout):
        raise PoolError(
            f"rank {comm.rank}: {else_said} within {timeout:.0f} s; did it end or raise before?"
        )
    return heard[0]


def _check_versions(portraits: dict[int, dict[str, Any]]) -> None:
    for rank, portrait in sorted(portraits.items()):
        for name, mine in portraits[0]["versions"].items():
            other = portrait["versions"][name]
            if other != mine:
                raise PoolError(
                    f"rank {rank} on {portrait['host']} has {name} {other}, but rank 0 on "
                    f"{portraits[0]['host']} has {mine}; results would differ. Use one environment "
                    "on all hosts"
                )


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

    def on_signal(number: int, _frame: Any) -> None:
        _abort(crew, 128 + number)

    previous = sys.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        previous(kind, error, trace)
        if issubclass(kind, KeyboardInterrupt) and os.getpid() == pid:
            # Python would end by sending itself SIGINT, which mpiexec reports as a crash. Do what
            # it does at exit, and leave with the status that a shell gives to Ctrl-C.
            crew.exit_code = 130
            atexit._run_exitfuncs()  # noqa: SLF001 # there is no public name for it
            _flush()
            os._exit(130)

    atexit.register(at_exit)
    sys.excepthook = uncaught
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    if crew.comm.rank > 0:
        # Rank 0 alone decides what Ctrl-C means: the sampler there returns its draws.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stopped(crew: Crew) -> bool:
    """Tell the workers to stop; say whether all did."""
    try:
        return crew.controller().staff.stop(STOP_TIMEOUT)
    except Exception:
        # Whatever it was, nobody may be left waiting.
        traceback.print_exc()
        return False


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _abort(crew: Crew, code: int) -> None:
    _flush()
    crew.comm.Abort(code)
