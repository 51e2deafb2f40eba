"""Tests. Those in `pools` run on whatever pool is in force; see `tests.mpi`."""

import pytensor

# Set where every rank comes by, for all must compute alike. Without a C compiler the mode
# FAST_COMPILE needs no second a function, and without a BLAS for C there is no complaint that
# PyTensor found none: the wheels of NumPy and SciPy bring theirs, for Python and numba alone.
COMPILER = pytensor.config.cxx
pytensor.config.cxx = ""
pytensor.config.blas__ldflags = ""
