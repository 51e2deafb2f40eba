"""Time from the start of a program to its first gradient.

From a checkout: ``python -m benchmarks.startup [--json FILE] [--ranks 1 2 8]``. Each number of
ranks is started on an empty cache of PyTensor's, and again on the one that is then there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import keep, options

MPIEXEC = Path(sys.executable).with_name("mpiexec")
BEGUN = "PYMC_MPIMAP_BENCHMARK_BEGUN"
STEPS = ("imported", "in the pool", "model built", "first gradient", "second gradient")


def child(name: str) -> None:
    """Be the program: rank 0 prints how long after its start it has come how far."""
    begun, stamps = float(os.environ[BEGUN]), []

    def stamp() -> None:
        stamps.append(time.time() - begun)

    import pymc_mpimap as mpimap
    from pymc_mpimap.bench import workloads

    stamp()
    with mpimap.MPIPool():
        stamp()
        workload = getattr(workloads, name)()
        stamp()
        for _ in range(2):
            workload.point[0].flat[0] += 1e-12
            workload.function(*workload.point)
            stamp()
        print(json.dumps(stamps), flush=True)


def start(name: str, ranks: int, cache: str) -> dict[str, float]:
    """Start the program, and return when it came to each step, and to its end."""
    flags = ",".join(filter(None, [os.environ.get("PYTENSOR_FLAGS"), f"base_compiledir={cache}"]))
    begun = time.time()
    done = subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, "-m", "benchmarks.startup", "--child", name],
        env={**os.environ, "PYTENSOR_FLAGS": flags, BEGUN: str(begun)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    stamps = dict(zip(STEPS, json.loads(done.stdout.splitlines()[-1]), strict=True))
    return {**stamps, "ended": time.time() - begun}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--workload", default="lotka_volterra", help="of pymc_mpimap.bench")
    parser.add_argument("--warm", type=int, default=3, help="starts on a warm cache")
    parser.add_argument("--child", help="used by the benchmark itself")
    asked = parser.parse_args()
    if asked.child:
        child(asked.child)
        return
    found = []
    for ranks in asked.ranks:
        with tempfile.TemporaryDirectory() as cache:
            runs = [("cold", start(asked.workload, ranks, cache))]
            warm = [start(asked.workload, ranks, cache) for _ in range(asked.warm)]
            runs.append(("warm", min(warm, key=lambda run: run["first gradient"])))
        for label, run in runs:
            found.append({"ranks": ranks, "cache": label, **run})
            steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in run.items())
            print(f"{ranks} ranks, {label}: {steps} s", flush=True)
    keep(asked.json, "startup", [os.uname().nodename], workload=asked.workload, startup=found)


if __name__ == "__main__":
    main()
