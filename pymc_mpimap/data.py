"""Per-job constants: held by the Op rather than the graph, split by owner, sent once."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Self, override
from uuid import uuid4

import cloudpickle
import numpy as np

from pymc_mpimap.errors import InputError
from pymc_mpimap.signature import packed_offsets
from pymc_mpimap.structure import Structure, flatten

__all__ = [
    "JobData",
    "Local",
    "LocalData",
    "ObjectData",
    "PackedData",
    "SharedData",
    "StackedData",
    "local",
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
    """Return a read-only copy: the digest of a constant must stay true."""
    array = np.array(array, order="C")
    array.flags.writeable = False
    return array


class JobData(ABC):
    """Constants of a map. Equal content is equal data, whatever object holds it.

    Attributes
    ----------
    digest : bytes
        The fingerprint by which data are compared, hashed and recognised on other ranks.
    """

    digest: bytes

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

    @abstractmethod
    def __len__(self) -> int:
        """How many jobs' data these are."""

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
        whole.values = np.concatenate([part.values for part in parts])
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
        whole.flat = np.concatenate([part.flat for part in parts])
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


class Local:
    """Data that each rank loads for its own jobs; see `local`."""

    def __init__(self, load: Callable[[int], Any], like: Any = None):
        self.load = load
        self.like = like
        self.digest = object_digest(load)
        self._loaded: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}

    def __call__(self, job: int) -> Any:
        """Return the data of one job, loaded at most once on this rank."""
        if job not in self._loaded:
            self._loaded[job] = self.load(job)
        return self._loaded[job]


def local(load: Callable[[int], Any], like: Any = None) -> Local:
    """Say that each rank loads the data of its own jobs, so that they never pass through rank 0.

    Parameters
    ----------
    load : callable
        ``load(job_id)`` returns the data of one job, for instance read from a file: an array, or
        a dict or tuple of arrays; for a numeric job any object. It is called once for each job,
        on the rank that owns the job.
    like : optional
        For traced jobs: arrays (in the same dict or tuple) with the dtype and number of
        dimensions of a job's data; their sizes do not matter. Without it, ``load(0)`` is called
        where the model is built, to learn them.

    Returns
    -------
    Local
        To be passed to `map_rect` as ``x_r`` or ``x_i``.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> def load(job_id):
    ...     return np.arange(job_id + 1.0)
    >>> def squares(theta, job, y):
    ...     return ((y - theta) ** 2).sum()
    >>> theta = pt.dscalar("theta")
    >>> x_r = mpimap.local(load, like=np.empty(0))
    >>> mpimap.map_rect(squares, theta, 3, x_r).eval({theta: 1.0})
    array([1., 1., 2.])
    """
    if not callable(load):
        raise InputError(f"local(load) takes a function of the job's number, not {load!r:.80}")
    return Local(load, like)


class LocalData(JobData):
    """One leaf of what a rank loads for its jobs.

    Parameters
    ----------
    source : Local
    leaf : int, optional
        Which array of the loaded structure; None for the whole object, as numeric jobs get it.
    structure : Structure, optional
        What each job's data must look like.
    kind : TensorType, optional
        The leaf's type.
    shapes : bool
        Whether this holds the leaf's shapes rather than its values.
    """

    def __init__(
        self,
        source: Local,
        leaf: int | None = None,
        structure: Structure | None = None,
        *,
        kind: Any = None,
        shapes: bool = False,
        name: str = "local data",
    ):
        self.source, self.leaf, self.structure = source, leaf, structure
        self.type, self.shapes, self.name = kind, shapes, name
        self.digest = object_digest((source.digest, leaf, structure, shapes, str(kind)))

    @override
    def owned(self, first: int, last: int) -> Self:
        return self

    @override
    def moved(self, first: int, last: int, gained: Sequence[Self]) -> Self:
        return self

    @override
    def block(self, first: int, last: int) -> Any:
        if self.leaf is None:
            return tuple(self.source(job) for job in range(first, last))
        arrays = [self._array(job) for job in range(first, last)]
        if self.shapes:
            return np.array([array.shape for array in arrays], dtype=np.int64).reshape(
                last - first, self.type.ndim
            )
        empty = np.empty(0, dtype=self.type.dtype)  # of a rank without jobs
        return np.concatenate([empty, *(np.ravel(array) for array in arrays)])

    def _array(self, job: int) -> np.ndarray:
        leaves, structure = flatten(self.source(job), self.name)
        if structure != self.structure:
            raise InputError(
                f"{self.name}: load({job}) returned {structure}, but job 0 (or like=) has "
                f"{self.structure}; every job's data must have the same dicts and tuples"
            )
        label, value = leaves[self.leaf or 0]
        array = np.asarray(value)
        if array.ndim != self.type.ndim or not np.can_cast(
            array.dtype, self.type.dtype, "same_kind"
        ):
            raise InputError(
                f"{label}: load({job}) returned {array.dtype} of {array.ndim} dimensions where "
                f"{self.type.dtype} of {self.type.ndim} were expected from job 0 (or like=)"
            )
        return array.astype(self.type.dtype, copy=False)
