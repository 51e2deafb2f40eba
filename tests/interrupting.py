"""Ctrl-C at every line of the pool's code that a call passes, one after the other."""

import os
import signal
import sys

import numpy as np


def striking_at(line):
    """Return a trace function that presses Ctrl-C before this line of the pool's code, counted."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if f"pymc_mpimap{os.sep}pool" not in frame.f_code.co_filename:
            return None
        if event == "line":
            passed += 1
            if passed == line:
                signal.raise_signal(signal.SIGINT)
        return trace

    return trace


def interrupt_at_every_line(function, size, expected, *, before=lambda: None, step=1):
    """Interrupt a linear function of a vector at each line in turn; return how many there were.

    Parameters
    ----------
    function : callable
    size : int
        The vector's length.
    expected : array
        What a vector of ones gives.
    before : callable
        Called before each interrupted call.
    step : int
        Strike at each so manyth line only.
    """
    function(np.ones(size))
    # A shell that starts tests in the background has them ignore it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _strike(function, size, expected, before, step)
    finally:
        signal.signal(signal.SIGINT, handler)


def _strike(function, size, expected, before, step):
    line, struck = 0, True
    while struck:
        line += step
        before()
        tracing = sys.gettrace()
        sys.settrace(striking_at(line))
        try:
            function(np.full(size, 1.0 + line))
            struck = False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        # Now the same values as before, now others: either may be what the ranks have.
        for factor in (1.0 + line, 0.5):
            values = function(np.full(size, factor))
            np.testing.assert_allclose(values, expected * factor, rtol=1e-12)
    return line
