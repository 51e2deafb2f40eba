"""Run the tests of `tests/pools` on MPI ranks: ``mpiexec -n N python -m tests.mpi [pytest args]``.

Rank 0 runs pytest; the others serve. The exit status is pytest's.
"""

import sys
from pathlib import Path

import pytest

import pymc_mpimap


def main() -> None:
    with pymc_mpimap.MPIPool():
        status = pytest.main([str(Path(__file__).parent / "pools"), *sys.argv[1:]])
    sys.exit(status)


if __name__ == "__main__":
    main()
