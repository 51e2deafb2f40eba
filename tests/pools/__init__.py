"""Tests that hold for every pool: run plainly they use the serial one, under `tests.mpi` MPI's."""
