"""Data that each rank loads for its own jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, override

import numpy as np

from pymc_mpimap.casts import exactly
from pymc_mpimap.data import JobData, object_digest
from pymc_mpimap.errors import InputError
from pymc_mpimap.reals import real_array
from pymc_mpimap.refusal import NotRealError
from pymc_mpimap.structure import Structure, flatten

__all__ = ["Local", "LocalData", "local"]


class Local:
    """Data that each rank loads for its own jobs; see `local`."""

    def __init__(self, load: Callable[[int], Any], like: Any = None):
        self.load = load
        self.like = like
        self.digest = object_digest(load)
        self._loaded: dict[int, Any] = {}

    @property
    def key(self) -> tuple[Any, ...]:
        """The key that tells it from all others."""
        return type(self).__name__, self.digest

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}

    def __call__(self, job: int) -> Any:
        """Return the data of one job, loaded at most once on this rank."""
        if job not in self._loaded:
            self._loaded[job] = self.load(job)
        return self._loaded[job]

    def put(self, job: int, loaded: Any) -> None:
        """Keep the same data of a job in another place, which is shared."""
        self._loaded[job] = loaded


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
        self._latest: tuple[int, int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None}

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
        # The same for every program that has these jobs: they are held once.
        if self._latest is None or self._latest[:2] != (first, last):
            self._latest = first, last, self._block(first, last)
        return self._latest[2]

    def _block(self, first: int, last: int) -> np.ndarray:
        arrays = [self._array(job) for job in range(first, last)]
        if self.shapes:
            return np.array([array.shape for array in arrays], dtype=np.int64).reshape(
                last - first, self.type.ndim
            )
        empty = np.empty(0, dtype=self.type.dtype)  # of a rank without jobs
        block = np.concatenate([empty, *(np.ravel(array) for array in arrays)])
        end = 0
        for job, array in zip(range(first, last), arrays, strict=True):
            begin, end = end, end + array.size
            self._move(job, block[begin:end].reshape(array.shape))
        return block

    def _move(self, job: int, array: np.ndarray) -> None:
        """Let what was loaded for a job look into the block: it is not held twice."""
        leaves, structure = flatten(self.source(job), self.name)
        values = [value for _, value in leaves]
        values[self.leaf or 0] = array
        self.source.put(job, structure.rebuild(values))

    def _array(self, job: int) -> np.ndarray:
        leaves, structure = flatten(self.source(job), self.name)
        if structure != self.structure:
            raise InputError(
                f"{self.name}: load({job}) returned {structure}, but job 0 (or like=) has "
                f"{self.structure}; every job's data must have the same dicts and tuples"
            )
        label, value = leaves[self.leaf or 0]
        array = real_array(value, f"{label}, as load({job}) returned it,")
        if array.ndim != self.type.ndim or not np.can_cast(
            array.dtype, self.type.dtype, "same_kind"
        ):
            raise InputError(
                f"{label}: load({job}) returned {array.dtype} of {array.ndim} dimensions where "
                f"{self.type.dtype} of {self.type.ndim} were expected from job 0 (or like=)"
            )
        try:
            return exactly(array, self.type.dtype, f"{label}, as load(job_id) returns it")
        except NotRealError as error:
            raise InputError(
                f"{label}: load({job}) returned {error.found}; the type is that of job 0 (or like=)"
            ) from None
