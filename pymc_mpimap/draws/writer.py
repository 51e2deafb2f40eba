"""Adding draws to the files of a chain.

A record is written by one call. The state after a draw is written before the draw itself, and
never over the state of the draw before: whenever the program is killed, the last complete draw has
its state. A log is begun under another name, and gets its own with its headers in it, so that
nothing but the last draw of a log can be cut off.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import math
import os
import secrets
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pymc_mpimap.draws.files import (
    check_owner,
    new_log_path,
    open_file,
    synchronize,
    write_all,
)
from pymc_mpimap.draws.header import Header
from pymc_mpimap.draws.log import ChainLog
from pymc_mpimap.draws.record import MAGIC, pack
from pymc_mpimap.draws.scan import HEADERS
from pymc_mpimap.draws.states import States
from pymc_mpimap.errors import InputError, MapRectWarning

__all__ = ["ChainWriter"]

_SYNC = 1.0
"""Seconds between two times that the host is made to write to the disk itself: what is lost if its
power fails. When only the program dies, nothing is."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

_logger = logging.getLogger("pymc")


class ChainWriter:
    """The files of a chain, open for draws to be added.

    Parameters
    ----------
    log : ChainLog
        What is there.
    n_draws : int
        How many of its draws stay; the others, and one that was not written to its end, go.
    header : Header
    settings : Any
        How the sampler is set up. This and `header` are for a log that is begun.

    Raises
    ------
    InputError
        If another process adds draws, or has since `log` was read; or if others than the user may
        write to the files.
    """

    def __init__(self, log: ChainLog, n_draws: int, header: Header, settings: Any):
        self._path = log.path
        self._n_draws = n_draws
        self._states = States(log.folder, log.chain)
        self._is_replaced = False
        if log.header is None:
            self._header, self._identity = header, secrets.randbits(64)
            self._file = self._begun(log, settings)
            last = None
        else:
            assert log.identity is not None
            self._header, self._identity = log.header, log.identity
            self._file = self._continued(log)
            newest = log.newest_state
            last = newest[1] if newest is not None and newest[0] == n_draws else None
        try:
            self._states.open(self._identity, n_draws, last)
            synchronize(self._file)
        except BaseException:
            self._file.close()
            self._states.close()
            raise
        # At once after the first draw, so that there always is a state to go on from.
        self._synced = -math.inf if last is None else time.monotonic()
        self._is_synced = True

    def _begun(self, log: ChainLog, settings: Any) -> io.FileIO:
        log.folder.mkdir(parents=True, exist_ok=True)
        new = new_log_path(log.folder, log.chain)
        file = open_file(new, "a+b")
        try:
            self._lock(file)
            if os.path.lexists(self._path) or not _is_at(file, new):
                self._refuse_other_process("has begun to add")
            _check_is_begun(file, new)
            check_owner(new, file)
            file.truncate(0)
            record, _ = pack(self._identity, 0, self._header.pack(), settings)
            write_all(file, HEADERS * record)
            synchronize(file)
            new.rename(self._path)
            _synchronize_names(log.folder)
        except BaseException:
            file.close()
            raise
        self._end = HEADERS * len(record)
        return file

    def _continued(self, log: ChainLog) -> io.FileIO:
        file = open_file(self._path, "ab")
        try:
            self._lock(file)
            status = os.fstat(file.fileno())
            if (status.st_ino, status.st_size) != (log.inode, log.n_bytes):
                self._refuse_other_process("has added")
            check_owner(self._path, file)
            self._end = log.starts[self._n_draws]
            file.truncate(self._end)
        except BaseException:
            file.close()
            raise
        return file

    def _lock(self, file: io.FileIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse_other_process("is adding")
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _logger.warning(
                "The file system of %s has no locks: see to it yourself that no other process adds "
                "draws there",
                self._path,
            )

    def _refuse_other_process(self, what: str) -> NoReturn:
        raise InputError(
            f"another process {what} draws to {self._path}: wait for its end and start this "
            "program again, or keep these draws under another path"
        )

    def append(self, values: Mapping[str, Any], rest: Any, state: Any, *, in_warmup: bool) -> None:
        """Add a draw and the sampler's state after it.

        Parameters
        ----------
        values : mapping of str to array
            Of the header's variables.
        rest : Any
            What is needed to go on, besides.
        state : Any
        in_warmup : bool
        """
        plain = self._header.pack_draw(values, in_warmup=in_warmup)
        record, checksum = pack(self._identity, self._n_draws + 1, plain, rest)
        if os.fstat(self._file.fileno()).st_size != self._end:
            self._refuse_other_process("has added or removed")
        self._states.write(self._identity, self._n_draws + 1, checksum, state)
        try:
            write_all(self._file, record)
        except BaseException:
            # For what may come after it, say when there is room on the disk again.
            with suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(record)
        self._n_draws += 1
        self._is_synced = False
        self._states.commit()
        if time.monotonic() - self._synced >= _SYNC:
            self._synchronize()

    def _synchronize(self) -> None:
        self._states.synchronize()
        synchronize(self._file)
        self._synced, self._is_synced = time.monotonic(), True
        if not self._is_replaced and not _is_at(self._file, self._path):
            self._is_replaced = True
            warnings.warn(
                f"{self._path} was removed or replaced while draws were added to it. Those of this "
                "chain are in memory alone now, and lost if the program ends before pm.sample "
                "returns",
                MapRectWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        """Have all written to the disk itself, and close the files; does nothing when they are."""
        if self._file.closed:
            return
        try:
            if not self._is_synced:
                self._synchronize()
        finally:
            self._file.close()
            self._states.close()


def _check_is_begun(file: io.FileIO, path: Path) -> None:
    file.seek(0)
    if not MAGIC.startswith(file.read(len(MAGIC)).rstrip(b"\0")):
        raise InputError(f"{path} is not from disk_trace: move it elsewhere")


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Return whether a path leads to an open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _synchronize_names(folder: Path) -> None:
    """Have the names in a folder, and its own, written to the disk itself."""
    for path in (folder, folder.absolute().parent):
        # Some file systems have no such thing for folders, and not all may be opened.
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
