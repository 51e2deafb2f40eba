"""Exceptions.

::

    MapRectError
     ├─ InputError (ValueError)         an argument or a value that map_rect cannot take
     ├─ DerivativeError (TypeError)     a derivative that a numeric job does not give
     ├─ JobError (RuntimeError)         a job raised; says which, where and why
     └─ PoolError (RuntimeError)        the pool cannot serve this call
         ├─ ParallelSamplingError       a child process touched its parent's ranks
         └─ RankLostError               a rank died or did not answer, and the run ends with it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "DerivativeError",
    "InputError",
    "JobError",
    "MapRectError",
    "MapRectWarning",
    "ParallelSamplingError",
    "PoolError",
    "RankLostError",
]


class MapRectError(Exception):
    """Base of every exception that this package raises on purpose."""


class MapRectWarning(UserWarning):
    """Something works, though not as the user probably meant it."""


class InputError(MapRectError, ValueError):
    """An argument or a value that `map_rect` cannot take; raised before any message is sent."""


class DerivativeError(MapRectError, TypeError):
    """A derivative that a numeric job does not give was asked for."""


class PoolError(MapRectError, RuntimeError):
    """The pool cannot serve this call."""


class ParallelSamplingError(PoolError):
    """A forked or spawned process tried to use the ranks of its parent."""


class RankLostError(PoolError):
    """A rank died, or did not answer in time, and the pool does not go on without it.

    Attributes
    ----------
    rank : int
    host : str
    how : str
        What became of it, as far as is known.
    """

    def __init__(self, rank: int, host: str, how: str):
        self.rank, self.host, self.how = rank, host, how
        super().__init__(
            f"rank {rank} on {host} {how}, and this pool does not go on without it. With "
            "MPIPool(on_loss='continue') the other ranks do its jobs"
        )

    def __reduce__(self) -> tuple[type[RankLostError], tuple[int, str, str]]:
        return RankLostError, (self.rank, self.host, self.how)


@dataclass(frozen=True)
class JobFailure:
    """A rank's report of a job that raised: plain strings, which can always be sent."""

    function: str
    job: int
    rank: int
    host: str
    exception: str
    traceback: str

    @property
    def kind(self) -> str:
        """The name of the exception's class."""
        return re.split("[:,]", self.exception, maxsplit=1)[0]

    def summary(self) -> str:
        """One line: which job, where, and the last line of its exception."""
        where = f"job {self.job} of {self.function}, on rank {self.rank} ({self.host})"
        return f"{where}: {self.exception}"


@dataclass(frozen=True)
class NotFinite:
    """A rank's report of a job whose value is NaN or infinite, and is only summed."""

    function: str
    job: int
    value: str

    def __str__(self) -> str:
        return f"job {self.job} of {self.function}: {self.value}"


Incident = JobFailure | NotFinite
"""A report of a job beside its results."""


class JobError(MapRectError, RuntimeError):
    """A job raised.

    Attributes
    ----------
    failure : JobFailure
        The job's number, the rank and the host it ran on, the exception and its traceback.
    """

    def __init__(self, failure: JobFailure):
        self.failure = failure
        super().__init__(
            f"{failure.summary()}\n"
            f"The traceback on that rank:\n{failure.traceback.rstrip()}\n"
            "To reject such proposals instead of stopping, pass on_error='reject' to map_rect."
        )

    def __reduce__(self) -> tuple[type[JobError], tuple[JobFailure]]:
        return JobError, (self.failure,)
