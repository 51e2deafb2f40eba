"""MapRectOp: some maps as one node of a PyTensor graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, override

import numpy as np
import pytensor.tensor as pt
from pytensor.configdefaults import config
from pytensor.gradient import DisconnectedType, grad_not_implemented
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.null_type import NullType
from pytensor.graph.op import Op

from pymc_mpimap.job.base import Job
from pymc_mpimap.map import Map
from pymc_mpimap.pool.current import current_pool
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.unseen import tell, without_caller
from pymc_mpimap.reals import real_array

__all__ = ["MapRectOp"]


class MapRectOp(Op):
    """Evaluates maps of jobs, all in one round trip to the pool in force.

    The pullback of a map of jobs is a map of jobs, so that this one Op is closed under
    differentiation. An Op is a value: equality, hash and pickle depend on the jobs and their
    data, never on a pool.

    Parameters
    ----------
    maps : sequence of Map
        What is evaluated. `map_rect` makes Ops of one map, the rewrites Ops of several.
    routes : sequence of sequence of int
        For each map, which of the Op's inputs its graph inputs are.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> theta = pt.dscalar("theta")
    >>> output = mpimap.map_rect(lambda theta, job: theta * job, theta, np.arange(3.0), name="f")
    >>> output.owner.op
    MapRectOp{f over 3 jobs}
    """

    __props__ = ("maps", "routes")

    def __init__(self, maps: Sequence[Map], routes: Sequence[Sequence[int]]):
        self.maps = tuple(maps)
        self.routes = tuple(tuple(route) for route in routes)
        self._programs: dict[tuple[Any, ...], Program] = {}
        super().__init__()

    @classmethod
    def of(cls, m: Map) -> MapRectOp:
        """Return the Op of a single map."""
        return cls([m], [range(len(m.from_graph))])

    @property
    def program(self) -> Program:
        """The program that the pool is given, with graphs that are rewritten for a backend."""
        if self._lowered is not None:
            return self._lowered
        key = config.mode, config.linker, config.optimizer, config.floatX
        if key not in self._programs:
            lowered = self.running([m.job.lowered() for m in self.maps])
            self._programs[key] = Program(lowered.maps, self.routes)
        return self._programs[key]

    @cached_property
    def _lowered(self) -> Program | None:
        """The program of an Op that a compiled function has: it does not depend on any mode."""
        lowered = all(m.job.is_lowered for m in self.maps)
        return Program(self.maps, self.routes) if lowered else None

    @cached_property
    def _hash(self) -> int:
        return hash((type(self), self.maps, self.routes))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(self) is type(other) and (self.maps, self.routes) == (
            other.maps,
            other.routes,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.maps, self.routes)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        names = ", ".join(f"{m.job.name} over {m.n_jobs} jobs" for m in self.maps)
        return f"MapRectOp{{{names}}}"

    def running(self, jobs: Sequence[Job]) -> MapRectOp:
        """Return the Op with these jobs, of the same inputs and outputs, in place of its own."""
        if all(job is m.job for m, job in zip(self.maps, jobs, strict=True)):
            return self
        maps = [m.running(job) for m, job in zip(self.maps, jobs, strict=True)]
        return MapRectOp(maps, self.routes)

    @property
    def n_inputs(self) -> int:
        """The number of inputs that the Op takes."""
        return 1 + max((i for route in self.routes for i in route), default=-1)

    def make_node(self, *inputs: Any) -> Apply:
        """Return the node for these inputs; their types are checked."""
        variables = [pt.as_tensor_variable(value) for value in inputs]
        if len(variables) != self.n_inputs:
            raise ValueError(f"{self} takes {self.n_inputs} inputs, not {len(variables)}")
        for m, route in zip(self.maps, self.routes, strict=True):
            for kind, i in zip(m.input_types(), route, strict=True):
                variables[i] = _fitting(kind, variables[i])
        outputs = [kind() for m in self.maps for kind in m.output_types()]
        return Apply(self, variables, outputs)

    @override
    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Evaluate through the pool in force."""
        results = evaluate_op(self, inputs)
        for storage, result in zip(output_storage, results, strict=True):
            storage[0] = result

    @override
    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        # Lengths that follow from held data are found once, while compiling; a likelihood of
        # constants is left alone: it may be long, and may raise.
        return all(output.type.dtype == "int64" for output in node.outputs)

    def infer_shape(self, node: Apply, input_shapes: Any) -> list[Any]:
        """Return the outputs' shapes without evaluating a job."""
        shapes: list[tuple[Any, ...]] = []
        for m, route in zip(self.maps, self.routes, strict=True):
            position = dict(zip(m.from_graph, route, strict=True))
            for slot in m.job.outputs:
                if slot.shapes is not None:
                    shapes.append((self._packed_size(m, slot.shapes, position, node),))
                    continue
                core = list(slot.type.shape)
                if None in core and slot.like in position:
                    core = list(input_shapes[position[slot.like]][slot.per_job :])
                shapes.append(
                    ((pt.constant(m.n_jobs, dtype="int64"),) * slot.per_job) + tuple(core)
                )
        return shapes

    @staticmethod
    def _packed_size(m: Map, shapes: int, position: dict[int, int], node: Apply) -> Any:
        held = m.data[shapes]
        jobs = node.inputs[position[shapes]] if held is None else held.block(0, m.n_jobs)
        return pt.prod(pt.as_tensor_variable(jobs), axis=1, dtype="int64").sum(dtype="int64")

    def connection_pattern(
        self,
        node: Apply,  # noqa: ARG002 # PyTensor passes it
    ) -> list[list[bool]]:
        """Say which outputs depend smoothly on which inputs."""
        columns: list[list[bool]] = []
        for m, route in zip(self.maps, self.routes, strict=True):
            pattern = m.job.connection()
            for k in range(len(m.job.outputs)):
                column = [False] * self.n_inputs
                for i, position in zip(m.from_graph, route, strict=True):
                    column[position] |= pattern[i][k]
                columns.append(column)
        return [list(row) for row in zip(*columns, strict=True)] if columns else []

    @override
    def pullback(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        cotangents: Sequence[Variable],
    ) -> list[Variable]:
        """Pull cotangents back: another map, of the jobs' own pullbacks."""
        totals: dict[int, Any] = {}
        rest = list(cotangents)
        for m, route in zip(self.maps, self.routes, strict=True):
            own, rest = rest[: len(m.job.outputs)], rest[len(m.job.outputs) :]
            for position, term in self._pull_map(m, route, inputs, own):
                known = totals.get(position)
                if known is None or isinstance(term.type, NullType):
                    totals[position] = term
                elif not isinstance(known.type, NullType):
                    totals[position] = known + term
        return [totals.get(i, DisconnectedType()()) for i in range(len(inputs))]

    def _pull_map(
        self,
        m: Map,
        route: Sequence[int],
        inputs: Sequence[Variable],
        cotangents: Sequence[Variable],
    ) -> list[tuple[int, Variable]]:
        pattern = m.job.connection()
        given = [k for k, c in enumerate(cotangents) if not isinstance(c.type, DisconnectedType)]
        given = [k for k in given if any(row[k] for row in pattern)]
        wrt, terms = [], []
        for i, position in zip(m.from_graph, route, strict=True):
            reached = [k for k in given if pattern[i][k]]
            reasons = [why for k in reached if (why := m.job.refusal(k, i)) is not None]
            if reasons:
                terms.append(
                    (position, grad_not_implemented(self, position, inputs[position], reasons[0]))
                )
            elif reached:
                wrt.append((i, position))
        if not wrt:
            return terms
        back = m.derived(m.job.pullback([i for i, _ in wrt], given))
        sources = [inputs[position] for position in route]
        results = apply_map(back, [*sources, *(cotangents[k] for k in given)])
        return terms + [
            (position, result) for (_, position), result in zip(wrt, results, strict=True)
        ]

    def pushforward(
        self,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        tangents: Sequence[Variable],
    ) -> list[Variable]:
        """Push tangents forward: another map, of the jobs' own pushforwards."""
        pushed: list[Variable] = []
        for m, route in zip(self.maps, self.routes, strict=True):
            pattern = m.job.connection()
            graph_inputs = list(zip(m.from_graph, route, strict=True))
            given = [
                (i, position)
                for i, position in graph_inputs
                if not isinstance(tangents[position].type, DisconnectedType) and any(pattern[i])
            ]
            refused = {
                k: why
                for k in range(len(m.job.outputs))
                for i, _ in given
                if pattern[i][k] and (why := m.job.refusal(k, i)) is not None
            }
            reached = [
                k
                for k in range(len(m.job.outputs))
                if k not in refused and any(pattern[i][k] for i, _ in given)
            ]
            results: list[Variable] = []
            if reached:
                forward = m.derived(m.job.pushforward([i for i, _ in given], reached))
                sources = [inputs[position] for position in route]
                results = apply_map(forward, [*sources, *(tangents[p] for _, p in given)])
            by_output = dict(zip(reached, results, strict=True))
            for k, why in refused.items():
                by_output[k] = grad_not_implemented(self, k, outputs[k], why)
            pushed += [by_output.get(k, DisconnectedType()()) for k in range(len(m.job.outputs))]
        return pushed


def _fitting(kind: Any, variable: Any) -> Any:
    """Return the variable if it can be of this type; sizes not known yet are checked later."""
    mine = variable.type
    if (mine.dtype, mine.ndim) != (kind.dtype, kind.ndim) or any(
        None not in (a, b) and a != b for a, b in zip(mine.shape, kind.shape, strict=True)
    ):
        return kind.filter_variable(variable)  # Converts it, or says why that is not possible.
    return variable


def apply_map(m: Map, inputs: Sequence[Variable]) -> list[Variable]:
    """Return a map's outputs as variables of the graph; unused inputs are dropped."""
    pruned, positions = m.pruned()
    return MapRectOp.of(pruned).make_node(*(inputs[k] for k in positions)).outputs


def _plain(op: MapRectOp, position: int, value: Any) -> np.ndarray:
    """Return an input as an array in C order; what `set_data` is given may have a mask."""
    if isinstance(value, np.ma.MaskedArray):
        names = {
            m.job.inputs[i].name
            for m, route in zip(op.maps, op.routes, strict=True)
            for i, k in zip(m.from_graph, route, strict=True)
            if k == position
        }
        value = real_array(value, f"{op}: the value of {' and '.join(sorted(names))}")
    return np.asarray(value, order="C")


def evaluate_op(op: MapRectOp, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Evaluate an Op's maps on arrays, through the pool in force."""
    pool = current_pool()
    # Ranks get copies in C order: the controller must compute with the same, to the last bit.
    arrays = [
        x if type(x) is np.ndarray and x.flags.c_contiguous else _plain(op, k, x)
        for k, x in enumerate(inputs)
    ]
    try:
        return pool.evaluate(op.program, arrays)
    except BaseException as error:
        foreign = without_caller()
        if not tell(error, op, foreign=foreign) and foreign:
            pool.escalate(error)
        raise
