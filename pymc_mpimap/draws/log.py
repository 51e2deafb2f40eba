"""The files of one chain: a log of its draws, and the last states of its sampler.

::

    chain-0.draws      a header, then one record a draw; records are only ever added
    chain-0.state-*    three slots, each with the state after one of the last draws

A record is written by one call, behind its length and checksum. The state after a draw is written
before the draw itself, and never over the state of the draw before: whenever the program is
killed, the last complete draw has its state.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pymc_mpimap.errors import InputError

__all__ = ["ChainLog", "chains_in"]

_FRAME = struct.Struct("<4sQI")
_MAGIC = b"draw"
_SLOTS = 3
_SYNC = 1.0
"""Seconds between two times that the host is made to write to the disk itself: what is lost if its
power fails. When only the program dies, nothing is."""


def _framed(value: Any) -> bytes:
    payload = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return _FRAME.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def _payload(data: memoryview) -> memoryview | None:
    """Return what the record at the front of some bytes holds, or None if it is not whole."""
    if len(data) < _FRAME.size:
        return None
    magic, length, checksum = _FRAME.unpack(data[: _FRAME.size])
    payload = data[_FRAME.size : _FRAME.size + length]
    whole = magic == _MAGIC and len(payload) == length and zlib.crc32(payload) == checksum
    return payload if whole else None


def chains_in(folder: Path) -> list[int]:
    """Return the numbers of the chains in a folder."""
    return sorted(int(path.stem.removeprefix("chain-")) for path in folder.glob("chain-*.draws"))


class ChainLog:
    """What is on disk of one chain.

    Parameters
    ----------
    folder : Path
        It need not exist.
    chain : int

    Attributes
    ----------
    header : dict or None
        What the log was begun with; None if there is none yet.
    n_draws : int
        How many complete draws there are.
    left_over : int
        How many bytes of a draw follow that was not written to its end.

    Raises
    ------
    InputError
        If the log is damaged elsewhere than at its end.
    """

    def __init__(self, folder: Path, chain: int):
        self.path = folder / f"chain-{chain}.draws"
        self._slots = [folder / f"chain-{chain}.state-{k}" for k in range(_SLOTS)]
        self._log: io.FileIO | None = None
        self._states: list[io.FileIO] = []
        self._last_slot = self._synced_slot = -1
        self._synced = 0.0
        self._scan()

    def _scan(self) -> None:
        data = memoryview(self.path.read_bytes() if self.path.exists() else b"")
        ends = []
        at = 0
        while (payload := _payload(data[at:])) is not None:
            at += _FRAME.size + len(payload)
            ends.append(at)
        self.header: dict[str, Any] | None = pickle.loads(_payload(data)) if ends else None  # type: ignore[arg-type]
        self._ends = ends
        self.n_draws = max(len(ends) - 1, 0)
        self.left_over = len(data) - at
        if not _is_cut_off(data[at:]):
            raise InputError(
                f"{self.path} is damaged: {self.n_draws} draws are good, but the {self.left_over} "
                "bytes that follow are none. For read_draws to read the good ones, shorten the "
                f"file: truncate -s {at} {self.path}"
            )

    def draws(self, stop: int | None = None) -> Iterator[Any]:
        """Read the draws, one after the other."""
        with self.path.open("rb") as file:
            for first, end in zip(self._ends, self._ends[1:][:stop], strict=False):
                file.seek(first + _FRAME.size)
                yield pickle.loads(file.read(end - first - _FRAME.size))

    def state(self) -> tuple[int, Any]:
        """Return the newest state of the sampler for which there is the draw, and its number.

        It is that of the last draw, but for a host that lost its power while writing. Number 0
        says that there is none.
        """
        best: tuple[int, Any] = (0, None)
        for path in self._slots:
            payload = _payload(memoryview(path.read_bytes())) if path.exists() else None
            if payload is not None:
                number, state = pickle.loads(payload)
                if best[0] < number <= self.n_draws:
                    best = (number, state)
        return best

    def open(self, header: dict[str, Any], n_draws: int) -> None:
        """Make ready for adding draws after these many; what follows them is cut off.

        Raises
        ------
        InputError
            If another process adds draws.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(
                f"another process is adding draws to {self.path}: wait for its end, or keep these "
                "draws under another path"
            ) from None
        if self.header is None:
            self._log.truncate(0)
            self._write(self._log, _framed(header))
            self.header, self._ends = header, [self._log.tell()]
        else:
            self._log.truncate(self._ends[n_draws])
        del self._ends[n_draws + 1 :]
        self.n_draws, self.left_over = n_draws, 0
        for path in self._slots:
            path.touch()
            self._states.append(path.open("r+b", buffering=0))
        self._protect_state_of_last_draw()

    def _protect_state_of_last_draw(self) -> None:
        for slot, path in enumerate(self._slots):
            payload = _payload(memoryview(path.read_bytes()))
            if payload is not None and pickle.loads(payload)[0] == self.n_draws:
                self._last_slot = self._synced_slot = slot

    def append(self, draw: Any, state: Any) -> None:
        """Add a draw and the sampler's state after it."""
        assert self._log is not None
        taken = (self._last_slot, self._synced_slot)
        slot = next(k for k in range(_SLOTS) if k not in taken)
        file = self._states[slot]
        file.seek(0)
        self._write(file, _framed((self.n_draws + 1, state)))
        record = _framed(draw)
        self._write(self._log, record)
        self._ends.append(self._ends[-1] + len(record))
        self._last_slot = slot
        self.n_draws += 1
        if time.monotonic() - self._synced >= _SYNC:
            os.fdatasync(file)
            os.fdatasync(self._log)
            self._synced_slot = slot
            self._synced = time.monotonic()

    @staticmethod
    def _write(file: io.FileIO, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) or 0 :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file.name)) from error

    def close(self) -> None:
        """Close the files; does nothing when they are."""
        for file in (self._log, *self._states):
            if file is not None:
                file.close()
        self._log, self._states = None, []


def _is_cut_off(data: memoryview) -> bool:
    """Whether what follows the last whole record is what a sudden end leaves of one."""
    if len(data) < _FRAME.size:
        return True
    magic, length, _ = _FRAME.unpack(data[: _FRAME.size])
    # After a loss of power, what was not yet on the disk may read as zeros, up to the end.
    return (magic == _MAGIC and len(data) <= _FRAME.size + length) or not any(data)
