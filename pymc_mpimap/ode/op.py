"""SolveIVP, the Op: from initial values, times and parameters to the solution and its derivatives.

One Op is both. With no sensitivities wanted its one output is the solution; its pullback is the
same Op with them, and the derivatives are further outputs of the same solve. Where a graph has
both, as every log-probability with its gradient has, a rewrite makes them one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, override

import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, disconnected_type, grad_not_implemented
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.tensor.type import TensorType

from pymc_mpimap.ode.evaluate import evaluate
from pymc_mpimap.ode.system import TS, Y0, Solve, System

__all__ = ["SolveIVP"]


class SolveIVP(Op):
    """Solve an initial value problem.

    Parameters
    ----------
    system : System
    wrt : sequence of int
        The inputs whose derivatives are further outputs: for each, the solution's shape followed
        by the input's own; for the output times, the solution's shape alone.

    Notes
    -----
    `pymc_mpimap.solve_ivp` makes it. Inputs are the initial time, the initial states, the output
    times, the times of breaks, then each parameter, the times of each stepped parameter, and of
    doses the times, amounts, durations and states.

    Examples
    --------
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> y = mpimap.solve_ivp(lambda t, y, k: -k * y, 0.0, [1.0], [1.0, 2.0], pt.dscalar("k"))
    >>> print(y.owner.op)
    SolveIVP{<lambda>, wrt=()}
    """

    __props__ = ("system", "wrt")

    def __init__(self, system: System, wrt: Sequence[int] = ()):
        self.system = system
        self.wrt = tuple(sorted(wrt))
        self.gufunc_signature = self._signature()

    @property
    def solve(self) -> Solve:
        """The solve, without its inputs, for the code that carries it out."""
        return Solve(self.system, self.wrt)

    def _signature(self) -> str:
        names: dict[tuple[int, int], str] = {(Y0, 0): "n", (TS, 0): "m"}
        cores = []
        for position, kind in enumerate(self.system.types):
            dims = [
                names.setdefault((position, axis), f"d{position}x{axis}")
                for axis in range(kind.ndim)
            ]
            cores.append(dims)
        outputs = [["m", "n"]]
        outputs += [["m", "n", *(cores[i] if i != TS else [])] for i in self.wrt]
        joined = [",".join(f"({','.join(core)})" for core in part) for part in (cores, outputs)]
        return "->".join(joined)

    @override
    def make_node(self, *inputs: Any) -> Apply:
        variables = []
        for value, kind in zip(inputs, self.system.types, strict=True):
            variable = pt.as_tensor_variable(value)
            if variable.type.dtype != kind.dtype:
                variable = variable.astype(kind.dtype)
            variables.append(
                kind.filter_variable(variable)
                if variable.type != kind and not kind.is_super(variable.type)
                else variable
            )
        shapes = self.output_shapes([v.type.shape for v in variables])
        outputs = [TensorType("float64", shape=shape)() for shape in shapes]
        return Apply(self, variables, outputs)

    def output_shapes(self, shapes: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the outputs' shapes for these shapes of the inputs."""
        solution = (shapes[TS][0], self.system.n_states)
        return [solution, *((*solution, *(shapes[i] if i != TS else ())) for i in self.wrt)]

    def infer_shape(
        self,
        node: Apply,  # noqa: ARG002 # PyTensor passes it
        shapes: Any,
    ) -> list[Any]:
        """Return the outputs' shapes without solving."""
        return self.output_shapes(shapes)

    @override
    def perform(self, node: Apply, inputs: Any, output_storage: Any) -> None:
        for storage, result in zip(output_storage, evaluate(self.solve, inputs), strict=True):
            storage[0] = result

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        """Say that every output depends on every input that is a number."""
        return [[v.type.dtype == "float64"] * len(node.outputs) for v in node.inputs]

    def sensitivities(self, inputs: Sequence[Variable]) -> tuple[Any, dict[int, Any]]:
        """Return the solution and its derivatives with respect to each input that has any."""
        wrt = self.system.differentiable
        outputs: Any = SolveIVP(self.system, wrt)(*inputs, return_list=True)
        solution, *derivatives = outputs
        return solution, dict(zip(sorted(wrt), derivatives, strict=True))

    def _refusal(self, position: int, variable: Variable, *, second: bool) -> Any:
        name = self.system.name
        if second:
            why = (
                f"second derivatives of solve_ivp({name}, ...) are not computed: its sensitivities "
                "are those of first order"
            )
        else:
            why = (
                f"solve_ivp({name}, ...) is not differentiable with respect to the times of doses, "
                "steps and breaks, and the durations of infusions: they are where the solver stops"
                " and starts anew. Pass them as data; a delay that is a parameter can be written "
                "as compartments in the right-hand side, or by shifting t0 and ts"
            )
        return grad_not_implemented(self, position, variable, why)

    @override
    def pullback(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        cotangents: Sequence[Any],
    ) -> list[Variable]:
        """Contract the cotangent with the sensitivities."""
        connected = [not isinstance(c.type, DisconnectedType) for c in cotangents]
        result: list[Variable] = []
        known: dict[int, Any] = {}
        if connected[0]:
            _, known = self.sensitivities(inputs)
        for i, variable in enumerate(inputs):
            if variable.type.dtype != "float64" or not any(connected):
                result.append(disconnected_type())
            elif any(connected[1:]) or i not in known:
                result.append(self._refusal(i, variable, second=any(connected[1:])))
            elif i == TS:
                result.append((cotangents[0] * known[i]).sum(axis=1))
            else:
                # Not as a matrix product: a sum of products is what a block of jobs vectorizes.
                cotangent = pt.expand_dims(cotangents[0], tuple(range(2, 2 + variable.type.ndim)))
                result.append((cotangent * known[i]).sum(axis=(0, 1)))
        return result

    @override
    def pushforward(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        tangents: Sequence[Any],
    ) -> list[Variable]:
        """Contract the sensitivities with the tangents."""
        given = [i for i, t in enumerate(tangents) if not isinstance(t.type, DisconnectedType)]
        second = [self._refusal(0, v, second=True) for v in outputs[1:]]
        if not given:
            return [disconnected_type() for _ in outputs]
        if refused := [i for i in given if i not in self.system.differentiable]:
            return [self._refusal(refused[0], inputs[refused[0]], second=False), *second]
        _, known = self.sensitivities(inputs)
        total: Any = 0
        for i in given:
            if i == TS:
                total = total + known[i] * tangents[i][:, None]
            else:
                total = total + pt.tensordot(known[i], tangents[i], axes=inputs[i].type.ndim)
        return [total, *second]

    @override
    def __str__(self) -> str:
        return f"SolveIVP{{{self.system.name}, wrt={self.wrt}}}"

    def with_sensitivities(self, wrt: Sequence[int]) -> SolveIVP:
        """Return the same Op with other sensitivities."""
        return SolveIVP(self.system, wrt)
