"""A right-hand side as C functions for SUNDIALS, with its sensitivities and Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from hashlib import sha256
from typing import Any
from uuid import uuid4

import numpy as np
import pytensor.scalar as ps
from numba import cfunc, njit, types
from pytensor.compile.mode import get_mode
from pytensor.configdefaults import config
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import MergeOptimizer
from pytensor.graph.traversal import ancestors
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key
from pytensor.tensor.basic import ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import DimShuffle, Elemwise

from pymc_mpimap.native.cache import is_caching
from pymc_mpimap.native.memory import Buffer, doubles, symbol, words
from pymc_mpimap.ode import sundials
from pymc_mpimap.ode.cache import STAMP
from pymc_mpimap.ode.faults import AGAIN, TINY, mended, tables
from pymc_mpimap.ode.jacobian import jacobian
from pymc_mpimap.ode.layout import FIRST, LAST, N_INPUTS, PARAMETERS, WIDTH, Layout
from pymc_mpimap.ode.memory import apart, call_mended, data, place, room, spilled
from pymc_mpimap.ode.scalarize import ScalarSystem

__all__ = ["Callbacks"]

i32, f64, pointer = types.int32, types.float64, types.intp
_RHS = i32(f64, pointer, pointer, pointer)
_JACOBIAN = i32(f64, pointer, pointer, pointer, pointer, pointer, pointer, pointer)

_STEP_SOURCE = """
def either(t, y, u, dy):
    if step(t, y, u, dy) == 0:
        return 0
    return careful(t, y.ctypes.data, u.ctypes.data, dy.ctypes.data)
"""
_RHS_SOURCE = """
def rhs(t, vector, derivative, user):
    if step(t, data(vector), doubles(user), data(derivative)) == 0:
        return 0
    return careful(t, place(vector), user, place(derivative))
"""
_JACOBIAN_SOURCE = """
def jacobian(t, vector, _f, matrix, user, _1, _2, _3):
    return fill(t, data(vector), doubles(user), doubles(matrix_data(matrix)))
"""

MENDED = Buffer("pymc_mpimap_ode_mended", 1)
"""The address of `faults.mended`, once it is compiled, for compiled code."""


class Callbacks:
    """A right-hand side as compiled code, with its sensitivities; compiled when it is asked for.

    Parameters
    ----------
    system : ScalarSystem
    layout : Layout
    implicit : bool
        Whether its Jacobian is needed too.

    Attributes
    ----------
    digest : str
        Of all the code; equal in every process that compiles the same, if it can be cached.
    cached : bool
        Whether it can: not where an Op has no key.
    """

    def __init__(self, system: ScalarSystem, layout: Layout, *, implicit: bool):
        n = layout.n_states
        scalars = [s for leaf in system.leaves for s in leaf]
        arguments = [system.t, *system.states, *scalars]
        wrt = [k for k in range(len(scalars)) if _has_column(layout, k)]
        outputs = list(system.derivatives)
        by_state: dict[tuple[int, int], Any] = {}
        by_parameter: dict[tuple[int, int], Any] = {}
        if layout.sensitivities or implicit:
            by_state = jacobian(system, system.states)
        if layout.sensitivities:
            by_parameter = jacobian(system, [scalars[k] for k in wrt])
            outputs += [*by_state.values(), *by_parameter.values()]
        function, key = _scalar_function(arguments, outputs)
        places = {at: n + k for k, at in enumerate(by_state)}
        parameter_places = {
            (i, wrt[j]): n + len(by_state) + k for k, (i, j) in enumerate(by_parameter)
        }
        if not layout.sensitivities:
            places, parameter_places = {}, {}
        source = _rhs_source(layout, len(outputs), places, parameter_places)
        targets = [_target(layout, *at) for at in parameter_places]
        told = tables(_dependencies(system), list(places), targets)
        # Compiled code has these numbers in it: they belong to its name in a cache.
        careful = f"{_careful_source(layout, len(outputs))}# {told.tolist()}\n"
        self._environment: dict[str, Any] = {
            "__name__": __name__,
            "F": function,
            "TABLES": told,
            "apart": apart,
            "call_mended": call_mended,
            "data": data,
            "doubles": doubles,
            "np": np,
            "place": place,
            "room": room,
            "spilled": spilled,
            "symbol": symbol,
            "words": words,
        }
        for name, text in (("step", source), ("careful", careful)):
            made = njit(error_model="numpy")(_compile(text, name, self._environment, key))
            self._environment[name] = made
        source += careful + _RHS_SOURCE
        self._rhs_key = _derived(key, source)
        self._jacobian: tuple[Any, str, str | None] | None = None
        text, self.cached = f"{key} {source}", key is not None
        if implicit:
            function, key = _scalar_function(arguments, list(by_state.values()))
            source = _jacobian_source(layout, list(by_state))
            self._jacobian = function, source, key
            text += f"{key} {source}"
            self.cached = self.cached and key is not None
        if not self.cached:
            # Nothing tells what an Op without a key does.
            text += str(uuid4())
        self.digest = sha256(f"{STAMP} {text}".encode()).hexdigest()[:40]

    @cached_property
    def step(self) -> Any:
        """The right-hand side for numba and Python: ``step(t, y, parameters, dy)``."""
        MENDED.words[0] = mended().address
        function = _compile(_STEP_SOURCE, "either", self._environment, self._rhs_key)
        return njit(error_model="numpy")(function)

    @cached_property
    def rhs(self) -> Any:
        """``int rhs(double t, N_Vector y, N_Vector ydot, void *parameters)``."""
        MENDED.words[0] = mended().address
        function = _compile(_RHS_SOURCE, "rhs", self._environment, self._rhs_key)
        return _cfunc(_RHS, function, self._rhs_key)

    @cached_property
    def jacobian(self) -> Any:
        """``int jacobian(double t, N_Vector y, N_Vector fy, SUNMatrix J, void *parameters, ...)``.

        None for explicit methods.
        """
        fill = self.fill
        if fill is None or self._jacobian is None:
            return None
        sundials.require()
        _, source, key = self._jacobian
        environment = {
            **self._environment,
            "fill": fill,
            "matrix_data": sundials.SUNDenseMatrix_Data,
        }
        key = _derived(key, source)
        function = _compile(_JACOBIAN_SOURCE, "jacobian", environment, key)
        return _cfunc(_JACOBIAN, function, key)

    @cached_property
    def fill(self) -> Any:
        """The Jacobian for numba and Python: ``fill(t, y, parameters, matrix)``, by columns.

        None for explicit methods.
        """
        if self._jacobian is None:
            return None
        function, source, key = self._jacobian
        environment = {**self._environment, "F": function}
        return njit(error_model="numpy")(_compile(source, "fill", environment, key))


def _cfunc(signature: Any, function: Any, key: str | None) -> Any:
    cached = key is not None and is_caching()
    return cfunc(signature, cache=cached, error_model="numpy")(function)


def _has_column(layout: Layout, parameter: int) -> bool:
    leaf, _ = layout.stepped[parameter]
    return layout.columns[parameter] is not None or (leaf >= 0 and layout.stepped_wanted[leaf])


def _width(layout: Layout) -> list[str]:
    # A width that is known when this is compiled lets short loops be unrolled.
    return [f"w = {f'int(u[{WIDTH}])' if layout.dynamic else layout.fixed_width}"]


def _call(layout: Layout) -> list[str]:
    states = [f"y[{i} * w]" for i in range(layout.n_states)]
    parameters = [f"u[{PARAMETERS + k}]" for k in range(len(layout.columns))]
    # Between two discontinuities the time stays strictly inside: at its end a step would
    # otherwise see what comes after.
    return [
        f"t = min(max(t, u[{FIRST}]), u[{LAST}])",
        f"o = F({', '.join(['t', *states, *parameters])})",
    ]


def _dependencies(system: ScalarSystem) -> list[tuple[int, int]]:
    """Return which derivative depends on which state, however."""
    found = []
    for i, derivative in enumerate(system.derivatives):
        reached = set(ancestors([derivative]))
        found += [(i, j) for j, state in enumerate(system.states) if state in reached]
    return found


def _rhs_source(
    layout: Layout,
    n_outputs: int,
    by_state: dict[tuple[int, int], int],
    by_parameter: dict[tuple[int, int], int],
) -> str:
    """Return the source of ``step``: y' in column 0, J S + df/dp in the others.

    It returns 0, or 1 where something is not finite.

    Columns are the inner loop, over consecutive memory: they are what the processor does several
    of at a time.
    """
    lines = [*_width(layout), *_call(layout)]
    for i in range(layout.n_states):
        terms = [f"o[{k}] * y[{j} * w + s]" for (row, j), k in by_state.items() if row == i]
        if layout.sensitivities:
            lines.append("for s in range(1, w):")
            lines.append(f"    dy[{i} * w + s] = {' + '.join(terms) or '0.0'}")
        for (row, parameter), k in by_parameter.items():
            if row == i:
                lines.append(f"dy[{i} * w + {_column(layout, parameter)}] += o[{k}]")
        constant = f" + u[{layout.inputs_at + i}]" if layout.doses else ""
        lines.append(f"dy[{i} * w] = o[{i}]{constant}")
    total = " + ".join(f"o[{k}]" for k in range(n_outputs))
    lines += _infusions(layout)
    total = " + ".join(f"o[{k}]" for k in range(n_outputs))
    lines.append(f"return 0 if np.isfinite({total}) else 1")
    return _function("step(t, y, u, dy)", lines)


def _careful_source(layout: Layout, n_outputs: int) -> str:
    """Return the source of what is done where `step` has met something that is not finite.

    It returns 0 where that is of no account, see `faults`.
    """
    call = "(t, y_at, u_at, dy_at, spilled(o), kept, w, {n}, TABLES.ctypes.data, turn)"
    lines = [
        "apart()",
        "y, u, dy = doubles(y_at), doubles(u_at), doubles(dy_at)",
        *_width(layout),
        f"mended, kept = words(symbol({MENDED.name!r}))[0], room({n_outputs})",
        f"for turn in range({len(TINY)}):",
        *(f"    {line}" for line in _call(layout)),
        f"    flag = call_mended(mended, {call.format(n=layout.n_states)})",
        f"    if flag != {AGAIN}:",
        "        break",
        *_infusions(layout),
        "return flag",
    ]
    return _function("careful(t, y_at, u_at, dy_at)", lines)


def _infusions(layout: Layout) -> list[str]:
    if not layout.amounts:
        return []
    return [
        f"at = {layout.atol_at + layout.n_states} + w",
        f"for k in range(int(u[{N_INPUTS}])):",
        "    dy[int(u[at + 3 * k]) * w + int(u[at + 3 * k + 1])] += u[at + 3 * k + 2]",
    ]


def _function(head: str, lines: Sequence[str]) -> str:
    return "\n".join([f"def {head}:", *(f"    {line}" for line in lines)]) + "\n"


def _column(layout: Layout, parameter: int) -> str:
    _, column, at = _target(layout, 0, parameter)
    return f"(int(u[{at}]) + {column})" if at else str(column)


def _target(layout: Layout, row: int, parameter: int) -> tuple[int, int, int]:
    """Return what `faults.mended` knows of a derivative with respect to a parameter."""
    column = layout.columns[parameter]
    if column is not None:
        return row, column, 0
    leaf, element = layout.stepped[parameter]
    return row, element, layout.stepped_at + leaf


def _jacobian_source(layout: Layout, entries: Sequence[tuple[int, int]]) -> str:
    """Return the source of the Newton matrix's Jacobian.

    An entry that is not finite is left out. That changes how fast the iteration converges, and not
    what to: the right-hand side says whether it is a fault.
    """
    n = layout.n_states
    lines = [
        *_width(layout),
        *_call(layout),
        f"for k in range({n * n}):",
        "    m[k] = 0.0",
    ]
    lines += [f"m[{j * n + i}] = o[{k}]" for k, (i, j) in enumerate(entries)]
    total = " + ".join(f"o[{k}]" for k in range(len(entries))) or "0.0"
    lines += [
        f"if not np.isfinite({total}):",
        f"    for k in range({n * n}):",
        "        if not np.isfinite(m[k]):",
        "            m[k] = 0.0",
        "return 0",
    ]
    return _function("fill(t, y, u, m)", lines)


def _compile(source: str, name: str, environment: dict[str, Any], key: str | None) -> Any:
    return compile_numba_function_src(
        source, name, dict(environment), cache_key=_derived(key, source)
    )


def _derived(key: str | None, source: str) -> str | None:
    if key is None:
        return None
    digest = sha256(f"{STAMP} {key} {source}".encode()).hexdigest()
    return f"pymc_mpimap-ode-{digest[:40]}"


def _scalar_function(inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, str | None]:
    """Compile a graph of 0-d tensors to one function of numbers, for numba to call."""
    graph = FunctionGraph(list(inputs), list(outputs), clone=True)
    _mode().optimizer.rewrite(graph)
    scalars: dict[Variable, Any] = {v: ps.float64() for v in graph.inputs}

    def scalar(variable: Any) -> Any:
        if isinstance(variable, Constant) and variable not in scalars:
            scalars[variable] = ps.constant(np.asarray(variable.data).reshape(())[()])
        return scalars[variable]

    for node in graph.toposort():
        values = [scalar(v) for v in node.inputs]
        if isinstance(node.op, (TensorFromScalar, ScalarFromTensor, DimShuffle)):
            results = values
        else:
            op = node.op.scalar_op if isinstance(node.op, Elemwise) else node.op
            results = op.make_node(*values).outputs
        scalars.update(zip(node.outputs, results, strict=True))
    # An output that is an input or a constant becomes a node of its own.
    returned: list[Any] = [ps.identity(ps.cast(scalar(v), "float64")) for v in graph.outputs]
    flat = FunctionGraph([scalars[v] for v in graph.inputs], returned, clone=False)
    MergeOptimizer().rewrite(flat)
    function, key = numba_funcify_and_cache_key(flat, squeeze_output=False)
    return function, key and f"{key}-{bool(config.numba__fastmath)}"


@cache
def _mode() -> Any:
    """Return a mode whose rewrites keep a graph of 0-d tensors elementwise."""
    return get_mode("NUMBA").excluding("numba", "inplace", "fusion", "add_mul_fusion", "BlasOpt")
