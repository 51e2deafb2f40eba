"""Traced jobs: a frozen PyTensor graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, override

from pytensor.compile.mode import Mode
from pytensor.gradient import grad, pullback, pushforward
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FrozenFunctionGraph, FunctionGraph
from pytensor.graph.null_type import NullType
from pytensor.graph.op import io_connection_pattern
from pytensor.graph.traversal import ancestors, applys_between
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor.basic import Alloc, Join, MakeVector, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import Reshape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor

from pymc_mpimap.job.base import Job, Kernel
from pymc_mpimap.job.block import block_graph, compile_block
from pymc_mpimap.job.lowering import BlockGraph, default_job_mode
from pymc_mpimap.signature import Slot, cotangent_slot, is_differentiable, total_slot

__all__ = ["GraphJob"]

_COUNTED = (AdvancedSubtensor, Alloc, CAReduce, Elemwise)
"""Ops that take about one operation for each number of their largest argument."""

_PLAIN = (
    *_COUNTED, Dot, CheckAndRaise, DimShuffle, Join, MakeVector, Reshape, ScalarFromTensor,
    Subtensor, TensorFromScalar,
)  # fmt: skip
"""Ops whose time can be told; that of those not counted is next to none."""


@dataclass(frozen=True)
class GraphJob(Job):
    """One job as a graph of its inputs, the closure already lifted out.

    Attributes
    ----------
    graph : FrozenFunctionGraph
        From what one job sees to what it gives. Structurally equal graphs are equal.
    inputs, outputs : tuple of Slot
        In the order of the graph's inputs and outputs.
    label : str
        How messages call it; jobs that are called differently are different.
    block : BlockGraph, optional
        The graph of a block of jobs, once it is rewritten for a backend.
    """

    graph: FrozenFunctionGraph
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    label: str = "job"
    block: BlockGraph | None = None

    @classmethod
    def trace(
        cls,
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        input_slots: Sequence[Slot],
        output_slots: Sequence[Slot],
        label: str,
    ) -> GraphJob:
        """Freeze the graph between these variables."""
        graph = FrozenFunctionGraph.from_io(list(inputs), list(outputs))
        return cls(graph, tuple(input_slots), tuple(output_slots), label)

    @property
    @override
    def name(self) -> str:
        return self.label

    @property
    @override
    def cheap(self) -> bool:
        return True

    @property
    @override
    def operations(self) -> int | None:
        total = 0
        for node in applys_between([], self.graph.outputs):
            op = node.op.core_op if isinstance(node.op, Blockwise) else node.op
            shapes: list[Any] = [
                getattr(v.type, "shape", ()) for v in (*node.inputs, *node.outputs)
            ]
            if not isinstance(op, _PLAIN) or any(None in shape for shape in shapes):
                return None
            if isinstance(op, Dot):
                total += prod(shapes[0]) * shapes[1][-1]
            elif isinstance(op, _COUNTED):
                total += max(prod(shape) for shape in shapes)
        return total

    @cached_property
    def _hash(self) -> int:
        return hash((self.graph, self.inputs, self.outputs, self.label, self.block))

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # Hashes of strings differ from process to process; compiled kernels do not travel.
        fields = ("graph", "inputs", "outputs", "label", "block")
        return {name: getattr(self, name) for name in fields}

    @property
    @override
    def is_lowered(self) -> bool:
        return self.block is not None

    @override
    def lowered(self, mode: Mode | None = None) -> GraphJob:
        if self.is_lowered:
            return self
        return replace(self, block=block_graph(self, mode or default_job_mode()))

    @override
    def compile(self) -> Kernel:
        block = self.lowered().block
        assert block is not None
        return compile_block(block)

    @override
    def rewritten(self, rewrite: Callable[[FunctionGraph], object]) -> GraphJob:
        fgraph = self.graph.unfreeze()
        rewrite(fgraph)
        return self.trace(fgraph.inputs, fgraph.outputs, self.inputs, self.outputs, self.label)

    @override
    def connection(self) -> list[list[bool]]:
        pattern = io_connection_pattern(self.graph.inputs, self.graph.outputs)
        return [
            [
                connected and is_differentiable(source) and is_differentiable(target)
                for connected, target in zip(row, self.outputs, strict=True)
            ]
            for row, source in zip(pattern, self.inputs, strict=True)
        ]

    @override
    def refusal(self, output: int, wrt: int) -> str | None:
        return self._refusals.get(wrt)

    @cached_property
    def _refusals(self) -> dict[int, str]:
        """The inputs that an Op of the graph cannot be differentiated with respect to, and why."""
        inputs, results = self._thaw()
        smooth = [k for k, slot in enumerate(self.outputs) if is_differentiable(slot)]
        wrt = [i for i, slot in enumerate(self.inputs) if is_differentiable(slot)]
        gradients: Any = grad(
            None,
            [inputs[i] for i in wrt],
            known_grads={results[k]: self.outputs[k].type() for k in smooth},
            disconnected_inputs="ignore",
            null_gradients="return",
        )
        return {
            i: gradient.type.why_null
            for i, gradient in zip(wrt, gradients, strict=True)
            if isinstance(gradient.type, NullType)
        }

    @override
    def pullback(self, wrt: Sequence[int], outputs: Sequence[int]) -> GraphJob:
        inputs, results = self._thaw()
        cotangents = [self.outputs[k].type() for k in outputs]
        gradients: Any = pullback(
            [results[k] for k in outputs],
            [inputs[i] for i in wrt],
            cotangents,
            disconnected_inputs="ignore",
        )
        gradients = [_as_type(g, self.inputs[i]) for g, i in zip(gradients, wrt, strict=True)]
        return self.trace(
            [*inputs, *cotangents],
            _checked(gradients, results),
            [*self.inputs, *(cotangent_slot(self.outputs[k], None) for k in outputs)],
            [cotangent_slot(self.inputs[i], i) for i in wrt],
            self.label,
        )

    @override
    def pushforward(self, wrt: Sequence[int], outputs: Sequence[int]) -> GraphJob:
        inputs, results = self._thaw()
        tangents = [self.inputs[i].type() for i in wrt]
        pushed: Any = pushforward(
            [results[k] for k in outputs],
            [inputs[i] for i in wrt],
            tangents,
            disconnected_outputs="ignore",
        )
        return self.trace(
            [*inputs, *tangents],
            [_as_type(t, self.outputs[k]) for t, k in zip(pushed, outputs, strict=True)],
            [*self.inputs, *(cotangent_slot(self.inputs[i], None) for i in wrt)],
            [cotangent_slot(self.outputs[k], self.outputs[k].like) for k in outputs],
            self.label,
        )

    @override
    def keep(self, outputs: Sequence[int]) -> GraphJob:
        inputs, results = self._thaw()
        return self.trace(
            inputs,
            [results[k] for k in outputs],
            self.inputs,
            [self.outputs[k] for k in outputs],
            self.label,
        )

    @override
    def summed(self, outputs: Sequence[int]) -> GraphJob:
        inputs, results = self._thaw()
        slots = list(self.outputs)
        for k in outputs:
            result: Any = results[k]
            results[k] = result.sum() if result.type.ndim else result
            slots[k] = total_slot(slots[k])
        return self.trace(inputs, results, self.inputs, slots, self.label)

    @override
    def used_inputs(self) -> list[int]:
        inputs, results = self._thaw()
        reached = set(ancestors(results))
        used = {i for i, variable in enumerate(inputs) if variable in reached}
        used |= {slot.like for slot in self.outputs if slot.like is not None}
        used |= {slot.shapes for slot in self.outputs if slot.shapes is not None}
        used |= {shapes for i in used if (shapes := self.inputs[i].shapes) is not None}
        return sorted(used)

    @override
    def reroute(self, positions: Sequence[int], inputs: tuple[Slot, ...]) -> GraphJob:
        fresh = [slot.type() for slot in inputs]
        replacements = [
            fresh[new] if new >= 0 else slot.type()
            for new, slot in zip(positions, self.inputs, strict=True)
        ]
        results = self.graph.bind(replacements)
        renumbered = dict(enumerate(positions))
        outputs = [slot.moved(renumbered) for slot in self.outputs]
        return self.trace(fresh, results, inputs, outputs, self.label)

    @override
    def fuse(self, other: Job) -> GraphJob | None:
        if not isinstance(other, GraphJob):
            return None
        inputs, results = self._thaw()
        return self.trace(
            inputs,
            [*results, *other.graph.bind(inputs)],
            self.inputs,
            [*self.outputs, *other.outputs],
            self.label if self.label == other.label else f"{self.label} and {other.label}",
        )

    def _thaw(self) -> tuple[list[Variable], list[Variable]]:
        """Return fresh inputs and the outputs as a graph of them."""
        inputs = [variable.type() for variable in self.graph.inputs]
        return inputs, self.graph.bind(inputs)


def _checked(gradients: list[Any], results: Sequence[Variable]) -> list[Any]:
    """Let a job's checks hold for its derivatives too, which do not pass through them.

    A proposal that is rejected must have a zero gradient, whichever of value and gradient is
    evaluated first. Where PyMC gives -inf in place of a check, nothing is rejected: as in a model
    without maps, the derivative is that of the formula.
    """
    for node in applys_between([], results):
        if isinstance(node.op, CheckAndRaise) and not _gives_ninf(node.op):
            gradients = [node.op(gradient, *node.inputs[1:]) for gradient in gradients]
    return gradients


def _gives_ninf(check: CheckAndRaise) -> bool:
    """Return whether PyMC may replace this check by -inf when it compiles a model."""
    return bool(getattr(check, "can_be_replaced_by_ninf", False))


def _as_type(variable: Any, slot: Slot) -> Any:
    """Return a derivative in the dtype of the slot that it belongs to."""
    if variable.type.dtype != slot.type.dtype:
        variable = variable.astype(slot.type.dtype)
    return variable
