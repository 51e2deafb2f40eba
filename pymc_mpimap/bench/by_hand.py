"""One model with long messages, written by hand with mpi4py: the model, and no more.

Parameters go down by persistent requests, each rank calls a compiled function of its part of the
model, and gradients come back from where that function left them. Rank 0 adds them to its own, or
receives them where they belong.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_mpimap.bench.timing import Contestant
from pymc_mpimap.bench.together import Together, waiting

__all__ = ["jobs", "shared"]

_DOWN, _UP = 11, 12


@cache
def _compiled_shared(size: int) -> Any:
    theta, scale = pt.dvector("theta", shape=(size,)), pt.dscalar("scale")
    total: Any = scale * (theta @ theta)
    gradient: Any = pt.grad(total, theta)
    return pytensor.function([theta, scale], [total, gradient], trust_input=True)


@cache
def _compiled_jobs(own: int) -> Any:
    rows = pt.dmatrix("rows", shape=(None, own))
    total: Any = (rows**2).sum()
    gradient: Any = pt.grad(total, rows)
    return pytensor.function([rows], [total, gradient], trust_input=True)


def _run_shared(comm: Any, count: float, size: float) -> float:
    """Evaluate one job a rank with so many shared parameters; return the seconds that it took."""
    function, wait = _compiled_shared(int(size)), waiting(comm)
    theta, scale = np.ones(int(size)), np.array(comm.rank + 1.0)
    others = range(1, comm.size)
    if comm.rank == 0:
        gradients = [np.empty_like(theta) for _ in others]
        values = np.empty(len(others))
        requests = [
            request
            for k, other in enumerate(others)
            for request in (
                comm.Send_init(theta, other, _DOWN),
                comm.Recv_init(values[k : k + 1], other, _UP),
                comm.Recv_init(gradients[k], other, _UP),
            )
        ]
    else:
        requests = [comm.Recv_init(theta, 0, _DOWN)]
    begun = time.perf_counter()
    for _ in range(int(count)):
        theta[0] += 1e-12
        for request in requests:
            request.Start()
        if comm.rank == 0:
            value, gradient = function(theta, scale)
            wait(requests)
            for part in gradients:
                gradient = gradient + part
            value = value + values.sum()
        else:
            wait(requests)
            _answer(comm, function(theta, scale), wait)
    return _ended(begun, requests)


def _run_jobs(comm: Any, count: float, n_jobs: float, own: float) -> float:
    """Evaluate jobs with so many parameters of their own; return the seconds that it took."""
    function, wait = _compiled_jobs(int(own)), waiting(comm)
    cuts = [int(n_jobs) * rank // comm.size for rank in range(comm.size + 1)]
    parts = [slice(*cuts[rank : rank + 2]) for rank in range(comm.size)]
    rows, others = np.ones((int(n_jobs), int(own))), range(1, comm.size)
    mine = rows[parts[comm.rank]]
    values = np.empty(len(others))
    if comm.rank == 0:
        requests = [comm.Send_init(rows[parts[other]], other, _DOWN) for other in others]
        requests += [comm.Recv_init(values[k : k + 1], k + 1, _UP) for k in range(len(others))]
    else:
        requests = [comm.Recv_init(mine, 0, _DOWN)]
    begun = time.perf_counter()
    for _ in range(int(count)):
        rows[0, 0] += 1e-12
        for request in requests:
            request.Start()
        if comm.rank == 0:
            gradient = np.empty_like(rows)
            arriving = [comm.Irecv(gradient[parts[other]], other, _UP) for other in others]
            value, gradient[parts[0]] = function(mine)
            wait([*requests, *arriving])
            value = value + values.sum()
        else:
            wait(requests)
            _answer(comm, function(mine), wait)
    return _ended(begun, requests)


def _answer(comm: Any, results: Any, wait: Any) -> None:
    wait([comm.Isend(result, 0, _UP) for result in results])


def _ended(begun: float, requests: list[Any]) -> float:
    spent = time.perf_counter() - begun
    for request in requests:
        request.Free()
    return spent


def shared(together: Together, size: int) -> Contestant:
    """Return a contestant with one job a rank and so many shared parameters."""
    return lambda count: together(_run_shared, float(count), float(size))


def jobs(together: Together, n_jobs: int, own: int) -> Contestant:
    """Return a contestant with so many jobs, each with so many parameters of its own."""
    return lambda count: together(_run_jobs, float(count), float(n_jobs), float(own))
