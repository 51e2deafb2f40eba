"""The files in a folder of draws: their names, and whom they are from.

::

    chain-0.draws      the log: a header, twice, then one record a draw; records are only ever added
    chain-0.state-*    three slots, each with the state of the sampler after one of the last draws
    chain-0.new        a log that is being begun, until it is complete with its header
"""

from __future__ import annotations

import errno
import io
import os
import pwd
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymc_mpimap.errors import InputError

__all__ = [
    "chains_in",
    "check_names",
    "check_owner",
    "log_path",
    "new_log_path",
    "open_file",
    "opened",
    "state_paths",
    "synchronize",
    "write_all",
]

_SLOTS = 3
_NAME = re.compile(rf"chain-(0|[1-9][0-9]{{0,17}})\.(draws|new|state-[0-{_SLOTS - 1}])")


def log_path(folder: Path, chain: int) -> Path:
    """Return where the draws of a chain are."""
    return folder / f"chain-{chain}.draws"


def new_log_path(folder: Path, chain: int) -> Path:
    """Return where the draws of a chain are begun."""
    return folder / f"chain-{chain}.new"


def state_paths(folder: Path, chain: int) -> list[Path]:
    """Return where the states of a chain's sampler are."""
    return [folder / f"chain-{chain}.state-{k}" for k in range(_SLOTS)]


def chains_in(folder: Path) -> list[int]:
    """Return the numbers of the chains in a folder.

    Raises
    ------
    InputError
        If it holds a file that is named like one of draws, but is none.
    """
    found = []
    for path in folder.glob("chain-*.draws"):
        name = _NAME.fullmatch(path.name)
        if name is None:
            raise InputError(
                f"{path} is named like a file of draws, but {path.stem.removeprefix('chain-')!r} "
                "is no number of a chain: move it elsewhere"
            )
        found.append(int(name[1]))
    return sorted(found)


def check_names(folder: Path) -> None:
    """Refuse a folder that holds anything but files of draws.

    Raises
    ------
    InputError
    """
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        raise InputError(f"{folder} is a file; draws are kept in a folder: give another path")
    strange = sorted(path.name for path in folder.glob("*") if not _NAME.fullmatch(path.name))
    if strange:
        raise InputError(
            f"the folder {folder} holds {strange[0]!r}, which is none of the files that draws are "
            "kept in: give a path that does not exist yet, or that of kept draws, or move it "
            "elsewhere"
        )
    orphans = {name[1] for path in folder.glob("*") if (name := _NAME.fullmatch(path.name))}
    for chain in sorted(orphans):
        states = [path for path in state_paths(folder, int(chain)) if os.path.lexists(path)]
        if states and not os.path.lexists(log_path(folder, int(chain))):
            raise InputError(
                f"{folder} holds {states[0].name}, the state of a sampler, but not the draws that "
                f"were made with it: move chain-{chain}.draws back; or, to make these draws "
                f"again, remove chain-{chain}.state-*"
            )


@contextmanager
def opened(path: Path, mode: str) -> Iterator[io.FileIO]:
    """Open a file for a while; see `open_file`."""
    file = open_file(path, mode)
    try:
        yield file
    finally:
        file.close()


def open_file(path: Path, mode: str) -> io.FileIO:
    """Open a regular file, which only the user may write to if it is a new one.

    Raises
    ------
    InputError
        If it is a directory, a link or something else, or may not be read or written.
    """
    try:
        file = open(path, mode, buffering=0, opener=_open)  # noqa: SIM115 # closed by the caller
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _not_regular(path) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = "read" if mode == "rb" else "written to"
            raise InputError(
                f"{path} cannot be {what}: {error.strerror}. Change its permissions, or copy the "
                "folder to where they are yours"
            ) from None
        raise
    assert isinstance(file, io.FileIO)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular(path)
    return file


def _open(path: str, flags: int) -> int:
    # Not blocking, as opening a named pipe would. Whatever the umask is: others may not write.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def _not_regular(path: Path) -> InputError:
    mode = path.lstat().st_mode
    kinds = [(stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a directory")]
    kind = next((name for check, name in kinds if check(mode)), "no regular file")
    cure = "put the file itself there" if stat.S_ISLNK(mode) else "move it elsewhere"
    return InputError(f"{path} is {kind}, and not a file that disk_trace has written: {cure}")


def check_owner(path: Path, file: io.FileIO) -> None:
    """Refuse to unpickle what anybody but the user may have written.

    Raises
    ------
    InputError
    """
    status = os.fstat(file.fileno())
    why = "going on from it runs what its writer put there (the sampler's state is a pickle)"
    if status.st_uid != os.geteuid():
        raise InputError(
            f"{path} belongs to {_user(status.st_uid)}, not to you ({_user(os.geteuid())}), and "
            f"{why}. pymc_mpimap.read_draws reads its draws without. If you trust its writer, "
            "make a copy of the folder, which is yours: cp -r. Where new files are not yours "
            "either, keep draws on another file system"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"others than you may write to {path} (mode {stat.S_IMODE(status.st_mode):o}), and "
            f"{why}. If nobody has, say so by: chmod go-w {path.parent}/chain-*; where that has "
            "no effect, keep draws on a file system that has permissions"
        )


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write bytes, all of them; an error has the file's name."""
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error


def synchronize(file: io.FileIO) -> None:
    """Have a file written to the disk itself; an error has the file's name."""
    try:
        os.fdatasync(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
