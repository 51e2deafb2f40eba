"""Systems of equations and their solvers: everything of a solve but its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pytensor.graph.fg import FrozenFunctionGraph
from pytensor.tensor.type import TensorType

from pymc_mpimap.ode.layout import Layout
from pymc_mpimap.ode.scalarize import ScalarSystem
from pymc_mpimap.tally import register_states

__all__ = ["BREAKS", "LEAVES", "T0", "TS", "Y0", "Solve", "System"]

T0, Y0, TS, BREAKS, LEAVES = range(5)
"""The places of a solve's inputs: the parameters, the times of steps, the doses."""


@dataclass(frozen=True)
class System:
    """A system of equations and its solver: everything of a solve but its inputs.

    Attributes
    ----------
    graph : FrozenFunctionGraph
        From 0-d t, states and parameters to 0-d derivatives.
    states : tuple of str
        The names of the states.
    free : tuple of bool
        Which initial states are no constants. Those that are have columns too, but their
        derivatives are 0: an infinite one, which nobody looks at, would be a failure.
    shapes : tuple of tuple of int
        The shape of each parameter; of a stepped one, the shape of one of its values.
    stepped : tuple of bool
        Which parameters are stepped.
    doses, breaks : bool
        Whether there are doses, and breaks.
    method : str
    rtol : float
    atol : tuple of float
        One for each state.
    first_step : float
        0 where the solver is to find one.
    max_steps : int
    name : str
        How messages call the right-hand side.
    """

    graph: FrozenFunctionGraph
    states: tuple[str, ...]
    free: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]
    stepped: tuple[bool, ...]
    doses: bool
    breaks: bool
    method: str
    rtol: float
    atol: tuple[float, ...]
    first_step: float
    max_steps: int
    name: str

    def __post_init__(self) -> None:
        # Where the jobs are other ranks', rank 0 compiles nothing, and reports all the same.
        register_states(self.name, self.states)

    @property
    def n_states(self) -> int:
        """The number of states."""
        return len(self.states)

    @cached_property
    def _hash(self) -> int:
        return hash((self.graph, self.shapes, self.method, self.rtol, self.atol))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # Hashes of strings differ from process to process.
        return {name: value for name, value in vars(self).items() if name != "_hash"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        register_states(self.name, self.states)

    def thaw(self) -> ScalarSystem:
        """Return the right-hand side with variables of its own."""
        inputs = [variable.type() for variable in self.graph.inputs]
        outputs = self.graph.bind(inputs)
        rest = inputs[1 + self.n_states :]
        leaves = []
        for shape in self.shapes:
            size = int(np.prod(shape, dtype=int))
            leaves.append(tuple(rest[:size]))
            rest = rest[size:]
        return ScalarSystem(
            inputs[0], tuple(inputs[1 : 1 + self.n_states]), tuple(leaves), tuple(outputs), ()
        )

    @property
    def leaves(self) -> range:
        """The place of the parameters among a solve's inputs."""
        return range(LEAVES, LEAVES + len(self.shapes))

    @property
    def step_times(self) -> range:
        """The place of the times of the stepped parameters."""
        return range(self.leaves.stop, self.leaves.stop + sum(self.stepped))

    @property
    def dose_inputs(self) -> range:
        """The place of the times, amounts, durations and states of doses."""
        return range(self.step_times.stop, self.step_times.stop + 4 * self.doses)

    @property
    def amounts(self) -> int | None:
        """The place of the amounts of doses."""
        return self.dose_inputs.start + 1 if self.doses else None

    @property
    def differentiable(self) -> list[int]:
        """The inputs that the solution can be differentiated with respect to."""
        inputs = [T0, Y0, TS, *self.leaves]
        return inputs if self.amounts is None else [*inputs, self.amounts]

    @property
    def scheduled(self) -> bool:
        """True if the solver has to stop at discontinuities."""
        return self.doses or self.breaks or any(self.stepped)

    @property
    def types(self) -> list[TensorType]:
        """The types of a solve's inputs, with what is known of their shapes."""
        vector = TensorType("float64", shape=(None,))
        types = [
            TensorType("float64", shape=()),
            TensorType("float64", shape=(self.n_states,)),
            vector,
            TensorType("float64", shape=(None if self.breaks else 0,)),
        ]
        for shape, stepped in zip(self.shapes, self.stepped, strict=True):
            types.append(TensorType("float64", shape=(None,) * stepped + shape))
        types += [vector] * sum(self.stepped)
        if self.doses:
            types += [vector, vector, vector, TensorType("int64", shape=(None,))]
        return types

    def layout(self, wrt: Sequence[int]) -> Layout:
        """Return where everything is in a solve with these sensitivities."""
        columns: list[int | None] = []
        elements: list[tuple[int, int]] = []
        wanted: list[bool] = []
        n_columns = 1
        for k, (shape, stepped) in enumerate(zip(self.shapes, self.stepped, strict=True)):
            size = int(np.prod(shape, dtype=int))
            here = LEAVES + k in wrt
            if stepped:
                elements += [(len(wanted), e) for e in range(size)]
                wanted.append(here)
            else:
                elements += [(-1, 0)] * size
            for _ in range(size):
                columns.append(n_columns if here and not stepped else None)
                n_columns += here and not stepped
        return Layout(
            self.n_states,
            tuple(columns),
            tuple(elements),
            tuple(wanted),
            initial_states=Y0 in wrt,
            initial_time=T0 in wrt,
            amounts=self.amounts in wrt,
            doses=self.doses,
            slopes=TS in wrt,
        )


@dataclass(frozen=True)
class Solve:
    """A system with the sensitivities that are wanted.

    Attributes
    ----------
    system : System
    wrt : tuple of int
        The inputs whose sensitivities are outputs, in increasing order.
    """

    system: System
    wrt: tuple[int, ...] = ()

    @property
    def layout(self) -> Layout:
        """The layout of columns and parameters."""
        return self.system.layout(self.wrt)

    def by(self, method: str) -> Solve:
        """Return the same solve by another method."""
        return Solve(replace(self.system, method=method), self.wrt)
