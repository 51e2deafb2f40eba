"""Measure what data cost: memory of the ranks, comparing, hashing, sending again.

From a checkout: ``mpiexec -n 2 python -m benchmarks.data [--json FILE] [--megabytes 256]``. The
memory of ranks is measured by a program of its own for each way to give the data.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap
from benchmarks.common import Census, keep, options
from pymc_mpimap.bench.timing import Contestant, Effort, alternate, calls
from pymc_mpimap.bench.together import Together, floor

MPIEXEC = Path(sys.executable).with_name("mpiexec")
JOBS = 64
WAYS = ("none", "constants", "local", "shared variable")


def memory() -> list[float]:
    """Return this process's memory and its highest so far, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return [int(values[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]


def made(first: int, last: int, size: int) -> np.ndarray:
    """Return the data of some jobs; no two numbers are alike."""
    return np.arange(first * size, last * size, dtype=float).reshape(last - first, size)


def child(way: str, megabytes: float) -> None:
    """Hold data in one way; print times and the memory of each rank."""
    size = int(megabytes * 2**20 / 8 / JOBS)
    with mpimap.MPIPool() as pool:
        census = Census(pool.ranks, memory, 2)
        before = census()
        theta = pt.dscalar("theta")
        begun = time.perf_counter()
        data: Any = made(0, JOBS, 1)
        if way == "local":
            data = mpimap.local(lambda job: made(job, job + 1, size)[0], like=np.empty(0))
        elif way == "constants":
            data = np.empty((JOBS, size))
            for job in range(JOBS):
                data[job] = made(job, job + 1, size)
            data.flags.writeable = False  # Else a copy is made.
        elif way == "shared variable":
            data = pytensor.shared(made(0, JOBS, size), name="x")
        total = mpimap.map_rect(lambda theta, _job, x: theta * x.sum(), theta, JOBS, data).sum()
        function = pytensor.function([theta], [total, pt.grad(total, theta)])
        del data
        stamps = [time.perf_counter() - begun]
        for k in range(4):
            begun = time.perf_counter()
            function(1.0 + k)
            stamps.append(time.perf_counter() - begun)
        after = census()
        me = os.getpid()
        order = [me, *(pid for pid in after if pid != me)]
        print(
            json.dumps(
                {
                    "way": way,
                    "build": stamps[0],
                    "first": stamps[1],
                    "next": min(stamps[2:]),
                    "held": [after[pid][0] - before[pid][0] for pid in order],
                    "peak": [after[pid][1] - before[pid][0] for pid in order],
                }
            ),
            flush=True,
        )


def start(way: str, megabytes: float, ranks: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.data", "--child", way, "--megabytes", str(megabytes)]
    # mpiexec within mpiexec would join the outer one.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "HYD", "MPI", "PYMC"))}
    done = subprocess.run(
        [MPIEXEC, "-n", str(ranks), *words],
        env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=600,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spent(work: Callable[[], object]) -> Contestant:
    def turn(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            work()
        return time.perf_counter() - begun

    return turn


def changing(nbytes: int) -> tuple[Contestant, Contestant]:
    """Return evaluations that read a shared variable, unchanged and changed each time."""
    theta, x = pt.dscalar("theta"), pytensor.shared(np.ones(nbytes // 8), name="x", borrow=True)
    given = {"theta": theta, "x": x}
    total = mpimap.map_rect(lambda given, _job: given["theta"] * given["x"][0], given, JOBS).sum()
    function = pytensor.function([theta], total)
    point = [np.array(1.0)]

    def changed(value: np.ndarray) -> None:
        values = x.get_value(borrow=True)
        values[-1] += 1.0
        function(value)

    return calls(function, point), calls(changed, point)


def prices(nbytes: int, together: Together, effort: Effort) -> dict[str, Any]:
    """Return the time to compare, hash, copy and send so many bytes, and what `map_rect` needs."""
    array = np.arange(nbytes // 8, dtype=float)
    other = array.copy()
    contestants: dict[str, Contestant] = {
        "compare": spent(lambda: np.array_equal(array, other)),
        "copy": spent(lambda: np.copyto(other, array)),
        "blake2b": spent(lambda: hashlib.blake2b(array, digest_size=16).digest()),
    }
    try:
        import xxhash
    except ImportError:
        print("xxhash is not installed", file=sys.stderr)
    else:
        contestants["xxh3_128"] = spent(lambda: xxhash.xxh3_128_digest(array))
    if together.ranks > 1:
        contestants["bare MPI"] = floor(together, nbytes // 8, 1)
        unchanged, changed = changing(nbytes)
        contestants |= {"map_rect, unchanged": unchanged, "map_rect, changed": changed}
    timings = alternate(contestants, effort)
    return {"bytes": nbytes, **{timing.name: timing.median for timing in timings}}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--megabytes", type=float, default=256.0, help="of the data of all jobs")
    parser.add_argument("--most", type=float, default=256.0, help="the largest message, megabytes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", help="used by the benchmark itself")
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.megabytes)
        return
    with mpimap.MPIPool() as pool:
        held = []
        for way in WAYS:
            held.append(start(way, asked.megabytes, pool.ranks))
            print(held[-1], flush=True)
        together, effort, table = Together(pool.ranks), Effort(asked.rounds, 0.03), []
        for power in range(0, 21, 5):
            if 2**power <= 1024 * asked.most:
                table.append(prices(1024 * 2**power, together, effort))
                shown = [f"{k} {v:.3g}" for k, v in table[-1].items()]
                print(", ".join(shown), flush=True)
        hosts = pool.report().hosts
        keep(asked.json, "data", hosts, megabytes=asked.megabytes, memory=held, prices=table)


if __name__ == "__main__":
    # By its name: other ranks must find what is asked of them.
    from benchmarks.data import main as run

    run()
