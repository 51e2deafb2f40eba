"""Time an evaluation after a pause of the sampler, and what idle ranks cost.

From a checkout: ``mpiexec -n 2 python -m benchmarks.waiting [--json FILE]``. In a pause rank 0
computes, as a sampler would. What is evaluated has no work in it.
"""

from __future__ import annotations

import os
import time

import pymc_mpimap as mpimap
from benchmarks.common import Census, keep, median_minimum, options
from pymc_mpimap.bench import workloads

GAPS = (0.0, 20e-6, 300e-6, 3e-3, 10e-3, 50e-3)


def pause(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def latencies(ranks: int, rounds: int) -> list[dict[str, float]]:
    """Return the time of an evaluation after each gap; the gaps take turns."""
    workload = workloads.nothing(ranks)
    point = workload.point
    times: dict[float, list[float]] = {gap: [] for gap in GAPS}
    for number in range(rounds + 1):
        for gap in GAPS:
            workload.function(*point)
            pause(gap)
            point[0].flat[0] += 1e-12
            begun = time.perf_counter()
            workload.function(*point)
            if number:  # Not the first round, which compiles.
                times[gap].append(time.perf_counter() - begun)
    return [{"gap": gap, **median_minimum(found)} for gap, found in times.items()]


def processor_time() -> list[float]:
    return [time.process_time()]


def idle(ranks: int, seconds: float) -> list[float]:
    """Return the share of a core that each other rank uses while rank 0 sleeps."""
    census = Census(ranks, processor_time, 1)
    before, begun = census(), time.perf_counter()
    time.sleep(seconds)
    slept = time.perf_counter() - begun
    after = census()
    shares = {pid: (after[pid][0] - before[pid][0]) / slept for pid in before}
    return [share for pid, share in shares.items() if pid != os.getpid()]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="pauses of each length")
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds that rank 0 sleeps")
    asked = parser.parse_args()
    with mpimap.MPIPool() as pool:
        found = latencies(pool.ranks, asked.rounds)
        used = idle(pool.ranks, asked.sleep)
        print(f"{pool.ranks} ranks: an evaluation after a pause")
        for row in found:
            numbers = f"{1e6 * row['median']:9.1f} us, minimum {1e6 * row['minimum']:9.1f} us"
            print(f"  {1e3 * row['gap']:6.2f} ms: median {numbers}")
        for share in used:
            print(f"  idle, a rank uses {100 * share:.2f} % of a core", flush=True)
        keep(asked.json, "waiting", pool.report().hosts, latency=found, idle=used)


if __name__ == "__main__":
    # By its name: other ranks must find what is asked of them.
    from benchmarks.waiting import main as run

    run()
