"""Run a program apart from its parent: ``python detach.py SIGNAL PROGRAM ARGUMENTS``.

Where no mpiexec has started a process, the MPI library itself starts a daemon when the first
worker is asked for: mpiexec (MPICH) or prte (Open MPI). It would be in the process group of rank
0. Then Ctrl-C ends it, and the workers with it; MPICH's kills its whole group, rank 0 included,
when a worker dies; and both may read what the user types. So it is given a session of its own and
nothing to read. It notices itself when rank 0 ends, and then removes its files. Workers do not
always notice when it ends: the kernel is told to kill them then.

This file is run by itself, by rank 0 for the workers, and from the scripts in ``detached/``, which
MPI finds in place of its daemons. It imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ["DETACHED"]

DETACHED = Path(__file__).resolve().parent / "detached"

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program."""
    # What the kernel is to send when the parent ends; 0 for nothing.
    number, program = int(sys.argv[1]), sys.argv[2]
    with contextlib.suppress(PermissionError):  # It leads a group already, as some workers do.
        os.setsid()
    # It was held back until here, where Ctrl-C does not reach any more.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(part for part in path if Path(part) != DETACHED)
    # By its name alone: prte takes a path for the wish to use another installation.
    os.execvp(program, sys.argv[2:])  # noqa: S606 # no shell is wanted


if __name__ == "__main__":
    main()
