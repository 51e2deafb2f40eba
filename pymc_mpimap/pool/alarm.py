"""An alarm for jobs that do not return, in Python or in compiled code."""

from __future__ import annotations

import faulthandler
import signal
import sys
import warnings

from pymc_mpimap.errors import MapRectWarning

__all__ = ["Alarm"]


class Alarm:
    """Prints where every thread stands when a job takes too long, and may end the process.

    A job that hangs may never come back to the interpreter. So it is C code that prints, on the
    system's own alarm signal: setting it takes less than a microsecond, and it needs no thread.

    Parameters
    ----------
    fatal : bool
        Whether the alarm ends the process.
    """

    def __init__(self, *, fatal: bool):
        self._free = signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
        if not self._free:
            warnings.warn(
                "SIGALRM is in use in this process, so that jobs of this rank that do not return "
                "are not found",
                MapRectWarning,
                stacklevel=2,
            )
            return
        # In a notebook, and under some test runners, sys.stderr is no file.
        faulthandler.register(
            signal.SIGALRM, file=sys.__stderr__ or 2, all_threads=True, chain=fatal
        )

    def set(self, seconds: float | None) -> None:
        """Let it ring in so many seconds, unless `off` is called before; None: never."""
        if seconds is not None and self._free:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def off(self) -> None:
        """Let it not ring."""
        if self._free:
            signal.setitimer(signal.ITIMER_REAL, 0)
