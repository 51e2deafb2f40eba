"""The tables of solves: what the driver knows of each kind of solve, see `request`."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from pymc_mpimap.native.compiling import compiling
from pymc_mpimap.native.memory import Buffer
from pymc_mpimap.ode import request
from pymc_mpimap.ode.driver import driver
from pymc_mpimap.ode.methods import METHODS
from pymc_mpimap.ode.problem import Problem, problem_of
from pymc_mpimap.ode.system import T0, TS, Y0, Solve
from pymc_mpimap.tally import register_states

__all__ = ["Table", "table_of"]

_tables: dict[str, Table] = {}
_lock = threading.Lock()


class Table:
    """The table of a solve.

    Attributes
    ----------
    buffer : Buffer
    cached : bool
        Whether compiled code that has its name can be cached.
    """

    def __init__(self, name: str, solve: Solve, problem: Problem):
        self.buffer = Buffer(name, len(_words(solve)))
        self._solve, self._problem = solve, problem
        self.cached = problem.callbacks.cached

    def complete(self) -> None:
        """Compile what the table has the addresses of; nothing where that has been done."""
        table: Any = self.buffer.words
        if table[request.DRIVER]:
            return
        with compiling():
            # Somebody else may have been waited for.
            if table[request.DRIVER]:
                return
            self._problem.complete()
            scheduled = self._solve.system.scheduled
            driving = driver(scheduled=scheduled, implicit=self._problem.implicit)
            words = _words(self._solve)
            words[request.RECORD] = self._problem.record.address
            table[:] = words
            # At last, as it says that all is there.
            table[request.DRIVER] = driving.address


def table_of(solve: Solve) -> Table:
    """Return the table of a solve, to be completed before it is used."""
    problem, words = problem_of(solve), _words(solve)
    text = f"{problem.record.name} {solve.system.scheduled} {words}"
    name = f"pymc_mpimap_ode_table_{sha256(text.encode()).hexdigest()[:40]}"
    with _lock:
        if name not in _tables:
            _tables[name] = Table(name, solve, problem)
        return _tables[name]


def _words(solve: Solve) -> list[int]:
    """Return a table but for its addresses, which differ from process to process."""
    system, layout = solve.system, solve.layout
    rows: list[int] = []
    places: dict[int, int] = {}

    def place(name: int, values: Sequence[int]) -> None:
        places[name] = request.N_NUMBERS + len(rows)
        rows.extend(values)

    place(request.ATOL, [_as_word(a) for a in system.atol])
    place(request.COLUMNS, [request.NONE if c is None else c for c in layout.columns])
    place(request.OUTPUTS, [n for output in _outputs(solve) for n in output])
    place(request.LEAVES, [n for leaf in _leaves(solve) for n in leaf])
    place(request.FREE, [int(free) for free in system.free])
    last = layout.fixed_width - layout.initial_time
    numbers = {
        request.METHOD: METHODS[system.method],
        request.MAX_STEPS: system.max_steps,
        request.RTOL: _as_word(system.rtol),
        request.FIRST_STEP: _as_word(system.first_step),
        request.N_STATES: system.n_states,
        request.N_PARAMETERS: len(layout.columns),
        request.FIXED_WIDTH: layout.fixed_width,
        request.INITIAL_STATES: last - system.n_states if layout.initial_states else request.NONE,
        request.INITIAL_TIME: last if layout.initial_time else request.NONE,
        request.DOSES: system.dose_inputs.start if system.doses else request.NONE,
        request.AMOUNTS: _output(solve, system.amounts),
        request.N_INPUTS: len(system.types),
        request.N_OUTPUTS: 1 + len(solve.wrt),
        request.N_LEAVES: len(system.leaves),
        request.N_STEPPED: sum(system.stepped),
        request.SLOPES: int(layout.slopes),
        request.KEY: register_states(system.name, system.states),
        **places,
    }
    return [numbers.get(k, 0) for k in range(request.N_NUMBERS)] + rows


def _as_word(value: float) -> int:
    """Return the bits of a double."""
    return int(struct.unpack("=q", struct.pack("=d", value))[0])


def _output(solve: Solve, i: int | None) -> int:
    """Return where the output is that has the derivatives with respect to an input."""
    if i is None or i not in solve.wrt:
        return request.NONE
    return len(solve.system.types) + 1 + solve.wrt.index(i)


def _outputs(solve: Solve) -> list[tuple[int, int]]:
    """Return for each output what its columns are as many as, and the first of them."""
    system, layout = solve.system, solve.layout
    last = layout.fixed_width - layout.initial_time
    fixed = {T0: last, Y0: last - system.n_states, TS: request.SLOPE}
    first = 0
    for k, i in enumerate(system.leaves):
        n = _size(system.shapes[k])
        if not system.stepped[k]:
            fixed[i] = (layout.columns[first] or 0) if n else 0
        first += n
    derivatives = [
        (request.NONE if i == TS else i, fixed.get(i, request.DYNAMIC)) for i in solve.wrt
    ]
    return [(request.NONE, 0), *derivatives]


def _leaves(solve: Solve) -> list[tuple[int, int, int]]:
    """Return for each parameter its size, the times of its steps and the output by its values."""
    system = solve.system
    times = iter(system.step_times)
    return [
        (_size(shape), next(times), _output(solve, i))
        if stepped
        else (_size(shape), request.NONE, request.NONE)
        for i, shape, stepped in zip(system.leaves, system.shapes, system.stepped, strict=True)
    ]


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=int))
