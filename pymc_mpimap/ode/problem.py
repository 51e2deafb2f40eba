"""Problems: a right-hand side compiled for some sensitivities, with its solver memory."""

from __future__ import annotations

import atexit
import ctypes
import threading
from typing import Any

from pymc_mpimap.native.memory import Buffer
from pymc_mpimap.ode import sundials
from pymc_mpimap.ode.callbacks import Callbacks
from pymc_mpimap.ode.handle import (
    COEFFICIENTS,
    JACOBIAN,
    N_RECORD,
    REPLACED,
    REPLACING,
    RHS,
    SOLVE,
    TALLY,
    WEIGHTS,
    releasing,
)
from pymc_mpimap.ode.layout import Layout
from pymc_mpimap.ode.methods import AUTO, BDF, DOPRI5, METHODS
from pymc_mpimap.ode.system import Solve
from pymc_mpimap.ode.vectors import error_weights, operations, solve_columns
from pymc_mpimap.tally import TALLY as COUNTS

__all__ = ["Problem", "problem_of"]


# SUNDIALS' names of the coefficients of explicit methods.
_DOPRI5 = ctypes.create_string_buffer(b"ARKODE_DORMAND_PRINCE_7_4_5")
_TSIT5 = ctypes.create_string_buffer(b"ARKODE_TSITOURAS_7_4_5")


class Problem:
    """Words that compiled code finds by name: addresses of functions, solver memory to reuse.

    Attributes
    ----------
    callbacks : Callbacks
    layout : Layout
    record : Buffer

    Notes
    -----
    Called by one thread at a time, within `compiling`.
    """

    def __init__(self, solve: Solve):
        self.layout: Layout = solve.layout
        self.method = METHODS[solve.system.method]
        self.implicit = self.method in (BDF, AUTO)
        self.callbacks = Callbacks(solve.system.thaw(), self.layout, implicit=self.implicit)
        self.record = Buffer(f"pymc_mpimap_ode_{self.callbacks.digest}_{self.method}", N_RECORD)

    def complete(self) -> None:
        """Compile, and fill in the record; nothing where that has been done."""
        words: Any = self.record.words
        if words[RHS]:
            return
        words[JACOBIAN] = self.callbacks.jacobian.address if self.implicit else 0
        words[WEIGHTS] = error_weights().address
        words[SOLVE] = solve_columns().address if self.implicit else 0
        words[TALLY] = COUNTS.ctypes.data
        words[COEFFICIENTS] = ctypes.addressof(_DOPRI5 if self.method == DOPRI5 else _TSIT5)
        width = 0 if self.layout.dynamic else self.layout.fixed_width
        own = operations(self.layout.n_states, width, implicit=self.implicit)
        for k, (name, where) in enumerate(zip(sundials.OPERATIONS, own, strict=True)):
            words[REPLACED + k] = sundials.address(name)
            words[REPLACING + k] = where or sundials.address(name)
        words[RHS] = self.callbacks.rhs.address

    def release(self) -> int:
        """Free the solver memory that nobody uses; return how many blocks there were."""
        return int(releasing().ctypes(self.record.address))


_problems: dict[Any, Problem] = {}
_lock = threading.Lock()


def problem_of(solve: Solve) -> Problem:
    """Return the problem of a solve, which may have to be completed."""
    system = solve.system
    # Tolerances are arguments of a solve: problems that differ in them alone are one.
    key = (system.graph, solve.layout, METHODS[system.method])
    with _lock:
        if key not in _problems:
            _problems[key] = Problem(solve)
        return _problems[key]


@atexit.register
def _release_all() -> None:
    for problem in _problems.values():
        problem.release()
