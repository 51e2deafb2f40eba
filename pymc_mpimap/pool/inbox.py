"""The inputs of a program as a worker was last sent them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pymc_mpimap.pool.commons import array_at
from pymc_mpimap.pool.protocol import APART, HEADER, Layout, Packing
from pymc_mpimap.pool.wait import Patience, wait_until

__all__ = ["Inbox"]


class Inbox:
    """The inputs of one program, which stay where they are and are received when they change.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    layout : Layout
    patience : Patience

    Attributes
    ----------
    current : list of array
        The inputs, or this rank's parts of them.
    places : dict of int to array
        Where those arrays of the answer go that are not sent.
    """

    def __init__(self, comm: Any, layout: Layout, patience: Patience):
        self._patience = patience
        self._packing = Packing(layout.parts, len(layout.parts))
        common = {place.number for place in layout.inputs}
        # Those in common are found later: who cannot find them must still receive the others.
        self.current = [
            np.zeros((0,) if i in common else shape, dtype)
            for i, (dtype, shape) in enumerate(self._packing.parts)
        ]
        self.places: dict[int, np.ndarray] = {}
        self._layout = layout
        self._apart = {
            i: comm.Recv_init(self.current[i].reshape(-1).view(np.uint8), source=0, tag=APART + i)
            for i in layout.apart
        }
        self._message: np.ndarray | None = None
        self._changes: dict[bytes, tuple[list[tuple[np.ndarray, np.ndarray]], list[Any]]] = {}

    def find(self) -> None:
        """Find what is in memory in common.

        Raises
        ------
        OSError
            If it is not there.
        """
        for place in self._layout.inputs:
            self.current[place.number] = array_at(place)
        self.places = {place.number: array_at(place) for place in self._layout.outputs}

    def update(self, message: np.ndarray) -> None:
        """Take the changed inputs out of a message, and receive those that come apart."""
        if message is not self._message:
            self._message, self._changes = message, {}
            self._flags = message[8 * HEADER : 8 * HEADER + self._packing.flags]
        flags = self._flags.tobytes()
        change = self._changes.get(flags)
        if change is None:
            change = self._changes[flags] = self._change(message, flags)
        pairs, apart = change
        for request in apart:
            request.Start()
        for current, place in pairs:
            current[...] = place
        for request in apart:
            wait_until(request.Test, self._patience)

    def drop(self, message: np.ndarray) -> None:
        """Receive what comes apart, for a program that is not here."""
        if self._apart:
            self.update(message)

    def _change(
        self, message: np.ndarray, flags: bytes
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[Any]]:
        changed = [i for i, flag in enumerate(flags) if flag]
        packed = tuple(i for i in changed if i not in self._apart)
        places, _ = self._packing.views(message, packed)
        pairs = [(self.current[i], place) for i, place in zip(packed, places, strict=True)]
        return pairs, [self._apart[i] for i in changed if i in self._apart]

    def close(self) -> None:
        """Receive no more; nothing may be on its way."""
        for request in self._apart.values():
            request.Free()
