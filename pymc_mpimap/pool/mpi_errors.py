"""Failures of processes, told from misuse among the errors that MPI raises."""

from __future__ import annotations

__all__ = ["says_that_it_is_gone"]


def says_that_it_is_gone(error: BaseException) -> bool:
    """Return whether MPI raised this because the other rank is not there any more.

    There are several names for that: ULFM's ``ERR_PROC_FAILED``, for which Open MPI can also say
    ``ERR_OTHER``, and others by the transport. So whatever is not an error of use counts.
    """
    if not isinstance(error, RuntimeError) or not hasattr(error, "Get_error_class"):
        return False
    from mpi4py import MPI

    return error.Get_error_class() not in {
        MPI.ERR_ARG,
        MPI.ERR_BUFFER,
        MPI.ERR_COMM,
        MPI.ERR_COUNT,
        MPI.ERR_RANK,
        MPI.ERR_REQUEST,
        MPI.ERR_TAG,
        MPI.ERR_TRUNCATE,
        MPI.ERR_TYPE,
    }
