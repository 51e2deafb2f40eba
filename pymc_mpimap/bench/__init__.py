"""What an installation, a machine and an MPI can do: ``python -m pymc_mpimap.bench``."""
