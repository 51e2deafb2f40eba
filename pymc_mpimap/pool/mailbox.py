"""A worker's receiving end of the messages of one other rank."""

from __future__ import annotations

from typing import Any

import numpy as np

from pymc_mpimap.pool.mpi_errors import says_that_it_is_gone
from pymc_mpimap.pool.protocol import DOWN, HEADER, new_buffer

__all__ = ["Mailbox"]


class Mailbox:
    """A buffer, and the persistent request that receives into it.

    Attributes
    ----------
    source : int
        Who sends.
    message : array of uint8
        What has arrived. Another one after `reserve` made more room.
    header : array of int64
        The message's beginning.
    request : mpi4py.MPI.Prequest
    """

    def __init__(self, comm: Any, source: int, nbytes: int = 0):
        self._comm, self.source = comm, source
        self._open(max(nbytes, 8 * HEADER))

    def _open(self, nbytes: int) -> None:
        self.message = new_buffer(nbytes)
        self.header = self.message[: 8 * HEADER].view(np.int64)
        self.request = self._comm.Recv_init(self.message, source=self.source, tag=DOWN)
        self._started = False

    def reserve(self, nbytes: int) -> None:
        """Make room for messages of this size; nothing may be on its way."""
        if nbytes > len(self.message):
            self.close()
            self._open(nbytes)

    def arrived(self) -> bool:
        """Return whether a message is here; if not, it is awaited until the next call."""
        if not self._started:
            self.request.Start()
            self._started = True
        self._started = not self.request.Test()
        return not self._started

    def close(self) -> None:
        """Receive no more; nothing may be on its way."""
        try:
            if self._started:
                self.request.Cancel()
                self.request.Wait()
            self.request.Free()
        except RuntimeError as error:
            # There is nobody any more to receive from, and nothing left to close.
            if not says_that_it_is_gone(error):
                raise
