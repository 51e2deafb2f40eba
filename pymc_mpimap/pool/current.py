"""The pool in force."""

from __future__ import annotations

from pymc_mpimap.pool.base import Pool, innermost_pool
from pymc_mpimap.pool.serial import default_pool
from pymc_mpimap.pool.work import inside_job

__all__ = ["current_pool"]


def current_pool() -> Pool:
    """Return the pool in force: the innermost ``with``, or else a serial one.

    Within a job, which is a rank's own work, it is always serial.

    Examples
    --------
    >>> import pymc_mpimap as mpimap
    >>> with mpimap.SerialPool() as pool:
    ...     mpimap.current_pool() is pool
    True
    """
    entered = innermost_pool()
    return default_pool() if entered is None or inside_job() else entered
