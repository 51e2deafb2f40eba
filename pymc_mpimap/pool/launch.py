"""The launcher of this process, read from the environment: no MPI library is touched."""

from __future__ import annotations

import os
import sys

__all__ = [
    "POOL_OWNER",
    "forget_launcher",
    "forked_under_mpi",
    "launched_ranks",
    "under_launcher",
    "under_mpiexec",
    "under_open_mpi",
]

POOL_OWNER = "PYMC_MPIMAP_POOL_OWNER"
"""Environment variable with the process id of the controller; its children inherit it."""

# What the launchers of Open MPI, MPICH and Intel MPI, PMIx and Slurm tell each process.
_SIZE_AND_RANK = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


def launched_ranks() -> tuple[int, int]:
    """Return how many ranks were started and which one this is; ``(1, 0)`` outside mpiexec."""
    for size, rank in _SIZE_AND_RANK:
        if size in os.environ and rank in os.environ:
            return int(os.environ[size]), int(os.environ[rank])
    return 1, 0


# One of these is set in every process that mpiexec, srun or another launcher started.
_LAUNCHED = (
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    "MPI_LOCALRANKID",
    "SLURM_PROCID",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
    "ALPS_APP_PE",
)


def under_launcher() -> bool:
    """Return whether this process is a rank of an MPI job, or may have been before MPI started."""
    return "mpi4py.MPI" in sys.modules or any(name in os.environ for name in _LAUNCHED)


def under_mpiexec() -> bool:
    """Return whether a launcher started this process as one of its ranks, be it the only one.

    SLURM_PROCID alone does not say so: the script of a batch job has it too.
    """
    told = any(name in os.environ for name in _LAUNCHED if name != "SLURM_PROCID")
    return told or bool(_forgotten) or launched_ranks()[0] > 1


_forks: list[int] = []


def _note_fork() -> None:
    if "mpi4py.MPI" in sys.modules:
        _forks.append(os.getpid())


os.register_at_fork(after_in_child=_note_fork)


def forked_under_mpi() -> bool:
    """Return whether this process was forked from one that had MPI, which is not its own then."""
    return bool(_forks)


def under_open_mpi() -> bool:
    """Return whether Open MPI's mpiexec started this process; call it before MPI is started."""
    return "OMPI_COMM_WORLD_RANK" in os.environ


# A child that finds these would take itself for a rank of this job and hang or abort.
_LAUNCHER_VARIABLES = (
    "PMI", "PMIX", "OMPI_", "PRTE", "OPAL", "HYDRA", "HYDI", "MPI_LOCAL", "I_MPI", "MPIR",
)  # fmt: skip


_forgotten: list[str] = []


def forget_launcher() -> None:
    """Remove what the launcher told this rank, once MPI has started and read it."""
    for name in list(os.environ):
        if name.startswith(_LAUNCHER_VARIABLES):
            del os.environ[name]
            if name in _LAUNCHED:
                _forgotten.append(name)
