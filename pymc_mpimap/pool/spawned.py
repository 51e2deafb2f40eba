"""The program of a worker that rank 0 has started: ``python spawned.py``, by MPI's Spawn alone.

MPI is started before the package is imported, which takes longer: rank 0 waits for the one before
it starts the next worker, and so all of them import at the same time.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from typing import Any

__all__ = ["COME", "WELCOME"]

COME, WELCOME = 32001, 32002
"""Tags of what a worker says when it starts, and of what it is told."""


def main() -> None:
    """Meet rank 0, and serve."""
    # Rank 0 alone decides what Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from mpi4py import MPI

    comm = MPI.Comm.Get_parent()
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    comm.Send(os.getpid().to_bytes(8, "little"), dest=0, tag=COME)
    welcome = comm.recv(source=0, tag=WELCOME)
    # Functions of the user's own modules travel by name, and are looked for where rank 0 found
    # them.
    sys.path[:] = welcome["path"]
    os.chdir(welcome["folder"])
    for number, path in welcome["outputs"].items():
        _print_to(number, path)
    _serve(comm, welcome)


def _print_to(number: int, path: str) -> None:
    """Let stdout or stderr be what it is for rank 0; a socket cannot be opened, and stays."""
    with contextlib.suppress(OSError):
        # Of a pipe that nobody reads, the end would be waited for.
        output = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK)
        os.set_blocking(output, True)
        os.dup2(output, number)
        os.close(output)


def _end_with(pid: int) -> None:
    """End when rank 0 has ended.

    MPI tells it too, unless a process that rank 0 has forked holds its connections open.
    """
    from pymc_mpimap.pool.process import Process

    with contextlib.suppress(ProcessLookupError):
        Process(pid).join()
    os._exit(1)


def _serve(comm: Any, welcome: dict[str, Any]) -> None:
    from pymc_mpimap.pool.commons import holds
    from pymc_mpimap.pool.doorbell import Doorbell
    from pymc_mpimap.pool.launch import forget_launcher
    from pymc_mpimap.pool.loss import Lost
    from pymc_mpimap.pool.mpi_library import nameless_segments
    from pymc_mpimap.pool.output import drain, print_whole_lines
    from pymc_mpimap.pool.portrait import Portrait
    from pymc_mpimap.pool.threads import one_thread_each
    from pymc_mpimap.pool.wait import Patience
    from pymc_mpimap.pool.work import inside_job
    from pymc_mpimap.pool.worker import serve

    def break_off(_number: int, _frame: Any) -> None:
        if inside_job():
            sys.exit("broken off: rank 0 ends")

    signal.signal(signal.SIGUSR1, break_off)
    threading.Thread(target=_end_with, args=(welcome["zero"],), daemon=True).start()
    forget_launcher()
    nameless_segments()
    one_thread_each(welcome["threads"])
    rank, bell, trial = welcome["rank"], welcome["bell"], welcome["trial"]
    print_whole_lines(rank)
    # First whether memory can be common, then the portrait.
    near = trial is not None and holds(*trial)
    comm.Send(bytes([near]) + Portrait.of_this_process().encode(), dest=0, tag=COME)
    patience = Patience(
        welcome["spin"], None if bell is None else Doorbell.at(bell, rank), welcome["limit"]
    )
    try:
        serve(comm, patience, rank, welcome["seal"])
    except Lost:
        # Nobody is left to end with.
        os._exit(1)
    if welcome["finalize"]:
        # Looking for garbage at Python's end takes half a second.
        gc.freeze()
        # For MPICH, all else is a crash, and the end of the others too. What it has to do it does
        # when the C library ends the process.
        from mpi4py import MPI

        MPI.Finalize()
        return
    # Open MPI would wait for rank 0 to finalize too.
    drain()
    os._exit(0)


if __name__ == "__main__":
    main()
