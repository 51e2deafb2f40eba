"""Output of the ranks: whole lines, marked with their rank, and nothing lost at the end."""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import faulthandler
import fcntl
import io
import os
import sys
import termios
import time
from typing import Any, override

__all__ = ["drain", "print_whole_lines"]

_LONGEST = 1 << 15
"""Bytes of a line without an end that are held back at most."""

_DRAIN = 1.0
"""Seconds that the launcher gets at the end to read what was printed."""


class _MarkedLines(io.RawIOBase):
    """Passes whole lines on to a file descriptor, each in one piece and with a mark before it.

    A line is held back until it ends, also when it is flushed: what another rank prints would
    otherwise stand in the middle of it.
    """

    def __init__(self, name: str, descriptor: int, mark: str):
        self.name = name
        self._descriptor, self._mark = descriptor, mark.encode()
        self._begun = b""

    @override
    def writable(self) -> bool:
        return True

    @override
    def fileno(self) -> int:
        return self._descriptor

    @override
    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    @override
    def write(self, content: Any) -> int:
        added = bytes(content)
        *lines, self._begun = (self._begun + added).split(b"\n")
        if len(self._begun) > _LONGEST:
            lines.append(self._begun)
            self._begun = b""
        for line in lines:
            self._pass_on(line)
        return len(added)

    def _pass_on(self, line: bytes) -> None:
        # One call for each line: up to PIPE_BUF bytes, nothing else can get into it.
        rest = self._mark + line + b"\n"
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def end_line(self) -> None:
        """Pass on a line that was begun."""
        if self._begun:
            self._pass_on(self._begun)
            self._begun = b""


_marked: list[_MarkedLines] = []


def print_whole_lines(rank: int) -> None:
    """Let what this process prints arrive in whole lines, with ``[rank 3]`` before each.

    What rank 0 prints is not marked: it is what the program says, be it in a job or not.

    Of code that does not print through Python, lines are whole too, but not marked: it writes to
    the file descriptors, which stay what they are. A pipe in front of them would need a thread to
    read it, which cannot run while a job of C code keeps Python's lock: that job would wait for
    itself once the pipe is full, and what is in the pipe is lost if the rank is killed.
    """
    if rank == 0:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, write_through=False)
    elif not _marked:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, io.TextIOWrapper):  # If not, it is something of the user's own.
                setattr(sys, name, _marked_stream(stream, rank))
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        # Where a job crashed in compiled code is known to nobody else.
        with contextlib.suppress(OSError, ValueError):
            faulthandler.enable(sys.__stderr__)
    _end_lines_in_c()


def _marked_stream(stream: io.TextIOWrapper, rank: int) -> io.TextIOWrapper:
    # Who has kept the old one, a handler of logging for example, prints whole lines as well.
    stream.reconfigure(line_buffering=True, write_through=False)
    lines = _MarkedLines(stream.name, stream.fileno(), f"[rank {rank}] ")
    atexit.register(lines.end_line)
    _marked.append(lines)
    return io.TextIOWrapper(
        lines,  # as with python -u, there is no buffer
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        write_through=True,
    )


def _end_lines_in_c() -> None:
    """Let C's own stdout pass on each line when it ends: what waits is lost in a crash."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        libc = ctypes.CDLL(None)
        stdout = ctypes.c_void_p.in_dll(libc, "stdout")
        libc.malloc.restype = ctypes.c_void_p
        # Without a buffer given to it, glibc passes on a line piece by piece. It is never freed, as
        # C looks into it after Python has ended.
        buffer = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(_BUFFER)))
        libc.fflush(stdout)
        if buffer.value:
            libc.setvbuf(stdout, buffer, _IOLBF, ctypes.c_size_t(_BUFFER))


_BUFFER = 1 << 13

_IOLBF = 1
"""Of stdio.h, in glibc and musl: buffered by lines."""


def drain() -> None:
    """Pass on all that was printed, and wait until the launcher has read it.

    A launcher that is told to abort ends the ranks at once, and does not look at what is left in
    their pipes: an error's traceback, for example.
    """
    for lines in _marked:
        with contextlib.suppress(OSError):
            lines.end_line()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    deadline = time.monotonic() + _DRAIN
    while any(_unread(descriptor) for descriptor in (1, 2)) and time.monotonic() < deadline:
        time.sleep(1e-3)


def _unread(descriptor: int) -> int:
    """Return how many bytes are in a pipe; 0 for anything else."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]
