"""A worker's reply: where it is put together, and the request that sends it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pymc_mpimap.pool.protocol import HEADER, UP, Packing, Status, new_buffer

__all__ = ["Reply"]


class Reply:
    """A buffer, and the persistent request that sends it."""

    def __init__(self, comm: Any, packing: Packing, dest: int):
        self.dest = dest
        buffer = new_buffer(packing.nbytes)
        self.header = buffer[: 8 * HEADER].view(np.int64)
        self.places, _ = packing.views(buffer, tuple(range(len(packing.parts))))
        self.request = comm.Send_init(buffer[: packing.nbytes], dest=dest, tag=UP)
        # What stands in the header: without need, it is not written again.
        self.status: Status | None = None
        self.counted = True

    def close(self) -> None:
        """Send no more; nothing may be on its way."""
        self.request.Free()
