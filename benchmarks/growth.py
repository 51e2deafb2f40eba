"""Count the bytes of a gradient, for more and more jobs a rank.

From a checkout: ``mpiexec -n 2 python -m benchmarks.growth [--json FILE]``. What is shared by all
jobs should cost the same however many there are. Bytes are counted where they are sent, by a
communicator that counts.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from mpi4py import MPI

import pymc_mpimap as mpimap
from benchmarks.common import Census, keep, options

SHARED, EVALUATIONS = 100, 50
JOBS = (1, 8, 64, 512, 4096)


class Counted(MPI.Prequest):
    """A message that is counted whenever it starts."""

    nbytes = 0
    sent = 0

    def Start(self) -> None:  # noqa: N802 # mpi4py's name
        Counted.sent += self.nbytes
        super().Start()


class Counting(MPI.Intracomm):
    """A communicator whose persistent messages are counted."""

    def Send_init(self, buffer: Any, *where: Any, **named: Any) -> Counted:  # noqa: N802 # mpi4py's
        request = Counted(super().Send_init(buffer, *where, **named))
        request.nbytes = memoryview(buffer).nbytes
        return request


def sent() -> list[float]:
    return [float(Counted.sent)]


def function(n_jobs: int) -> Any:
    """Return value and gradient of jobs with shared parameters alone."""
    theta = pt.dvector("theta", shape=(SHARED,))
    scale = np.linspace(1.0, 2.0, n_jobs)
    values = mpimap.map_rect(lambda theta, _job, s: s * (theta @ theta), theta, n_jobs, scale)
    total = values.sum()
    return pytensor.function([theta], [total, pt.grad(total, theta)])


def measure(ranks: int, per_rank: int, census: Census) -> dict[str, float]:
    """Return the bytes of one gradient, to and from one worker."""
    compiled, point = function(ranks * per_rank), np.ones(SHARED)
    compiled(point)
    before, again = census(), census()
    for _ in range(EVALUATIONS):
        point[0] += 1e-9
        compiled(point)
    after = census()
    each = {
        pid: float(after[pid][0] - again[pid][0] - (again[pid][0] - before[pid][0])) / EVALUATIONS
        for pid in after
    }
    down = each.pop(os.getpid())
    workers = max(1, len(each))
    return {"jobs_a_rank": per_rank, "down": down / workers, "up": sum(each.values()) / workers}


def main() -> None:
    asked = options(__doc__).parse_args()
    with mpimap.MPIPool(comm=Counting(MPI.COMM_WORLD)) as pool:
        census = Census(pool.ranks, sent, 1)
        found = [measure(pool.ranks, per_rank, census) for per_rank in JOBS]
        print(
            f"{pool.ranks} ranks, {SHARED} shared parameters: bytes of a gradient, to each worker"
        )
        for row in found:
            numbers = f"{row['down']:7.0f} down, {row['up']:7.0f} up"
            print(f"  {row['jobs_a_rank']:5.0f} jobs a rank: {numbers}", flush=True)
        keep(asked.json, "growth", pool.report().hosts, shared=SHARED, growth=found)


if __name__ == "__main__":
    # By its name: other ranks must find what is asked of them, and count in the same place.
    from benchmarks.growth import main as run

    run()
