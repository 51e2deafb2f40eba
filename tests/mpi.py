"""Run the tests of `tests/pools` on MPI ranks: ``mpiexec -n N python -m tests.mpi [pytest args]``.

Rank 0 runs pytest; the others serve. The exit status is pytest's. On one rank only some are run:
it sends no messages, and so cannot treat one kind of job or argument otherwise than a serial pool.
"""

import sys
from pathlib import Path

import pytest

import pymc_mpimap

ON_ONE_RANK = [
    "changing_data",
    "equivalence",
    "errors",
    "interrupts",
    "moves",
    "nested",
    "results",
    "traffic",
]


def main() -> None:
    folder = Path(__file__).parent / "pools"
    with pymc_mpimap.MPIPool() as pool:
        tests = [folder] if pool.ranks > 1 else [folder / f"test_{name}.py" for name in ON_ONE_RANK]
        status = pytest.main([*map(str, tests), *sys.argv[1:]])
    sys.exit(status)


if __name__ == "__main__":
    main()
