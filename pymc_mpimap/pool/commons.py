"""Memory that rank 0 has in common with the workers of its host.

A large array that lies there is written by one rank and read by others where it is: it is not sent,
and there is one of it for all. That it may be read is said by a message of MPI, which also sees to
it that the writing comes before the reading.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import sys
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from pymc_mpimap.pool.protocol import LARGE, Parts, Place, gathered_numbers, nbytes_of

__all__ = ["Common", "Commons", "Trial", "array_at", "holds", "neighbours"]


# A mapping needs no file once it is made. Before Python 3.13 it keeps one all the same.
_MAPPING: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Common:
    """An array in memory that has no name and is gone with the last process that uses it.

    Parameters
    ----------
    dtype : dtype
    shape : sequence of int

    Attributes
    ----------
    array : array
        Zeros at first. It may be kept for longer than this object.

    Raises
    ------
    OSError
        If there is not so much memory, or this system has no such memory.
    """

    def __init__(self, dtype: Any, shape: Sequence[int]):
        self._file = -1
        if not hasattr(os, "memfd_create"):
            raise OSError("memory in common is made by memfd_create, which Linux has")
        self._file = os.memfd_create("pymc_mpimap")
        # Refused now, or else by a signal when it is written to.
        os.posix_fallocate(self._file, 0, nbytes_of(dtype, shape))
        self.array = _mapped(self._file, 0, dtype, shape)

    def place(self, number: int, part: np.ndarray) -> Place:
        """Return where others find a part of the array, as long as this object is kept."""
        start = part.ctypes.data - self.array.ctypes.data
        path = f"/proc/{os.getpid()}/fd/{self._file}"
        return Place(number, path, start, part.dtype.str, part.shape)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


def _mapped(file: int, start: int, dtype: Any, shape: Sequence[int]) -> np.ndarray:
    return np.ndarray(tuple(shape), dtype, mmap.mmap(file, 0, **_MAPPING), start)


def array_at(place: Place) -> np.ndarray:
    """Return an array that lies in memory of another process of this host.

    Raises
    ------
    OSError
        If it cannot be found.
    """
    file = os.open(place.path, os.O_RDWR)
    try:
        return _mapped(file, place.start, place.dtype, place.shape)
    finally:
        os.close(file)


class Commons:
    """The large arrays of a program that workers of this host find in memory in common.

    Workers can look for them as long as this object is kept.
    """

    def __init__(self) -> None:
        self._inputs: dict[int, Common] = {}
        self._answers: list[Common] = []

    def hold(self, i: int, value: np.ndarray) -> np.ndarray:
        """Return a copy of an input; in common where it is large and there is memory for it."""
        if value.nbytes >= LARGE:
            with contextlib.suppress(OSError):
                common = Common(value.dtype, value.shape)
                common.array[...] = value
                self._inputs[i] = common
                return common.array
        return np.array(value, order="C")

    def inputs(self, parts: Sequence[np.ndarray]) -> tuple[Place, ...]:
        """Return where a worker finds its parts of the inputs as held; small ones are sent."""
        return tuple(
            self._inputs[i].place(i, part)
            for i, part in enumerate(parts)
            if i in self._inputs and part.nbytes >= LARGE
        )

    def answer(self, parts: Parts) -> tuple[dict[int, np.ndarray], tuple[Place, ...]]:
        """Return the large arrays of a worker's answer, and where it finds them."""
        found: dict[int, np.ndarray] = {}
        places: list[Place] = []
        for k, (dtype, shape) in enumerate(parts):
            if nbytes_of(dtype, shape) >= LARGE:
                with contextlib.suppress(OSError):
                    common = Common(dtype, shape)
                    self._answers.append(common)
                    found[k] = common.array
                    places.append(common.place(k, common.array))
        return found, tuple(places)


class Trial:
    """A probe that other ranks look for in common memory, to see whether they can have any.

    Attributes
    ----------
    said : tuple of Place and bytes
        For `holds`, as long as this object is kept.
    """

    def __init__(self) -> None:
        token = secrets.token_bytes(32)
        self._common = Common(np.uint8, (len(token),))
        self._common.array[:] = np.frombuffer(token, np.uint8)
        self.said = self._common.place(0, self._common.array), token

    @classmethod
    def made(cls) -> Self | None:
        """Return a trial; None where the system has no such memory."""
        with contextlib.suppress(OSError):
            return cls()
        return None


def neighbours(node: Any, rank: int) -> frozenset[int]:
    """Find out which ranks of a host can have memory in common with rank 0; all of them call this.

    Parameters
    ----------
    node : mpi4py.MPI.Comm
        The ranks of this host.
    rank : int
        This rank among all.

    Returns
    -------
    frozenset of int
        Without rank 0. It is empty on other hosts, and where the system does not allow it.
    """
    everyone = gathered_numbers(node, rank)
    if len(everyone) == 1 or 0 not in everyone:
        return frozenset()
    trial = Trial.made() if rank == 0 else None  # Kept until all have looked at it.
    said = node.bcast(None if trial is None else trial.said, root=everyone.index(0))
    found = rank > 0 and said is not None and holds(*said)
    return frozenset(
        r for r, yes in zip(everyone, gathered_numbers(node, found), strict=True) if yes
    )


def holds(place: Place, token: bytes) -> bool:
    """Return whether the probe is found at its path: another container has its own paths."""
    try:
        return array_at(place).tobytes() == token
    except (OSError, ValueError, TypeError):  # not there, shorter, not writable
        return False
