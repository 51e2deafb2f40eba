"""A watch on rank 0, for ranks that MPI would let wait for it without an end.

Nothing is sent for that, as rank 0 may be busy for hours, or stopped by Ctrl-Z, and be all right.
The operating system is asked instead. On rank 0's own host it knows of the process. On others it
knows when rank 0's host last acknowledged something on the TCP connections that MPI has with it,
which that host's system does whatever rank 0 is at; and it can be told to probe them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pymc_mpimap.pool.process import Process

__all__ = ["Watchdog", "addresses", "connected"]

_FIELDS = struct.Struct("52x2I")
"""Of Linux's ``tcp_info``: milliseconds since data and since an acknowledgement were received."""

_LOOKS = 4
"""The number of looks within the time limit."""

_CLEARANCE = 1.0
"""Seconds in which the launcher, when rank 0 dies, gets to end all ranks itself."""


class Watchdog:
    """A thread that finds out when rank 0 is gone.

    Parameters
    ----------
    pid : int or None
        Rank 0's process, if it is one of this host.
    addresses : frozenset of str
        Those of rank 0's host.
    limit : float
        Seconds for which rank 0's host may be out of reach.
    gone : callable
        Called by the thread with what happened to rank 0, a predicate, and whether its host is out
        of reach.
    """

    def __init__(
        self,
        pid: int | None,
        addresses: frozenset[str],
        limit: float,
        gone: Callable[[str, bool], None],
    ):
        self._pid, self._addresses, self._limit, self._gone = pid, addresses, limit, gone
        self._called_off = threading.Event()
        watch = self._watch_network if pid is None else self._watch_process
        self._thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        self._thread.start()

    def call_off(self) -> None:
        """Let rank 0 go, as it has said that it will."""
        self._called_off.set()

    def _watch_process(self) -> None:
        assert self._pid is not None
        try:
            process = Process(self._pid)
        except ProcessLookupError:
            pass  # It is gone already.
        except (AttributeError, OSError):
            return  # No such thing on this system, or it is not allowed: mpiexec has to see to it.
        else:
            process.join()
        if not self._called_off.wait(_CLEARANCE):
            self._gone("is gone", False)

    def _watch_network(self) -> None:
        interval = self._limit / _LOOKS
        silent, looked = 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            # Where this process was stopped meanwhile, the first look tells nothing.
            silent += min(now - looked, 2 * interval)
            looked = now
            silences = []
            for connection in _connections(self._addresses):
                with contextlib.suppress(OSError):  # It was closed just now.
                    _probe(connection, interval)
                    silences.append(_silence(connection))
            # Without any, nothing is known. MPI hears of a connection that was closed.
            silent = min(silent, *silences) if silences else 0.0
            if silent > self._limit:
                self._gone(f"was out of reach for {silent:.0f} s", True)
                return
            if self._called_off.wait(interval):
                return


def addresses() -> frozenset[str]:
    """Return the addresses of this host that this process has TCP connections from."""
    return frozenset(_host(connection.getsockname()) for connection in _connections())


def connected(peers: frozenset[str]) -> bool:
    """Return whether this process has TCP connections with one of these addresses."""
    return any(True for _ in _connections(peers))


def _connections(peers: frozenset[str] | None = None) -> Iterator[socket.socket]:
    """Yield this process's TCP connections, MPI's own; only with these addresses, if given.

    Each is closed again before the next: MPI must find it as it was.
    """
    if sys.platform != "linux":
        return
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not descriptor.readlink().name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                inet = connection.family in {socket.AF_INET, socket.AF_INET6}
                if inet and connection.type == socket.SOCK_STREAM:
                    peer = _host(connection.getpeername())
                    if peer in peers if peers is not None else not peer.startswith("127."):
                        yield connection


def _host(address: tuple[str, int]) -> str:
    return address[0].removeprefix("::ffff:")


def _probe(connection: socket.socket, interval: float) -> None:
    """Have the system ask the other host for a sign of life, wherever there was none for long."""
    seconds = max(1, round(interval))
    asks = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        # MPI may ask more often, to find out itself.
        if not asks or connection.getsockopt(socket.IPPROTO_TCP, option) > seconds:
            connection.setsockopt(socket.IPPROTO_TCP, option, seconds)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _silence(connection: socket.socket) -> float:
    """Return the seconds since the other host was last heard of."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _FIELDS.size)
    data, acknowledgement = _FIELDS.unpack(info)
    return float(min(data, acknowledgement)) / 1000
