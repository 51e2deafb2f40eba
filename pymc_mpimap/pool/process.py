"""Another process of this host, be it a child of this one or not."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable

__all__ = ["Process", "ending"]


class Process:
    """A process that is known by a descriptor: its number may be given to another one later.

    Parameters
    ----------
    pid : int

    Raises
    ------
    ProcessLookupError
        If there is none.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self._file = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLIN)

    def ended(self, timeout: float = 0.0) -> bool:
        """Return whether it has ended, or does so within some seconds."""
        return bool(self._poll.poll(1000 * timeout))

    def join(self) -> None:
        """Wait until it has ended."""
        self._poll.poll()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._file, number)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


def ending(pid: int) -> Callable[[], bool] | None:
    """Return what tells whether a process has ended; None where the system does not tell."""
    try:
        return Process(pid).ended
    except ProcessLookupError:
        return lambda: True
    except (AttributeError, OSError):  # No such thing on this system, or it is not allowed.
        return None
