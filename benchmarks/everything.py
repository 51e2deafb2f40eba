"""Make all the results that docs/performance.md shows, and put them there.

From a checkout: ``python -m benchmarks.everything [--short]``; about a quarter of an hour on a
machine that has nothing else to do. Results go to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

MPIEXEC = Path(sys.executable).with_name("mpiexec")
RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).parents[1]


def commands(short: bool) -> dict[str, tuple[int, list[str]]]:
    """Return for each file of results the number of ranks (0: no mpiexec) and the command."""
    turns = ["--rounds", "5", "--seconds", "0.05"] if short else []
    data = ["--megabytes", "64", "--most", "32", "--rounds", "3"] if short else ["--most", "1024"]
    bench, work = ["pymc_mpimap.bench", *turns], ["benchmarks.workloads", *turns]
    return {
        "bench-2": (2, bench),
        "bench-4": (4, [*bench, "floor", "dispatch"]),
        "layers-2": (2, ["benchmarks.layers", *(["--rounds", "5"] if short else [])]),
        "workloads-2": (2, work),
        "contest-2": (2, ["benchmarks.contest", *turns]),
        "waiting-2": (2, ["benchmarks.waiting", *(["--rounds", "30"] if short else [])]),
        "growth-2": (2, ["benchmarks.growth"]),
        "data-2": (2, ["benchmarks.data", *data]),
        "startup": (0, ["benchmarks.startup", *(["--warm", "1"] if short else [])]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="which of them (default: all)")
    parser.add_argument("--short", action="store_true", help="fewer and shorter turns")
    asked = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name, (ranks, words) in commands(asked.short).items():
        if asked.names and name not in asked.names:
            continue
        launcher = [str(MPIEXEC), "-n", str(ranks)] if ranks else []
        begun = time.monotonic()
        file = RESULTS / f"{name}.json"
        command = [*launcher, sys.executable, "-m", *words, "--json", str(file)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - begun:.0f} s\n", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.report"], cwd=ROOT, check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
