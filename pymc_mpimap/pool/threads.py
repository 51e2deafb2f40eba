"""Threads of BLAS and OpenMP: one a rank, or ranks and threads fight for the same cores."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

from threadpoolctl import threadpool_limits

from pymc_mpimap.errors import MapRectWarning

__all__ = ["one_thread_each", "report_oversubscription"]

_CHOICES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def one_thread_each(threads: int | None) -> Callable[[], None]:
    """Limit the threads of numerical libraries on this rank; return how to undo it.

    A user's own choice, made by an environment variable, is left alone.
    """
    if threads is None or any(name in os.environ for name in _CHOICES):
        return lambda: None
    restore: Callable[[], None] = threadpool_limits(threads).restore_original_limits
    return restore


def report_oversubscription(hosts: Sequence[str], cores: Sequence[frozenset[int]]) -> None:
    """Say once if a host has more ranks than cores."""
    for host, ranks in Counter(hosts).items():
        # Each rank may be bound to cores of its own.
        own = (cores[rank] for rank, name in enumerate(hosts) if name == host)
        available = len(frozenset().union(*own))
        if ranks > available:
            warnings.warn(
                f"{ranks} ranks share the {available} cores of {host}: results are the same, but "
                f"more than {available} ranks will not be faster there",
                MapRectWarning,
                stacklevel=3,
            )
