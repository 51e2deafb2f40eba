"""Ctrl-C at every line of the pool's code that a call passes, one after the other."""

import ast
import os
import signal
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest

SECONDS = 60  # for one evaluation in another thread, on a busy machine


@cache
def ways_out(path):
    """Return the pairs of lines of a file between which a ``with`` block is left.

    A trace function is called there too, but Python delivers no signal before ``__exit__`` was
    called: an exception would leave what no Ctrl-C can leave, a lock held for ever.
    """
    blocks = [
        node
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8")))
        if isinstance(node, ast.With)
    ]
    return {
        (inside, head)
        for block in blocks
        for inside in range(block.body[0].lineno, block.end_lineno + 1)
        for head in range(block.lineno, block.body[0].lineno)
    }


def striking_at(line):
    """Return a trace function that presses Ctrl-C before this line of the pool's code, counted."""
    passed = 0

    def trace_call(frame, _event, _):
        path = frame.f_code.co_filename
        if f"pymc_mpimap{os.sep}pool" not in path:
            return None
        before = frame.f_lineno

        def trace_line(frame, event, _):
            nonlocal passed, before
            if event == "line":
                step, before = (before, frame.f_lineno), frame.f_lineno
                if step not in ways_out(path):
                    passed += 1
                    if passed == line:
                        signal.raise_signal(signal.SIGINT)
            return trace_line

        return trace_line

    return trace_call


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
    assert _elsewhere(function, np.full(size, 2.0)) == pytest.approx(expected * 2.0, rel=1e-12)
    return line


def _elsewhere(function, vector):
    """Evaluate in another thread, as nutpie does: it waits for any lock that was left held."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(vector)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert results, "another thread cannot evaluate"
    return results[0]
