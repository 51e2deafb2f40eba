"""Finding the records in the bytes of a log, whole or not."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pymc_mpimap.draws.record import FORMAT, MAGIC, Frame

__all__ = ["HEADERS", "Fault", "Scan", "name_of", "scan"]

HEADERS = 2
"""Copies of the header at the front of a log: one may be damaged."""

_DISK_BLOCK = 512
"""Bytes that a disk writes wholly or not at all; the blocks of file systems are multiples of it."""


def name_of(number: int) -> str:
    """Return what users call a record."""
    return f"draw {number - 1}" if number else "the header"


@dataclass(frozen=True)
class Fault:
    """Bytes of a log that are not what is to be there."""

    start: int
    stop: int
    what: str

    def __str__(self) -> str:
        return f"{self.what} (bytes {self.start} to {self.stop})"


@dataclass
class Scan:
    """The contents of a log.

    Attributes
    ----------
    identity : int or None
        That of most of its records; None if it has none.
    headers, draws : list of Frame
        The whole ones, each draw once, in the order of their numbers.
    faults : list of Fault
    n_made : int
        The highest number of a draw, whole or not.
    end : int
        Where the last record ends, or the last fault. What follows is of a draw that was not
        written to its end.
    """

    identity: int | None = None
    headers: list[Frame] = field(default_factory=list)
    draws: list[Frame] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    n_made: int = 0
    end: int = 0

    def gaps(self, n_made: int) -> list[range]:
        """Return the numbers of draws that are not whole, of as many as were made at the least."""
        numbers = [0, *(draw.number for draw in self.draws)]
        numbers.append(max(numbers[-1], n_made) + 1)
        return [range(a + 1, b) for a, b in itertools.pairwise(numbers) if b > a + 1]


@dataclass(frozen=True)
class _Stretch:
    """A record, whole or not, or bytes that are none."""

    start: int
    stop: int
    frame: Frame | None
    whole: bool


def scan(data: bytes) -> Scan:
    """Find all whole records, and say what else is there.

    Each frame has its own checksum, so that the length in it can be trusted. Where there is none,
    the next one is looked for: a damaged record hides no other.
    """
    stretches = _stretches(data)
    owners = Counter(s.frame.identity for s in stretches if s.frame is not None)
    if not owners:
        return Scan(faults=[Fault(0, len(data), "no record")], end=len(data))
    found = Scan(owners.most_common(1)[0][0])
    rest = _cut_off(data, stretches, found.identity)
    found.end = len(data) if rest is None else rest
    _sort(found, [s for s in stretches if s.start < found.end])
    return found


def _stretches(data: bytes) -> list[_Stretch]:
    found = []
    at = 0
    while at < len(data):
        frame = Frame.at(data, at)
        whole = frame is not None and frame.is_whole(data)
        if frame is None:
            stop = _next_frame(data, at + 1)
        else:
            # Bytes may have been taken out of a record, so that another begins within its length.
            stop = frame.stop if whole else min(frame.stop, _next_frame(data, at + Frame.SIZE))
        found.append(_Stretch(at, stop, frame, whole))
        at = stop
    return found


def _next_frame(data: bytes, start: int) -> int:
    """Return where the next frame is from here on, or where the bytes end."""
    at = data.find(MAGIC, start)
    while at >= 0 and Frame.at(data, at) is None:
        at = data.find(MAGIC, at + 1)
    return at if at >= 0 else len(data)


def _cut_off(data: bytes, stretches: Sequence[_Stretch], identity: int | None) -> int | None:
    """Return where the draw begins that was not written to its end, if the log ends in one.

    A program that ends while it writes leaves the first bytes of a record. A host that loses its
    power may leave zeros instead of some blocks of the disk, up to the end of the file. A damaged
    record is not taken for either: its frame has its checksum and so says where it ends; and its
    last byte is not zero.
    """
    last = len(stretches)
    while last and not stretches[last - 1].whole:
        last -= 1
    rest = stretches[last:]
    if not rest or last < HEADERS or sum(s.frame is not None for s in rest) > 1:
        return None
    start, size = rest[0].start, len(data)
    solid = start + len(data[start:].rstrip(b"\0"))
    written = min(-(-solid // _DISK_BLOCK) * _DISK_BLOCK, size)
    before = stretches[last - 1].frame
    assert before is not None
    number, frame = before.number + 1, rest[0].frame
    if solid == start:
        is_cut = True
    elif written - start < Frame.SIZE:
        is_cut = Frame.begins_like(data[start:written], identity or 0, number)
    else:
        is_cut = (
            frame is not None
            and (frame.identity, frame.number) == (identity, number)
            and written < frame.stop
        )
    return start if is_cut else None


def _sort(found: Scan, stretches: Sequence[_Stretch]) -> None:
    """Put the records where they belong, and note what is wrong with them and their order."""
    draws: dict[int, Frame] = {}
    expected: int | None = 0
    for s in stretches:
        what = _damage(s, found.identity)
        if what is None and s.frame is not None:
            what = _take(found.headers, draws, s.frame, expected)
        if what is not None:
            found.faults.append(Fault(s.start, s.stop, what))
        # After a fault, the order is taken up again from the record that is there.
        expected = None
        if s.frame is not None and s.frame.identity == found.identity:
            found.n_made = max(found.n_made, s.frame.number)
            expected = 0 if s is stretches[0] else s.frame.number + 1
    if len(found.headers) < HEADERS and not found.faults:
        found.faults.append(Fault(found.end, found.end, "the header's second copy is missing"))
    found.draws = [draws[number] for number in sorted(draws)]


def _damage(s: _Stretch, identity: int | None) -> str | None:
    """Say what is wrong with a stretch by itself."""
    if s.frame is None:
        return "no record can be read"
    name = name_of(s.frame.number)
    if s.frame.identity != identity:
        return f"{name} of another chain"
    if s.frame.format != FORMAT:
        return f"{name} of another format"
    if s.whole:
        return None
    return f"{name} is cut off" if s.frame.stop > s.stop else f"{name} does not have its checksum"


def _take(
    headers: list[Frame], draws: dict[int, Frame], frame: Frame, expected: int | None
) -> str | None:
    """Put a whole record where it belongs, and say what is wrong with its place."""
    number = frame.number
    if number == 0 and len(headers) < HEADERS and not draws:
        headers.append(frame)
        return None
    if number == 0 or number in draws:
        return f"{name_of(number)} is there once more"
    draws[number] = frame
    if expected is not None and number != expected:
        return f"{name_of(number)} stands where {name_of(expected)} was to be"
    return None
