"""The last states of a chain's sampler, in three slots."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymc_mpimap.draws.files import (
    check_owner,
    open_file,
    opened,
    state_paths,
    synchronize,
    write_all,
)
from pymc_mpimap.draws.record import MAGIC, Frame, pack
from pymc_mpimap.errors import InputError

__all__ = ["States"]

_MADE_BEFORE = struct.Struct("<I")
"""The plain part of a state: the checksum of the draw that was made before it."""


class States:
    """States of a sampler, each with the number and the checksum of the draw that it came after.

    A new one is never written over the last, nor over the one that was last made safe against a
    loss of power.

    Parameters
    ----------
    folder : Path
    chain : int
    """

    def __init__(self, folder: Path, chain: int):
        self._paths = state_paths(folder, chain)
        self._files: list[io.FileIO] = []
        self._last = self._synchronized = self._written = -1

    def numbers(self) -> dict[int | None, list[int]]:
        """Return after which draws there are states, by the identity of their logs."""
        found: dict[int | None, list[int]] = {}
        for path in self._paths:
            frame = _read(path)[1] if os.path.lexists(path) else None
            if frame is not None:
                found.setdefault(frame.identity, []).append(frame.number)
        return found

    def newest(self, identity: int | None, draws: Mapping[int, int]) -> tuple[int, int] | None:
        """Return the number and the slot of the newest state whose draw is there.

        Parameters
        ----------
        identity : int or None
            The log's.
        draws : mapping of int to int
            The checksums of the draws that are there, by their numbers.

        Raises
        ------
        InputError
            If a slot is a file of another program.
        """
        found = []
        for slot, path in enumerate(self._paths):
            if not os.path.lexists(path):
                continue
            data, frame = _read(path)
            if data.strip(b"\0") and not data.startswith(MAGIC[: len(data)]):
                raise InputError(
                    f"{path} is not from disk_trace, or its beginning is damaged: move it "
                    "elsewhere. The other two files of its kind may do without"
                )
            if frame is None or frame.identity != identity or frame.number not in draws:
                continue
            # Of the very draw: one of the same number may have been made twice.
            if data[frame.plain] == _MADE_BEFORE.pack(draws[frame.number]):
                found.append((frame.number, slot))
        return max(found, default=None)

    def load(self, slot: int) -> Any:
        """Return the state in a slot.

        Raises
        ------
        InputError
            If anybody but the user may have written it.
        """
        path = self._paths[slot]
        with opened(path, "rb") as file:
            check_owner(path, file)
            data = file.readall()
        frame = Frame.at(data, 0)
        if frame is None or not frame.is_whole(data):
            raise InputError(f"{path} was changed by another process while it was read")
        return pickle.loads(data[frame.pickled])

    def open(self, identity: int, n_draws: int, last: int | None) -> None:
        """Make ready for the states after the draws that follow so many.

        Parameters
        ----------
        identity : int
            The log's.
        n_draws : int
        last : int or None
            The slot with the state after the last of them, if there is one.
        """
        for path in self._paths:
            open_file(path, "ab").close()
            file = open_file(path, "r+b")
            self._files.append(file)
            frame = _read(path)[1]
            if frame is not None and (frame.identity != identity or frame.number > n_draws):
                file.truncate(0)  # It came after a draw that is not there.
        if last is not None:
            self._last = last
            self.synchronize()

    def write(self, identity: int, number: int, checksum: int, state: Any) -> None:
        """Write the state after a draw with a number and a checksum."""
        slot = next(k for k in range(len(self._paths)) if k not in (self._last, self._synchronized))
        record, _ = pack(identity, number, _MADE_BEFORE.pack(checksum), state)
        self._files[slot].seek(0)
        write_all(self._files[slot], record)
        self._written = slot

    def commit(self) -> None:
        """Take the state that was written last for that of the last draw, which is there now."""
        self._last = self._written

    def synchronize(self) -> None:
        """Have the state of the last draw written to the disk itself."""
        synchronize(self._files[self._last])
        self._synchronized = self._last

    def close(self) -> None:
        """Close the files; does nothing when they are."""
        for file in self._files:
            file.close()
        self._files = []


def _read(path: Path) -> tuple[bytes, Frame | None]:
    """Return what is in a slot, and the frame of the state if it is whole."""
    with opened(path, "rb") as file:
        data = file.readall()
    frame = Frame.at(data, 0)
    return data, frame if frame is not None and frame.is_whole(data) else None
