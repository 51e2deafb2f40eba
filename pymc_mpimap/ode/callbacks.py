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
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key
from pytensor.tensor.basic import ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import DimShuffle, Elemwise

from pymc_mpimap.native.cache import is_caching
from pymc_mpimap.native.memory import doubles
from pymc_mpimap.ode import sundials
from pymc_mpimap.ode.cache import STAMP
from pymc_mpimap.ode.jacobian import jacobian
from pymc_mpimap.ode.layout import FIRST, LAST, N_INPUTS, PARAMETERS, WIDTH, Layout
from pymc_mpimap.ode.memory import data
from pymc_mpimap.ode.scalarize import ScalarSystem

__all__ = ["Callbacks"]

i32, f64, pointer = types.int32, types.float64, types.intp
_RHS = i32(f64, pointer, pointer, pointer)
_JACOBIAN = i32(f64, pointer, pointer, pointer, pointer, pointer, pointer, pointer)


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
    step : callable
        The right-hand side for numba and Python: ``step(t, y, parameters, dy)``.
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
        self._environment = {
            "__name__": __name__,
            "F": function,
            "data": data,
            "doubles": doubles,
            "np": np,
        }
        self.step = njit(error_model="numpy")(_compile(source, "step", self._environment, key))
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
    def rhs(self) -> Any:
        """``int rhs(double t, N_Vector y, N_Vector ydot, void *parameters)``."""
        wrapper = (
            "def rhs(t, y, ydot, user):\n    return step(t, data(y), doubles(user), data(ydot))\n"
        )
        environment = {**self._environment, "step": self.step}
        return _cfunc(_RHS, _compile(wrapper, "rhs", environment, self._rhs_key), self._rhs_key)

    @cached_property
    def jacobian(self) -> Any:
        """``int jacobian(double t, N_Vector y, N_Vector fy, SUNMatrix J, void *parameters, ...)``.

        None for explicit methods.
        """
        if self._jacobian is None:
            return None
        sundials.require()
        function, source, key = self._jacobian
        matrix_data = sundials.SUNDenseMatrix_Data
        environment = {**self._environment, "F": function, "matrix_data": matrix_data}
        return _cfunc(_JACOBIAN, _compile(source, "jacobian", environment, key), key)


def _cfunc(signature: Any, function: Any, key: str | None) -> Any:
    cached = key is not None and is_caching()
    return cfunc(signature, cache=cached, error_model="numpy")(function)


def _has_column(layout: Layout, parameter: int) -> bool:
    leaf, _ = layout.stepped[parameter]
    return layout.columns[parameter] is not None or (leaf >= 0 and layout.stepped_wanted[leaf])


def _call(layout: Layout, width: str) -> str:
    states = [f"y[{i} * {width}]" for i in range(layout.n_states)]
    parameters = [f"u[{PARAMETERS + k}]" for k in range(len(layout.columns))]
    # Between two discontinuities the time stays strictly inside: at its end a step would
    # otherwise see what comes after.
    return "\n".join(
        (
            f"    t = min(max(t, u[{FIRST}]), u[{LAST}])",
            f"    o = F({', '.join(['t', *states, *parameters])})",
        )
    )


def _rhs_source(
    layout: Layout,
    n_outputs: int,
    by_state: dict[tuple[int, int], int],
    by_parameter: dict[tuple[int, int], int],
) -> str:
    """Return the source of ``step``: y' in column 0, J S + df/dp in the others.

    Columns are the inner loop, over consecutive memory: they are what the processor does several
    of at a time.
    """
    # A width that is known when this is compiled lets short loops be unrolled.
    width = f"int(u[{WIDTH}])" if layout.dynamic else str(layout.fixed_width)
    lines = ["def step(t, y, u, dy):", f"    w = {width}", _call(layout, "w")]
    for i in range(layout.n_states):
        terms = [f"o[{k}] * y[{j} * w + s]" for (row, j), k in by_state.items() if row == i]
        if layout.sensitivities:
            lines.append("    for s in range(1, w):")
            lines.append(f"        dy[{i} * w + s] = {' + '.join(terms) or '0.0'}")
        for (row, parameter), k in by_parameter.items():
            if row == i:
                lines.append(f"    dy[{i} * w + {_column(layout, parameter)}] += o[{k}]")
        constant = f" + u[{layout.inputs_at + i}]" if layout.doses else ""
        lines.append(f"    dy[{i} * w] = o[{i}]{constant}")
    if layout.amounts:
        lines += [
            f"    at = {layout.atol_at + layout.n_states} + w",
            f"    for k in range(int(u[{N_INPUTS}])):",
            "        dy[int(u[at + 3 * k]) * w + int(u[at + 3 * k + 1])] += u[at + 3 * k + 2]",
        ]
    total = " + ".join(f"o[{k}]" for k in range(n_outputs))
    lines.append(f"    return 0 if np.isfinite({total}) else 1")
    return "\n".join(lines) + "\n"


def _column(layout: Layout, parameter: int) -> str:
    column = layout.columns[parameter]
    if column is not None:
        return str(column)
    leaf, element = layout.stepped[parameter]
    return f"(int(u[{layout.stepped_at + leaf}]) + {element})"


def _jacobian_source(layout: Layout, entries: Sequence[tuple[int, int]]) -> str:
    n = layout.n_states
    width = f"int(u[{WIDTH}])" if layout.dynamic else str(layout.fixed_width)
    lines = [
        "def jacobian(t, vector, _f, matrix, user, _1, _2, _3):",
        "    y, u, m = data(vector), doubles(user), doubles(matrix_data(matrix))",
        f"    w = {width}",
        _call(layout, "w"),
        f"    for k in range({n * n}):",
        "        m[k] = 0.0",
    ]
    lines += [f"    m[{j * n + i}] = o[{k}]" for k, (i, j) in enumerate(entries)]
    total = " + ".join(f"o[{k}]" for k in range(len(entries))) or "0.0"
    lines.append(f"    return 0 if np.isfinite({total}) else 1")
    return "\n".join(lines) + "\n"


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
