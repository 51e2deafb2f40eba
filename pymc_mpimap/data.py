"""Per-job constants: held by the Op rather than the graph, split by owner, sent once."""

from __future__ import annotations

import mmap
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Self, override
from uuid import uuid4

import cloudpickle
import numpy as np

from pymc_mpimap.signature import packed_offsets

__all__ = [
    "JobData",
    "ObjectData",
    "PackedData",
    "SharedData",
    "StackedData",
    "object_digest",
]


def array_digest(*arrays: np.ndarray) -> bytes:
    """Return a fingerprint of the arrays' types, shapes and bytes."""
    fingerprint = blake2b(digest_size=16)
    for array in arrays:
        fingerprint.update(f"{array.dtype.str}{array.shape}".encode())
        fingerprint.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return fingerprint.digest()


def object_digest(value: Any) -> bytes:
    """Return a fingerprint of any object that can be pickled; others equal only themselves."""
    pickled = _pickled(value)
    return uuid4().bytes if pickled is None else _digest(pickled)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _pickled(value: Any) -> bytes | None:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception:  # Whatever a user's object raises: it has no bytes to compare.
        return None


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return what cannot change, as the digest of a constant must stay true: else a copy."""
    if _nobody_writes(array) and array.flags.c_contiguous:
        return np.asarray(array)
    array = np.array(array, order="C")
    array.flags.writeable = False
    return array


def _concatenated(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return one array, read-only as they are: numba compiles anew for one that is not."""
    whole = np.concatenate(arrays)
    whole.flags.writeable = False
    return whole


def _nobody_writes(array: np.ndarray) -> bool:
    """Return whether an array, and its base, are read-only; files that are opened so are."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None or isinstance(base, mmap.mmap)


class JobData(ABC):
    """Constants of a map. Equal content is equal data, whatever object holds it.

    Attributes
    ----------
    digest : bytes
        The fingerprint by which data are compared, hashed and recognised on other ranks.
    """

    digest: bytes

    @property
    def key(self) -> tuple[Any, ...]:
        """The key that tells these data, and the jobs that they are of, from all others."""
        return type(self).__name__, self.digest

    @abstractmethod
    def owned(self, first: int, last: int) -> Self:
        """Return what the owner of the jobs ``first <= job < last`` needs of these data."""

    @abstractmethod
    def block(self, first: int, last: int) -> Any:
        """Return the values of the jobs ``first <= job < last``, as a kernel takes them."""

    @abstractmethod
    def moved(self, first: int, last: int, gained: Sequence[Self]) -> Self:
        """Return what the owner of other jobs needs: from these data and what it has gained.

        Parameters
        ----------
        first, last : int
            The jobs ``first <= job < last`` that it owns now.
        gained : sequence of JobData
            Parts, made by `owned`, with those of these jobs that it did not own before.
        """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class JobParts(JobData):
    """Data of which each rank holds the part of its own jobs.

    Attributes
    ----------
    first : int
        The first job of this part.
    """

    first = 0

    @property
    @override
    def key(self) -> tuple[Any, ...]:
        return *super().key, self.first if len(self) else 0, len(self)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of jobs that these data are of."""

    @abstractmethod
    def _joined(self, parts: Sequence[Self]) -> Self:
        """Return consecutive parts as one."""

    @override
    def moved(self, first: int, last: int, gained: Sequence[Self]) -> Self:
        low, high = max(first, self.first), min(last, self.first + len(self))
        kept = [self.owned(low, high)] if low < high else []
        parts = sorted([*kept, *gained], key=lambda part: part.first)
        return self._joined(parts) if parts else self.owned(self.first, self.first)

    def _part(self, first: int) -> Self:
        """Return an empty part of these data, to be filled."""
        part = object.__new__(type(self))
        part.first, part.digest = first, self.digest
        return part


class SharedData(JobData):
    """One constant for all jobs."""

    def __init__(self, value: np.ndarray):
        self.value = _frozen(value)
        self.digest = array_digest(self.value)

    @override
    def owned(self, first: int, last: int) -> Self:
        return self

    @override
    def block(self, first: int, last: int) -> np.ndarray:
        return self.value

    @override
    def moved(self, first: int, last: int, gained: Sequence[Self]) -> Self:
        return self


class StackedData(JobParts):
    """One row a job.

    Parameters
    ----------
    values : array, shape (n_jobs, ...)
    """

    def __init__(self, values: np.ndarray):
        self.values = _frozen(values)
        self.digest = array_digest(self.values)

    @override
    def __len__(self) -> int:
        return len(self.values)

    @override
    def owned(self, first: int, last: int) -> Self:
        part = self._part(first)
        part.values = self.block(first, last)
        return part

    @override
    def _joined(self, parts: Sequence[Self]) -> Self:
        whole = self._part(parts[0].first)
        whole.values = _concatenated([part.values for part in parts])
        return whole

    @override
    def block(self, first: int, last: int) -> np.ndarray:
        return self.values[first - self.first : last - self.first]


class PackedData(JobParts):
    """Values whose shapes differ from job to job, packed flat.

    Parameters
    ----------
    flat : array, shape (total_size,)
    shapes : array of int64, shape (n_jobs, ndim)
    """

    def __init__(self, flat: np.ndarray, shapes: np.ndarray):
        self.flat = _frozen(flat)
        self.offsets = packed_offsets(shapes)
        self.digest = array_digest(self.flat, shapes)

    @override
    def __len__(self) -> int:
        return len(self.offsets) - 1

    @override
    def owned(self, first: int, last: int) -> Self:
        part = self._part(first)
        low, high = first - self.first, last - self.first
        part.flat = self.block(first, last)
        part.offsets = self.offsets[low : high + 1] - self.offsets[low]
        return part

    @override
    def _joined(self, parts: Sequence[Self]) -> Self:
        whole = self._part(parts[0].first)
        whole.flat = _concatenated([part.flat for part in parts])
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        whole.offsets = np.concatenate([[0], np.cumsum(sizes)])
        return whole

    @override
    def block(self, first: int, last: int) -> np.ndarray:
        return self.flat[self.offsets[first - self.first] : self.offsets[last - self.first]]


class ObjectData(JobParts):
    """Any picklable object a job, for numeric jobs."""

    def __init__(self, items: Sequence[Any]):
        pickled = _pickled(tuple(items))
        # An own copy: what the caller does to the objects later must not depend on the rank.
        self.items: tuple[Any, ...] = tuple(items) if pickled is None else pickle.loads(pickled)
        self.digest = uuid4().bytes if pickled is None else _digest(pickled)

    @override
    def __len__(self) -> int:
        return len(self.items)

    @override
    def owned(self, first: int, last: int) -> Self:
        part = self._part(first)
        part.items = self.block(first, last)
        return part

    @override
    def _joined(self, parts: Sequence[Self]) -> Self:
        whole = self._part(parts[0].first)
        whole.items = tuple(item for part in parts for item in part.items)
        return whole

    @override
    def block(self, first: int, last: int) -> tuple[Any, ...]:
        return self.items[first - self.first : last - self.first]
