"""A benchmark of an installation, a machine and an MPI: ``python -m pymc_mpimap.bench``."""
