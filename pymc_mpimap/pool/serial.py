"""The reference pool: a for-loop in this process. Every other pool agrees with it bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import override

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.errors import MapRectWarning, ParallelSamplingError
from pymc_mpimap.map import Map
from pymc_mpimap.pool.base import Pool
from pymc_mpimap.pool.launch import POOL_OWNER, launched_ranks
from pymc_mpimap.pool.program import Program, assemble
from pymc_mpimap.pool.report import PoolReport, Recorder
from pymc_mpimap.pool.share import Share

__all__ = ["SerialPool", "default_pool"]

_MAX_SHARES = 256


class SerialPool(Pool):
    """Evaluates all jobs in this process, in order.

    It is in force where no other pool is, and needs no MPI.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> theta = pt.dvector("theta")
    >>> with mpimap.SerialPool() as pool:
    ...     squares = mpimap.map_rect(lambda theta, job: theta.sum() * job, theta, np.arange(3.0))
    ...     values = squares.eval({theta: [1.0, 2.0]})
    >>> values
    array([0., 3., 6.])
    >>> pool.report().evaluations
    1
    """

    def __init__(self) -> None:
        self._shares: OrderedDict[tuple[Map, str], Share] = OrderedDict()
        self._lock = threading.RLock()
        self._recorder = Recorder([socket.gethostname()])

    @override
    def evaluate(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        program.check(inputs)
        outputs: list[np.ndarray] = []
        with self._lock:
            begun = time.perf_counter()
            for m, route in zip(program.maps, program.routes, strict=True):
                share = self._share(m)
                result = share.evaluate([inputs[i] for i in route])
                self._recorder.rejected(result.failures)
                outputs += assemble(m, [share.subtrees], [result])
            self._recorder.evaluated([time.perf_counter() - begun])
        return outputs

    def _share(self, m: Map) -> Share:
        # Compiled code belongs to the PyTensor mode that it was compiled in.
        key = m, config.mode
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share(m, 0, m.blocks.count)
            while len(self._shares) > _MAX_SHARES:
                self._shares.popitem(last=False)
        return share

    def report(self) -> PoolReport:
        """Return what the pool has done so far."""
        return self._recorder.report()


class _DefaultPool(SerialPool):
    """The pool in force where the user asked for none: it says what was forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self._recorder.from_the_beginning()

    def evaluate(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        _refuse_child_of_a_pool()
        _warn_of_a_forgotten_pool()
        return super().evaluate(program, inputs)


def _refuse_child_of_a_pool() -> None:
    owner = os.environ.get(POOL_OWNER)
    if owner and owner != str(os.getpid()) and multiprocessing.parent_process() is not None:
        raise ParallelSamplingError(
            f"process {os.getpid()} was spawned by process {owner}, whose MPIPool it cannot use. "
            "Sample in one process: pm.sample(cores=1), or nuts_sampler='nutpie', whose chains "
            "are threads and take turns on the pool"
        )


@cache
def _warn_of_a_forgotten_pool() -> None:
    ranks, rank = launched_ranks()
    if ranks > 1 and rank == 0:
        warnings.warn(
            f"mpiexec started {ranks} ranks, but map_rect is evaluated without a pool: each rank "
            "does all the work alone. Put the model and pm.sample inside 'with "
            "pymc_mpimap.MPIPool():', or start the script with 'mpiexec -n "
            f"{ranks} python -m pymc_mpimap script.py'",
            MapRectWarning,
            stacklevel=2,
        )


@cache
def default_pool() -> SerialPool:
    """Return the pool of those who asked for none."""
    return _DefaultPool()
