"""Descriptions of exceptions, of whatever kind, as plain strings of bounded length."""

from __future__ import annotations

import socket
import traceback

from pymc_mpimap.errors import JobFailure

__all__ = ["as_cause", "describe", "from_job", "is_interrupt"]

_MOST = 500
"""Characters of an exception's own line: it stands in reports and at the head of messages."""

_MOST_OF_TRACEBACK = 20_000
"""Characters: a recursion of several functions has a thousand frames; some messages hold arrays."""


def describe(error: BaseException, function: str, job: int, rank: int) -> JobFailure:
    """Describe what was raised on this host.

    Parameters
    ----------
    error : BaseException
        Its methods may raise, too: it can be of any class.
    function : str
        What was evaluated.
    job, rank : int
    """
    return JobFailure(
        function=function,
        job=job,
        rank=rank,
        host=socket.gethostname(),
        exception=_shortened(_line(error), _MOST),
        traceback=_shortened(_traceback(error), _MOST_OF_TRACEBACK),
    )


def from_job(error: BaseException, rank: int) -> bool:
    """Return whether a job raised this: Ctrl-C, which rank 0 alone receives, is the user's."""
    return rank > 0 or not is_interrupt(error)


def is_interrupt(error: BaseException) -> bool:
    """Return whether this is a KeyboardInterrupt, without asking the exception, which may raise."""
    return issubclass(type(error), KeyboardInterrupt)


def as_cause(error: BaseException) -> BaseException | None:
    """Return the exception if tracebacks can show it; they fail over one that raises when asked."""
    try:
        traceback.format_exception(error)
    except BaseException:
        return None
    return error


def _line(error: BaseException) -> str:
    name = _name(error)
    try:
        # The first line is the exception's own; PyTensor adds hints below it.
        text = (str(error).strip().splitlines() or [""])[0]
    except BaseException as another:
        return f"{name}, whose text could not be had: its __str__ raised {_name(another)}"
    return f"{name}: {text}" if text else name


def _name(error: BaseException) -> str:
    # Not by the attribute: a metaclass may raise.
    return str(type.__dict__["__name__"].__get__(type(error)))


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as another:
        frames = "".join(traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error)))
        return (
            f"Traceback (most recent call last):\n{frames}{_name(error)}, which could not "
            f"be shown: that raised {_name(another)}\n"
        )


def _shortened(text: str, most: int) -> str:
    """Leave the middle out of a text that is too long."""
    if len(text) <= most:
        return text
    left_out = f" [... {len(text) - most} characters ...] "
    return f"{text[: most // 2]}{left_out}{text[-most // 2 :]}"
