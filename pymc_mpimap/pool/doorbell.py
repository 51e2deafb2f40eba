"""Waking a rank of the same host that waits for a message.

A rank that has waited for long falls asleep until its bell is rung, which MPI cannot do. The bell
is a named pipe, and who is asleep stands in a byte of shared memory, so that nothing is written
for those who are awake. Both are files in a private directory, gone as soon as all have opened
them; who is started later opens what rank 0 has open. What is written says nothing: the message is
MPI's.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pymc_mpimap.pool.protocol import gathered_numbers

__all__ = ["Doorbell"]

# Where there is one: no disk is touched. The folder in it is this user's alone.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 # used through mkdtemp

_ASLEEP = "asleep"


class Doorbell:
    """A rank's bell, and those of the ranks that it may wake.

    Parameters
    ----------
    pipes : mapping of int to Path
        The pipes of this rank, and of those that it exchanges messages with.
    asleep : Path
        The file in which each rank has a byte.
    rank : int
        This rank.
    """

    def __init__(self, pipes: Mapping[int, Path], asleep: Path, rank: int):
        self._rank = rank
        # Opened for both directions: opening does not wait, and reading never finds an end.
        flags = os.O_RDWR | os.O_NONBLOCK
        self._pipes = {each: os.open(pipe, flags) for each, pipe in pipes.items()}
        self._own = self._pipes[rank]
        self._file = os.open(asleep, os.O_RDWR)
        self._asleep = mmap.mmap(self._file, 0)
        self._poll = select.poll()
        self._poll.register(self._own, select.POLLIN)

    def close(self) -> None:
        """Give back what the operating system holds for the bells."""
        self._asleep.close()
        for file in (self._file, *self._pipes.values()):
            os.close(file)

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
                known = everyone if rank == 0 else [0, rank]
                bell = cls(_pipes(folder, known), folder / _ASLEEP, rank)
        complete = all(gathered_numbers(node, int(bell is not None)))
        if rank == 0 and folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return bell if complete else None

    @classmethod
    def over(cls, ranks: int) -> Self | None:
        """Make the bells of this process, rank 0, and of workers that it will start on its host.

        Returns
        -------
        Doorbell or None
            None where a file cannot be made or opened.
        """
        with contextlib.suppress(OSError):
            folder = _make(range(ranks), ranks)
            try:
                return cls(_pipes(folder, range(ranks)), folder / _ASLEEP, 0)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return None

    def address(self, rank: int) -> tuple[str, str, str]:
        """Return where a worker finds its pipe, that of rank 0, and who is asleep."""
        opened = (self._pipes[rank], self._pipes[0], self._file)
        own, zero, asleep = (f"/proc/{os.getpid()}/fd/{number}" for number in opened)
        return own, zero, asleep

    @classmethod
    def at(cls, address: Sequence[str], rank: int) -> Self | None:
        """Return a worker's bell; None where it cannot be opened."""
        own, zero, asleep = map(Path, address)
        with contextlib.suppress(OSError):
            return cls({rank: own, 0: zero}, asleep, rank)
        return None

    def reaches(self, rank: int) -> bool:
        """Return whether that rank can be woken."""
        return rank in self._pipes and rank != self._rank

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
    for pipe in _pipes(folder, everyone).values():
        os.mkfifo(pipe, mode=0o600)
    (folder / _ASLEEP).write_bytes(bytes(ranks))
    return folder


def _pipes(folder: Path, ranks: Sequence[int]) -> dict[int, Path]:
    return {rank: folder / str(rank) for rank in ranks}
