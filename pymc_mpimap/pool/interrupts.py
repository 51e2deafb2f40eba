"""Steps that Ctrl-C must not cut in two: it is acted upon right after them."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

__all__ = ["Uninterrupted"]


class Uninterrupted:
    """A context in which SIGINT waits.

    Only for short steps between two waits: what the controller notes of a worker must be what
    was really sent to it, or later answers are taken for those of another evaluation.
    """

    def __enter__(self) -> None:
        self._came = False
        # Python runs signal handlers in its main thread alone: others are never interrupted.
        self._deferring = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is not None
        )
        if self._deferring:
            self._previous = signal.signal(signal.SIGINT, self._note)

    def _note(self, _number: int, _frame: Any) -> None:
        self._came = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._deferring:
            signal.signal(signal.SIGINT, self._previous)
            if self._came:
                signal.raise_signal(signal.SIGINT)
