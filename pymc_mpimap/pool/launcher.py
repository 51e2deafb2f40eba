"""The launcher's processes above this rank: mpiexec, or what it has on this host.

Where a host cannot be reached, they wait without an end: mpiexec for the ranks there, and what it
has there for orders.

This file is also a program of its own, that outlives the rank. It is run without site-packages, to
be there at once, and so imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["end_launcher", "end_launcher_later"]

# A batch system's process, which may be above a rank too, sees to its end by itself.
_NAMES = {"hydra_pmi_proxy", "mpiexec", "mpiexec.hydra", "prted", "prterun", "prte"}


def _above() -> Iterator[int]:
    """Yield the process ids of the launcher's processes, from this rank upwards."""
    pid = os.getppid()
    with contextlib.suppress(OSError):  # No such files on this system, or it has just ended.
        while Path(f"/proc/{pid}/comm").read_text().strip() in _NAMES:
            yield pid
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def end_launcher() -> None:
    """End what the launcher has on this host."""
    for pid in list(_above()):
        with contextlib.suppress(ProcessLookupError):  # It ended with the one before.
            os.kill(pid, signal.SIGKILL)


def end_launcher_later(seconds: float, *, after_this_process: bool = False) -> None:
    """See to it that the launcher is gone so many seconds from now, whoever is gone by then.

    Parameters
    ----------
    seconds : float
    after_this_process : bool
        Whether they count from this process's end, which may take its time.
    """
    above = [str(pid) for pid in _above()]
    if above:
        first = str(os.getpid() if after_this_process else 0)
        subprocess.Popen(  # noqa: S603 # this interpreter and this file
            [sys.executable, "-I", "-S", __file__, str(seconds), first, *above],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _children(pid: int) -> list[int]:
    """Return what a process has started: for mpiexec, ssh to each host."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _ended(process: int, seconds: float | None = None) -> bool:
    """Wait for the end of a process, that of this pidfd; say whether it has come."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))


def _end_at(deadline: float, pid: int) -> None:
    with contextlib.suppress(OSError):  # It has ended, which is what is wanted.
        process = os.pidfd_open(pid)
        if not _ended(process, max(0.0, deadline - time.monotonic())):
            children = _children(pid)
            signal.pidfd_send_signal(process, signal.SIGKILL)
            for child in children:
                os.kill(child, signal.SIGKILL)


def _main(seconds: str, first: str, *above: str) -> None:
    if int(first):
        with contextlib.suppress(OSError):  # It has ended.
            _ended(os.pidfd_open(int(first)))
    deadline = time.monotonic() + float(seconds)
    for pid in above:
        _end_at(deadline, int(pid))


if __name__ == "__main__":
    _main(*sys.argv[1:])
