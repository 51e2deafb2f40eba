"""Bare MPI between the ranks of a pool, which are otherwise busy serving it.

Workers do nothing but wait for the pool's jobs. So a measurement of bare MPI is itself a job: one
that, on all ranks at the same moment, sends messages of its own on a communicator of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_mpimap.api import map_rect
from pymc_mpimap.bench.timing import Contestant
from pymc_mpimap.job.derivatives import numeric_job

__all__ = ["Together", "available_cores", "floor", "waiting"]

MEETING = 20.0
"""Seconds within which all ranks must have come."""

# Jobs a rank: more than one, so that every rank has some whatever the pool's split.
_SPARE = 4


class _Here:
    """The state of this rank: its communicator, and the last session that it took part in."""

    comm: Any = None
    session = 0.0


Task = Callable[..., float]
"""``task(comm, *numbers)``, called on every rank; what rank 0 returns is the result."""


class Together:
    """Runs a function on all ranks at the same moment.

    Parameters
    ----------
    ranks : int
        Of the pool in force.
    """

    _sessions = 0

    def __init__(self, ranks: int):
        self.ranks = ranks
        self._functions: dict[Task, Any] = {}

    def __call__(self, task: Task, *numbers: float) -> float:
        """Run ``task(comm, *numbers)`` on each rank and return what it returns on rank 0."""
        function = self._functions.get(task)
        if function is None:
            function = self._functions[task] = self._compile(task, len(numbers))
        Together._sessions += 1
        return float(function(np.array([Together._sessions, *numbers], dtype=np.float64)))

    def _compile(self, task: Task, count: int) -> Any:
        @numeric_job(derivatives=None)
        def part(theta: np.ndarray, _job: None) -> float:
            return _take_part(task, theta)

        theta = pt.dvector("theta", shape=(count + 1,))
        jobs = self.ranks * _SPARE
        total = map_rect(part, theta, jobs, name="bare MPI", grain_size=1).sum()
        function = pytensor.function([theta], total)
        # Session 0 is no session: all ranks learn of the job before they have to meet in it.
        function(np.zeros(count + 1))
        return function


def _take_part(task: Task, theta: np.ndarray) -> float:
    session, *numbers = theta.tolist()
    if session in (0, _Here.session):
        return 0.0  # A further job of this rank.
    _Here.session = session
    if _Here.comm is None:
        # Bare MPI is what is measured. Not at the top: the package works without an MPI library.
        from mpi4py import MPI

        _Here.comm = MPI.COMM_WORLD.Dup()
    _meet(_Here.comm)
    result = task(_Here.comm, *numbers)
    return float(result) if _Here.comm.rank == 0 else 0.0


def _meet(comm: Any) -> None:
    """Wait for all ranks, with a bound."""
    request, begun = comm.Ibarrier(), time.perf_counter()
    while not request.Test():
        os.sched_yield()
        if time.perf_counter() - begun > MEETING:
            raise RuntimeError(f"not all ranks came to measure bare MPI within {MEETING:.0f} s")


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def waiting(comm: Any) -> Callable[[list[Any]], Any]:
    """Return the quickest way to wait for requests."""
    from mpi4py import MPI

    def yielding(requests: list[Any]) -> None:
        # MPI's own waiting would keep the core from the rank that is waited for.
        while not MPI.Request.Testall(requests):
            os.sched_yield()

    crowded = comm.size > available_cores()  # if all ranks are on this host
    return yielding if crowded else MPI.Request.Waitall


def messages(comm: Any, count: float, down: float, up: float) -> float:
    """Exchange messages of so many doubles with each rank, and return the seconds it took.

    Persistent requests, the quickest that MPI has between two ranks. Rank 0 sends `down` numbers
    to each of the others and gets `up` numbers from each.
    """
    from mpi4py import MPI

    others = range(1, comm.size) if comm.rank == 0 else [0]
    out, back = (int(down), int(up)) if comm.rank == 0 else (int(up), int(down))
    sends = [comm.Send_init(np.ones(out), other, 7) for other in others]
    receives = [comm.Recv_init(np.empty(back), other, 7) for other in others]
    wait = waiting(comm)
    begun = time.perf_counter()
    if comm.rank == 0:
        every = [*receives, *sends]
        for _ in range(int(count)):
            MPI.Prequest.Startall(every)
            wait(every)
    else:
        for _ in range(int(count)):
            receives[0].Start()
            wait(receives)
            sends[0].Start()
            wait(sends)
    spent = time.perf_counter() - begun
    for request in [*sends, *receives]:
        request.Free()
    return spent


def floor(together: Together, down: int, up: int) -> Contestant:
    """Return a contestant that exchanges messages of so many doubles by bare MPI."""

    def turn(count: int) -> float:
        return together(messages, float(count), float(down), float(up))

    return turn
