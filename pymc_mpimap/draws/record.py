r"""Records: the form in which draws, and states of the sampler, are on disk.

::

    8 bytes   magic: b"\x93MPIMAP" and the number of the format
    8         identity: a random number, the same in all records of a chain
    8         number: 0 for the header, k for the k-th draw and for the state after it
    8         length of the plain part
    8         length of the pickled part
    4         CRC-32 of both parts
    4         CRC-32 of the 44 bytes before: a wrong length is known as such, and never followed
              plain part: numbers and text
              pickled part: what only going on needs; ends in a byte that is not zero, as pickles do

Integers are little-endian.
"""

from __future__ import annotations

import pickle
import struct
import zlib
from dataclasses import dataclass
from typing import Any

__all__ = ["FORMAT", "MAGIC", "Frame", "pack"]

FORMAT = 1
MAGIC = b"\x93MPIMAP"
_FIELDS = struct.Struct("<7sBQQQQI")
_CHECK = struct.Struct("<I")


def _checksum(plain: bytes, pickled: bytes) -> int:
    return zlib.crc32(pickled, zlib.crc32(plain))


def pack(identity: int, number: int, plain: bytes, value: Any) -> tuple[bytes, int]:
    """Return a record, and the checksum of its parts."""
    pickled = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    checksum = _checksum(plain, pickled)
    fields = _FIELDS.pack(MAGIC, FORMAT, identity, number, len(plain), len(pickled), checksum)
    return b"".join((fields, _CHECK.pack(zlib.crc32(fields)), plain, pickled)), checksum


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame in front of the two parts of a record, and its place."""

    start: int
    format: int
    identity: int
    number: int
    n_plain: int
    n_pickled: int
    checksum: int

    SIZE = _FIELDS.size + _CHECK.size

    @classmethod
    def at(cls, data: bytes, start: int) -> Frame | None:
        """Read the frame at a place; None if there is none, or it has not its own checksum."""
        fields = data[start : start + _FIELDS.size]
        check = data[start + _FIELDS.size : start + cls.SIZE]
        if fields[:7] != MAGIC or len(check) < _CHECK.size:
            return None
        if _CHECK.unpack(check)[0] != zlib.crc32(fields):
            return None
        return cls(start, *_FIELDS.unpack(fields)[1:])

    @staticmethod
    def begins_like(data: bytes, identity: int, number: int) -> bool:
        """Return whether bytes may be the first ones of a record."""
        known = _FIELDS.pack(MAGIC, FORMAT, identity, number, 0, 0, 0)[:24]
        return data[:24] == known[: len(data)]

    @property
    def plain(self) -> slice:
        """The place of the plain part."""
        return slice(self.start + self.SIZE, self.start + self.SIZE + self.n_plain)

    @property
    def pickled(self) -> slice:
        """The place of the pickled part."""
        return slice(self.plain.stop, self.stop)

    @property
    def stop(self) -> int:
        """The end of the record."""
        return self.start + self.SIZE + self.n_plain + self.n_pickled

    def is_whole(self, data: bytes) -> bool:
        """Return whether both parts are there and have the right checksum."""
        return self.stop <= len(data) and self.checksum == _checksum(
            data[self.plain], data[self.pickled]
        )
