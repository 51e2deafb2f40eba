"""Logs: one chain's draws on disk, read."""

from __future__ import annotations

import io
import os
import pickle
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pymc_mpimap.draws.files import check_owner, log_path, opened
from pymc_mpimap.draws.header import Header
from pymc_mpimap.draws.record import FORMAT, Frame
from pymc_mpimap.draws.scan import HEADERS, Scan, name_of, scan
from pymc_mpimap.draws.states import States
from pymc_mpimap.errors import InputError

__all__ = ["ChainLog", "chains_by_run"]


class ChainLog:
    """One chain on disk, as it was when this was made.

    Parameters
    ----------
    folder : Path
        It need not exist.
    chain : int

    Attributes
    ----------
    path : Path
        Where the draws are.
    header : Header or None
        What the log was begun with; None if there is no log yet.
    identity : int or None
        That of the log's records.
    n_made : int
        How many draws there were at the least, by what the states of the sampler say.
    n_bytes, inode : int
        What the file system says of the log.

    Raises
    ------
    InputError
        If there is a file which is no log, or of which no header can be read.
    """

    def __init__(self, folder: Path, chain: int):
        self.folder, self.chain = folder, chain
        self.path = log_path(folder, chain)
        self.header: Header | None = None
        self.n_bytes = self.inode = 0
        self._scan = Scan()
        self._states = States(folder, chain)
        # The states first: each is written before its draw, so that no draw that is being made
        # while this is read seems to be missing.
        states = self._states.numbers()
        if os.path.lexists(self.path):
            self._read()
        self.identity = self._scan.identity
        # The draw after the newest state may not have been begun, but for bytes that are of it.
        faults = self._scan.faults
        not_begun = 0 if faults and faults[-1].stop == self.n_bytes else 1
        by_state = max(states.get(self.identity, [0])) - not_begun
        self.n_made = max(self._scan.n_made, by_state)

    def _read(self) -> None:
        with opened(self.path, "rb") as file:
            data = file.readall()
            self.inode = os.fstat(file.fileno()).st_ino
        self.n_bytes = len(data)
        first = Frame.at(data, 0)
        if first is not None and first.format != FORMAT:
            raise InputError(
                f"{self.path} is of format {first.format}, and this version of pymc_mpimap reads "
                f"format {FORMAT}: use the version that it was written with"
            )
        self._scan = scan(data)
        if not self._scan.headers:
            raise InputError(
                f"{self.path} has no header of a file of draws within its {len(data)} bytes: it is "
                "not from disk_trace, or from a version before 0.1.0, or its beginning is "
                "damaged. Put back a copy of it; or move it elsewhere, to read other chains or "
                "to make this one again"
            )
        try:
            self.header = Header.unpack(data[self._scan.headers[0].plain])
        except ValueError as error:
            raise InputError(
                f"{self.path} is not from disk_trace: {error}. Move it elsewhere"
            ) from None
        if self.header.chain != self.chain:
            raise InputError(
                f"{self.path} has the draws of chain {self.header.chain}: name it "
                f"chain-{self.header.chain}.draws again, and the chain's state files likewise"
            )
        strange = [d for d in self._scan.draws if d.n_plain != self.header.n_bytes]
        if strange:
            raise InputError(
                f"{self.path} is not from disk_trace: {name_of(strange[0].number)}, at byte "
                f"{strange[0].start}, has {strange[0].n_plain} bytes of values, and those of its "
                f"variables are {self.header.n_bytes}. Move it elsewhere"
            )

    @property
    def n_draws(self) -> int:
        """The number of whole draws."""
        return len(self._scan.draws)

    @property
    def starts(self) -> list[int]:
        """The place at which each draw begins, and the next one will."""
        return [*(draw.start for draw in self._scan.draws), self._scan.end]

    @property
    def newest_state(self) -> tuple[int, int] | None:
        """The number and the slot of the newest state for which there is the draw."""
        return self._states.newest(self.identity, self._checksums)

    @property
    def left_over(self) -> int:
        """The number of bytes that follow of a draw that was not written to its end."""
        return self.n_bytes - self._scan.end

    def unread(self) -> str | None:
        """Say what is not whole, draws that were made and are not there included; None if all is.

        Draws are counted from 0, those of the warm-up included.
        """
        said = [str(fault) for fault in self._scan.faults[:3]]
        if len(self._scan.faults) > 3:
            said.append(f"and {len(self._scan.faults) - 3} more faults")
        if self.left_over:
            last = max((draw.number for draw in self._scan.draws), default=0)
            said.append(
                f"{name_of(last + 1)}, from byte {self._scan.end} on, is not complete: it is being "
                "written, or was when the program ended"
            )
        gaps = self._scan.gaps(self.n_made)
        if gaps:
            some = [
                f"{g[0] - 1}" if len(g) == 1 else f"{g[0] - 1} to {g[-1] - 1}" for g in gaps[:5]
            ]
            more = "" if len(gaps) <= 5 else " and others"
            n_missing = sum(map(len, gaps))
            said.append(
                f"of {self.n_draws + n_missing} draws, warm-up included and counted from 0, "
                f"{n_missing} {'is' if n_missing == 1 else 'are'} missing: {', '.join(some)}{more}"
            )
        return "; ".join(said) or None

    def check_whole(self) -> None:
        """Refuse to go on from a damaged log, which stays as it is.

        Raises
        ------
        InputError
        """
        if self._scan.faults:
            raise InputError(f"{self.path} is damaged: {self.unread()}. {self._cure()}")

    def _cure(self) -> str:
        faults, headers = self._scan.faults, self._scan.headers
        size, path = headers[0].stop - headers[0].start, shlex.quote(str(self.path))
        if len(faults) == 1 and len(headers) == 1 and faults[0].stop - faults[0].start == size:
            good, bad = headers[0].start, faults[0].start
            return (
                "No draw is: the header is there twice, and one is whole. Copy it over the other: "
                f"dd if={path} of={path} bs=1 skip={good} seek={bad} count={size} "
                "conv=notrunc"
            )
        start = faults[0].start
        before = [draw for draw in self._scan.draws if draw.stop <= start]
        if before == self._scan.draws and len(headers) == HEADERS and self.newest_state:
            return (
                f"The {len(before)} draws before are whole. To go on from them, and make the "
                f"others again, shorten the file: truncate -s {start} {path}"
            )
        return (
            f"pymc_mpimap.read_draws reads the {self.n_draws} draws that are whole. To go on, put "
            "back a copy of the file; or begin again under another path"
        )

    def values(self) -> tuple[np.ndarray[Any, np.dtype[np.bool]], dict[str, np.ndarray]]:
        """Read which draws are of the warm-up, and each variable's values; nothing is unpickled."""
        assert self.header is not None
        with opened(self.path, "rb") as file:
            return self.header.unpack_draws(
                data[frame.plain] for frame, data in self._records(file, self._scan.draws)
            )

    def settings(self) -> Any:
        """Read how the sampler was set up."""
        return next(self._unpickled(self._scan.headers[:1]))[1]

    def draws(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Read the draws, one after the other."""
        assert self.header is not None
        for plain, (point, stats, logp) in self._unpickled(self._scan.draws[start:stop]):
            in_warmup, values = self.header.unpack_draws([plain])
            of_draw = {name: value[0, ...] for name, value in values.items()}
            yield {
                "point": {n: of_draw[n] if v is None else v for n, v in point.items()},
                "values": of_draw,
                "stats": stats,
                "logp": logp,
                "in_warmup": bool(in_warmup[0]),
            }

    def _unpickled(self, frames: list[Frame]) -> Iterator[tuple[bytes, Any]]:
        with opened(self.path, "rb") as file:
            check_owner(self.path, file)
            for frame, data in self._records(file, frames):
                yield data[frame.plain], pickle.loads(data[frame.pickled])

    def _records(self, file: io.FileIO, frames: list[Frame]) -> Iterator[tuple[Frame, bytes]]:
        """Read whole records once more, each with its frame as it is in its own bytes."""
        for frame in frames:
            file.seek(frame.start)
            data = file.read(frame.stop - frame.start)
            again = Frame.at(data, 0)
            if again is None or not again.is_whole(data):
                raise InputError(
                    f"{self.path}: {name_of(frame.number)}, at byte {frame.start}, was whole a "
                    "moment ago, and is not any more: another program changes the file, or the "
                    "disk fails"
                )
            yield again, data

    @property
    def _checksums(self) -> dict[int, int]:
        return {draw.number: draw.checksum for draw in self._scan.draws}

    def state(self) -> tuple[int, Any]:
        """Return the newest state of the sampler for which there is the draw, and its number.

        It is that of the last draw, but for a host that lost its power while writing. Number 0
        says that there is none.

        Raises
        ------
        InputError
            If anybody but the user may have written it.
        """
        newest = self.newest_state
        return (0, None) if newest is None else (newest[0], self._states.load(newest[1]))


def chains_by_run(logs: Iterable[ChainLog]) -> list[list[int]]:
    """Return the numbers of chains that have begun, those of each run together."""
    found: dict[int, list[int]] = {}
    for log in logs:
        if log.header is not None:
            found.setdefault(log.header.run, []).append(log.chain)
    return [*found.values()]
