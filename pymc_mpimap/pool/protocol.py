"""The messages between controller and workers, byte by byte.

Down, from the controller, or from another worker above the receiver in a tree::

    command, evaluation, program, payload     int64; for the program: how many ranks were lost,
                                              where none is meant
    changed                                   one byte an input, padded to eight
    values of the changed inputs              each aligned to eight bytes, but large ones

Large inputs that changed follow, each in a message of its own. On rank 0's host large inputs and
outputs are not sent: they lie in memory that both ranks use, see `pymc_mpimap.pool.commons`.

Up, from a worker::

    evaluation, status, busy, payload         int64
    what compiled code has counted, see tally; nothing was counted if the first is 0
    outputs                                   each aligned to eight bytes
    busy of each rank of a branch             int64, where there is more than one

A payload follows in a message of its own, and is never on the hot path. Down it is an order,
pickled: a definition, a layout, a transfer of jobs. Its header also has the number of arrays that
come with it, and the seal that was agreed upon at the start. Up it is JSON: costs and failures.
Nothing that a worker sends is unpickled. Both sides know all shapes beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from pymc_mpimap.tally import N_COUNTS

__all__ = [
    "APART",
    "DOWN",
    "HEADER",
    "LARGE",
    "PAYLOAD",
    "SMALL",
    "UP",
    "Branch",
    "Command",
    "Define",
    "Layout",
    "Packing",
    "Parts",
    "Place",
    "Status",
    "Transfer",
    "gathered_numbers",
    "nbytes_of",
    "new_buffer",
    "same_bytes",
]

# Tags on the private communicator.
DOWN, UP, PAYLOAD = 1, 2, 3
APART = 16
"""The tag of the first input that is sent apart; its number is added."""

HEADER = 4 + N_COUNTS
"""The number of int64 that a message begins with, in both directions."""


class Command(IntEnum):
    """A command of the controller."""

    EVALUATE = 1
    CONTROL = 2
    STOP = 3
    COSTS = 4
    COMPILE = 5
    TAKE = 6
    PING = 7


class Status(IntEnum):
    """The outcome of an evaluation on a worker."""

    OK = 0
    REJECTED = 1
    FAILED = 2
    LOST = 3  # a rank below, in a tree


@dataclass(frozen=True)
class Define:
    """Control: a program, with the data of the receiver's jobs.

    Attributes
    ----------
    number : int
        How later commands call it.
    program : Program
    runs : tuple of (int, int)
        For each map, the receiver's run of blocks.
    settings : dict
        PyTensor's configuration where it changes the compiled code.
    sources : dict
        Digests of the user's own modules, see `pymc_mpimap.pool.portrait.loaded_sources`.
    dependencies : Dependencies
        Code and values that the program depends on and does not contain.
    """

    number: int
    program: Any
    runs: tuple[tuple[int, int], ...]
    settings: dict[str, Any]
    sources: dict[str, tuple[str, str]]
    dependencies: Any


Parts = tuple[tuple[str, tuple[int, ...]], ...]
"""The dtypes and shapes of arrays."""


@dataclass(frozen=True)
class Place:
    """The place of an array in memory that its receiver has in common with the controller.

    Attributes
    ----------
    number : int
        Which input, or which array of the answer.
    path : str
    start : int
    dtype : str
    shape : tuple of int
    """

    number: int
    path: str
    start: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """Control: the receiver works on other jobs from now on.

    Attributes
    ----------
    number : int
    runs : tuple of (int, int)
        For each map, the receiver's new run of blocks.
    gained : tuple of tuple
        For each map, the data of jobs that are new to the receiver: one tuple a run of jobs.
    """

    number: int
    runs: tuple[tuple[int, int], ...]
    gained: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Branch:
    """A rank and those below it in a tree: consecutive ones, it being the first.

    Attributes
    ----------
    ranks : tuple of int
    parent : int
        Who sends to the first of them, and is answered by it for all.
    runs : tuple of (int, int)
        For each map, their blocks.
    rows : tuple
        For each input the rows that are theirs, None where it is broadcast.
    answer : tuple of (str, tuple of int)
        The dtypes and shapes of their answer.
    children : tuple of Branch
        Those below the first, in order.
    """

    ranks: tuple[int, ...]
    parent: int
    runs: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int, int] | None, ...]
    answer: Parts
    children: tuple[Branch, ...] = ()

    @property
    def height(self) -> int:
        """The number of levels of ranks below the first."""
        return max((1 + child.height for child in self.children), default=0)


@dataclass(frozen=True)
class Layout:
    """Control: the dtypes and shapes of what will be sent to the receiver for a program.

    Attributes
    ----------
    number : int
    parts : tuple of (str, tuple of int)
        What is the receiver's own, and comes from the controller.
    apart : tuple of int
        The inputs that come in messages of their own, from and to where they stay: each copy of a
        large array takes as long as sending it.
    branch : Branch, optional
        Where evaluations go down a tree, the receiver and those below it.
    warm : bool
        Whether all ranks have compiled the program.
    inputs, outputs : tuple of Place
        Those inputs, and arrays of the answer, that are not sent.
    """

    number: int
    parts: Parts
    apart: tuple[int, ...] = ()
    branch: Branch | None = None
    warm: bool = False
    inputs: tuple[Place, ...] = ()
    outputs: tuple[Place, ...] = ()

    @property
    def incoming(self) -> Parts:
        """The inputs of an evaluation: the receiver's own, and those of the ranks below it."""
        if self.branch is None:
            return self.parts
        return tuple(
            (dtype, shape if rows is None else (rows[1] - rows[0], *shape[1:]))
            for (dtype, shape), rows in zip(self.parts, self.branch.rows, strict=True)
        )


class Packing:
    """Arrays one after the other in a buffer, after a header and some flags.

    Parameters
    ----------
    parts : sequence of (dtype, shape)
        All arrays that may be packed.
    flags : int
        How many bytes of flags stand between the header and the arrays.
    elsewhere : mapping of int to array
        Arrays that are not in the buffer, but there.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Any, tuple[int, ...]]],
        flags: int = 0,
        elsewhere: Mapping[int, np.ndarray] | None = None,
    ):
        self.parts = [(np.dtype(dtype), tuple(shape)) for dtype, shape in parts]
        self.flags = flags
        self.start = 8 * HEADER + _aligned(flags)
        self._elsewhere = elsewhere or {}
        packed = (i for i in range(len(self.parts)) if i not in self._elsewhere)
        self.nbytes = self.start + sum(_aligned(nbytes_of(*self.parts[i])) for i in packed)
        self._buffer: np.ndarray | None = None
        self._views: dict[tuple[int, ...], tuple[list[np.ndarray], int]] = {}

    def views(self, buffer: np.ndarray, chosen: tuple[int, ...]) -> tuple[list[np.ndarray], int]:
        """Return arrays that look into the buffer, and where the last of them ends.

        They are made once for each buffer and choice: nothing is allocated while a chain runs.

        Parameters
        ----------
        buffer : array of uint8
        chosen : tuple of int
            Which of the parts are packed, in order.
        """
        if buffer is not self._buffer:
            self._buffer, self._views = buffer, {}
        if chosen not in self._views:
            position = self.start
            arrays = []
            for i in chosen:
                if i in self._elsewhere:
                    arrays.append(self._elsewhere[i])
                    continue
                dtype, shape = self.parts[i]
                nbytes = nbytes_of(dtype, shape)
                arrays.append(buffer[position : position + nbytes].view(dtype).reshape(shape))
                position += _aligned(nbytes)
            self._views[chosen] = arrays, position
        return self._views[chosen]


def nbytes_of(dtype: Any, shape: Sequence[int]) -> int:
    """Return the size of an array."""
    return int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 8) * 8


def new_buffer(nbytes: int) -> np.ndarray:
    """Return a buffer for messages of up to this size, aligned for any number."""
    return np.zeros(-(-nbytes // 8), dtype=np.int64).view(np.uint8)


def gathered_numbers(node: Any, number: int) -> list[int]:
    """Return each rank's number; as plain bytes, of which nothing is unpickled."""
    numbers = np.empty(node.size, np.int64)
    node.Allgather(np.array([number], np.int64), numbers)
    found: list[int] = numbers.tolist()
    return found


LARGE = 1 << 15
"""Bytes from which an array is sent apart, or lies in memory in common: then a message more is
cheaper than two copies."""

SMALL = 2048
"""Bytes up to which arrays are compared at once."""

_CHUNK = 1 << 20


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two arrays of one shape and dtype hold the same bytes, NaNs included.

    Arrays that differ usually differ at once: the beginning is compared first.
    """
    if a.nbytes <= SMALL:
        return a.tobytes() == b.tobytes()
    flat_a, flat_b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    if flat_a[:SMALL].tobytes() != flat_b[:SMALL].tobytes():
        return False
    return all(
        np.array_equal(flat_a[i : i + _CHUNK], flat_b[i : i + _CHUNK])
        for i in range(SMALL, len(flat_a), _CHUNK)
    )
