"""Pools, which evaluate jobs: in this process, or on MPI ranks."""
