"""Waking a rank of the same host that waits for a message.

A rank that has waited for long falls asleep until its bell is rung, which MPI cannot do. The bell
is a named pipe, and who is asleep stands in a byte of shared memory, so that nothing is written
for those who are awake. Both are files in a private directory, gone as soon as all have opened
them. What is written says nothing: the message is MPI's.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pymc_mpimap.pool.protocol import gathered_numbers

__all__ = ["Doorbell"]

# Where there is one: no disk is touched. The folder in it is this user's alone.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 # used through mkdtemp


class Doorbell:
    """A rank's bell, and those of the ranks that it may wake.

    Parameters
    ----------
    folder : Path
        Where `make` has put the files.
    rank : int
        This rank; the others are those that it exchanges messages with.
    others : sequence of int
    """

    def __init__(self, folder: Path, rank: int, others: Sequence[int]):
        self._rank = rank
        # Opened for both directions: opening does not wait, and reading never finds an end.
        flags = os.O_RDWR | os.O_NONBLOCK
        self._own = os.open(_pipe(folder, rank), flags)
        self._pipes = {other: os.open(_pipe(folder, other), flags) for other in others}
        asleep = os.open(_asleep(folder), os.O_RDWR)
        self._asleep = mmap.mmap(asleep, 0)
        os.close(asleep)
        self._poll = select.poll()
        self._poll.register(self._own, select.POLLIN)

    @classmethod
    def hang(cls, node: Any, rank: int, ranks: int) -> Self | None:
        """Make the bells of a host; all of its ranks call this.

        Parameters
        ----------
        node : mpi4py.MPI.Comm
            The ranks of this host.
        rank, ranks : int
            This rank among all, and how many there are.

        Returns
        -------
        Doorbell or None
            None where there is nobody to wake, or a file cannot be made or opened.
        """
        everyone = gathered_numbers(node, rank)
        if len(everyone) == 1 or 0 not in everyone:
            return None
        folder: Path | None = None
        if rank == 0:
            with contextlib.suppress(OSError):
                folder = _make(everyone, ranks)
        folder = node.bcast(folder, root=everyone.index(0))
        bell = None
        if folder is not None:
            with contextlib.suppress(OSError):
                others = [other for other in everyone if other != rank] if rank == 0 else [0]
                bell = cls(folder, rank, others)
        complete = all(gathered_numbers(node, int(bell is not None)))
        if rank == 0 and folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return bell if complete else None

    def reaches(self, rank: int) -> bool:
        """Whether that rank can be woken."""
        return rank in self._pipes

    def ring(self, rank: int) -> None:
        """Wake a rank that is asleep; to be called when its message is on the way."""
        if self._asleep[rank]:
            # A full pipe wakes as well.
            with contextlib.suppress(BlockingIOError):
                os.write(self._pipes[rank], b"!")

    def sleep(self, seconds: float) -> bool:
        """Sleep until the bell rings, for so many seconds at most.

        Returns
        -------
        bool
            Whether it rang.
        """
        if not self._poll.poll(1000 * seconds):
            return False
        with contextlib.suppress(BlockingIOError):
            os.read(self._own, 4096)
        return True

    def asleep(self, yes: bool) -> None:
        """Say whether this rank wants to be woken."""
        self._asleep[self._rank] = yes


def _make(everyone: Sequence[int], ranks: int) -> Path:
    where = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="pymc_mpimap-", dir=where))
    for rank in everyone:
        os.mkfifo(_pipe(folder, rank), mode=0o600)
    _asleep(folder).write_bytes(bytes(ranks))
    return folder


def _pipe(folder: Path, rank: int) -> Path:
    return folder / str(rank)


def _asleep(folder: Path) -> Path:
    return folder / "asleep"
