"""The meeting of the ranks: each describes itself, and rank 0 checks that they fit together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pymc_mpimap.errors import PoolError
from pymc_mpimap.pool.portrait import Place, Portrait, check_agreement, new_seal
from pymc_mpimap.pool.wait import Patience, wait_until

__all__ = ["meet"]

HELLO, WELCOME = 32001, 32002
"""Tags on the user's communicator, used once, before there is a private one."""

_GRACE = 5.0
"""Seconds that rank 0, when a rank is missing, gets to say so and to end the others."""


def meet(mpi: Any, comm: Any, timeout: float) -> tuple[tuple[Place, ...], int]:
    """Exchange who is where. Point to point, so that a rank that never comes is named.

    What is said is JSON: nothing is unpickled before it is known who is there.

    Parameters
    ----------
    mpi : module
        ``mpi4py.MPI``
    comm : mpi4py.MPI.Comm
    timeout : float
        Seconds that all may take to come.

    Returns
    -------
    tuple of Place
        Where each rank runs.
    int
        The seal of this crew.

    Raises
    ------
    PoolError
        If not all ranks arrive in time, or they run different code.
    """
    patience = Patience()
    portrait = Portrait.of_this_process()
    if comm.rank > 0:
        hello = comm.Isend(np.frombuffer(portrait.encode(), np.uint8), dest=0, tag=HELLO)
        _hear(mpi, comm, patience, timeout, "rank 0 did not enter MPIPool")
        # Rank 0 is there: it waits as long for the others, and it alone says who is missing.
        welcome = _hear(
            mpi, comm, patience, timeout + _GRACE, "rank 0, once in MPIPool, did not answer"
        )
        hello.Wait()  # It was received, or there would be no answer.
        places, seal = json.loads(welcome)
        return tuple(Place.of(*place) for place in places), seal
    greetings = [
        comm.Isend(np.zeros(0, np.uint8), dest=rank, tag=WELCOME) for rank in range(1, comm.size)
    ]
    portraits: dict[int, Portrait] = {0: portrait}

    def all_here() -> bool:
        while (message := _arrived(mpi, comm, mpi.ANY_SOURCE, HELLO)) is not None:
            source, content = message
            portraits[source] = Portrait.decode(content)
        return len(portraits) == int(comm.size)

    if not wait_until(all_here, patience, timeout):
        missing = [rank for rank in range(comm.size) if rank not in portraits]
        raise PoolError(
            f"the ranks {missing} did not enter MPIPool within {timeout:.0f} s: all ranks must "
            "run the same script up to that line"
        )
    check_agreement(portraits)
    places = tuple(portraits[rank].place for rank in range(comm.size))
    seal = new_seal(portrait)
    said = _welcome(places, seal)
    for rank in range(1, comm.size):
        comm.Send(said, dest=rank, tag=WELCOME)
    wait_until(lambda: all(greeting.Test() for greeting in greetings), patience, timeout)
    return places, seal


def _welcome(places: Sequence[Place], seal: int) -> np.ndarray:
    said = [[place.host, sorted(place.cores), place.pid, place.space] for place in places], seal
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


def _arrived(mpi: Any, comm: Any, source: int, tag: int) -> tuple[int, bytes] | None:
    """Return who has sent a message with this tag, and what it says; None if nobody has yet."""
    status = mpi.Status()
    if not comm.Iprobe(source=source, tag=tag, status=status):
        return None
    content = np.empty(status.Get_count(mpi.BYTE), np.uint8)
    comm.Recv(content, source=status.source, tag=tag)
    return status.source, content.tobytes()


def _hear(mpi: Any, comm: Any, patience: Patience, timeout: float, else_said: str) -> bytes:
    """Return what rank 0 says next, waiting for it with a bound."""
    heard: list[bytes] = []

    def arrived() -> bool:
        if (message := _arrived(mpi, comm, 0, WELCOME)) is not None:
            heard.append(message[1])
        return bool(heard)

    if not wait_until(arrived, patience, timeout):
        raise PoolError(
            f"rank {comm.rank}: {else_said} within {timeout:.0f} s; did it end or raise before?"
        )
    return heard[0]
