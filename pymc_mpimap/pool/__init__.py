"""Where jobs are evaluated: in this process, or on MPI ranks."""
