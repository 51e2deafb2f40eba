"""The interface of a pool."""

from __future__ import annotations

import _thread
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pymc_mpimap.errors import MapRectWarning

if TYPE_CHECKING:
    from pymc_mpimap.pool.program import Program

__all__ = ["Pool", "innermost_pool"]

# One stack for all threads: nutpie's chains are threads and use the pool of the main thread.
_entered: list[Pool] = []
_lock = threading.Lock()


class Pool(ABC):
    """Evaluates the maps of a program. Use as a context manager to put it in force.

    Examples
    --------
    A pool that counts its round trips:

    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> class CountingPool(mpimap.SerialPool):
    ...     round_trips = 0
    ...
    ...     def evaluate(self, program, inputs):
    ...         self.round_trips += 1
    ...         return super().evaluate(program, inputs)
    >>> theta = pt.dscalar("theta")
    >>> total = mpimap.map_rect(lambda theta, job: theta**2, theta, 3).sum()
    >>> with CountingPool() as pool:
    ...     values = pt.stack([total, pt.grad(total, theta)]).eval({theta: 2.0})
    >>> pool.round_trips
    1
    """

    @abstractmethod
    def evaluate(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Evaluate all maps of a program: one round trip.

        Parameters
        ----------
        program : Program
        inputs : sequence of array
            The inputs of the Op, all jobs' values together.

        Returns
        -------
        list of array
            The outputs of the Op.

        Raises
        ------
        InputError
            If sizes do not fit; nothing is evaluated then.
        JobError
            If a job raised.
        """

    @abstractmethod
    def report(self) -> Any:
        """Return what the pool has done so far, as an object that prints well."""

    _swallowed: BaseException | None = None
    _interrupted: AbstractSet[str] = frozenset()

    def escalate(self, error: BaseException) -> None:
        """Make an error known that was raised where no Python caller can see it.

        That is what is left where compiled code evaluates in threads of its own, and it is not
        known of which sampler they are. The main thread is interrupted, as by Ctrl-C, so that it
        ends the sampler; leaving the pool's ``with`` block then raises the error.
        """
        if str(threading.get_native_id()) in self._interrupted:
            return  # It is about to end. Threads that come later are another call's.
        self._interrupted = _threads()
        if self._swallowed is None:
            self._swallowed = error
        _thread.interrupt_main()  # first, as the warning may be made an error
        warnings.warn(f"sampling is interrupted, because {error}", MapRectWarning, stacklevel=2)

    def __enter__(self) -> Self:
        self._swallowed, self._interrupted = None, frozenset()
        with _lock:
            _entered.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _lock:
            _entered.remove(self)
        if error is None and self._swallowed is not None:
            raise self._swallowed


def innermost_pool() -> Pool | None:
    """Return the pool that was entered last and not left yet."""
    return _entered[-1] if _entered else None


def _threads() -> AbstractSet[str]:
    """Return the system's numbers of the threads that this process has."""
    tasks = Path("/proc/self/task")
    return (
        {task.name for task in tasks.iterdir()}
        if tasks.exists()
        else {str(threading.get_native_id())}
    )
