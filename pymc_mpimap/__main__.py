"""Run a script with a pool in force: ``mpiexec -n 8 python -m pymc_mpimap script.py [args]``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from pymc_mpimap.pool.mpi import MPIPool


def main() -> None:
    """Serve, or run the script on rank 0."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    script = sys.argv[1]
    if not Path(script).is_file():
        print(f"python -m pymc_mpimap: there is no script {script}", file=sys.stderr)
        sys.exit(2)
    sys.argv = sys.argv[1:]
    # As python itself does: modules beside the script can be imported, here and on workers.
    sys.path[0] = str(Path(script).resolve().parent)
    with MPIPool():
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
