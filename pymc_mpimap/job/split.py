"""Traced jobs in two messages: what the first computed is kept for the second.

Where predictions are gathered and the likelihood stands outside of the map, the pullback must
wait for the value. Both graphs share most of their work; the values on the border between the
shared part and the rest are kept on the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, override

import numpy as np
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FrozenFunctionGraph
from pytensor.graph.traversal import ancestors, applys_between

from pymc_mpimap.job.base import Job, Kernel
from pymc_mpimap.job.graph import GraphJob
from pymc_mpimap.job.loop import one_by_one
from pymc_mpimap.job.lowering import BlockGraph, default_job_mode, lower
from pymc_mpimap.job.memory import Memory
from pymc_mpimap.signature import Slot

__all__ = ["SplitJob", "common_work"]


@dataclass(frozen=True)
class SplitJob(Job):
    """A traced job that records, or uses, the work it has in common with another one.

    Attributes
    ----------
    base : GraphJob
        The job itself: what it gives does not change.
    common : FrozenFunctionGraph
        From the first job's inputs, which are the first inputs of both, to the values that both
        need.
    whole : FrozenFunctionGraph
        For the first of the two: from the inputs to the outputs and those values. For the
        second: from the inputs and those values to the outputs.
    first : bool
        Which of the two it is.
    memory : Memory
    blocks : tuple of BlockGraph
        `whole`, and for the second job `common`, once they are rewritten for a backend.
    """

    base: GraphJob
    common: FrozenFunctionGraph
    whole: FrozenFunctionGraph
    first: bool
    memory: Memory
    blocks: tuple[BlockGraph, ...] = ()

    @property
    @override
    def inputs(self) -> tuple[Slot, ...]:  # type: ignore[override] # as the base's
        return self.base.inputs

    @property
    @override
    def outputs(self) -> tuple[Slot, ...]:  # type: ignore[override] # as the base's
        return self.base.outputs

    @property
    @override
    def name(self) -> str:
        return self.base.name

    @property
    @override
    def cheap(self) -> bool:
        return self.base.cheap

    @property
    @override
    def is_lowered(self) -> bool:
        return bool(self.blocks)

    @override
    def lowered(self, mode: Mode | None = None) -> SplitJob:
        if self.is_lowered:
            return self
        graphs = (self.whole,) if self.first else (self.whole, self.common)
        mode = mode or default_job_mode()
        return replace(self, blocks=tuple(_lowered(graph, mode) for graph in graphs))

    @override
    def compile(self) -> Kernel:
        whole, *rest = (block.function() for block in self.lowered().blocks)
        common = rest[0] if rest else None
        n_outputs = len(self.outputs)

        def one(j: int, values: Sequence[Any]) -> Sequence[np.ndarray]:
            values = [np.asarray(value) for value in values]
            if common is None:
                results = whole(*values)
                self.memory.keep(j, values, results[n_outputs:])
                return results[:n_outputs]  # type: ignore[no-any-return] # a compiled function's
            kept = self.memory.recall(j, values)
            if kept is None:
                kept = common(*values[: len(self.common.inputs)])
            return whole(*values, *kept)  # type: ignore[no-any-return] # a compiled function's

        return one_by_one(self, one)

    @override
    def connection(self) -> list[list[bool]]:
        return self.base.connection()

    @override
    def refusal(self, output: int, wrt: int) -> str | None:
        return self.base.refusal(output, wrt)

    @override
    def pullback(self, wrt: Sequence[int], outputs: Sequence[int]) -> Job:
        return self.base.pullback(wrt, outputs)

    @override
    def pushforward(self, wrt: Sequence[int], outputs: Sequence[int]) -> Job:
        return self.base.pushforward(wrt, outputs)

    @override
    def keep(self, outputs: Sequence[int]) -> Job:
        return self.base.keep(outputs)

    @override
    def summed(self, outputs: Sequence[int]) -> Job:
        return self.base.summed(outputs)

    @override
    def used_inputs(self) -> list[int]:
        return self.base.used_inputs()

    @override
    def reroute(self, positions: Sequence[int], inputs: tuple[Slot, ...]) -> Job:
        return self.base.reroute(positions, inputs)

    @override
    def fuse(self, other: Job) -> Job | None:
        return None


def _lowered(graph: FrozenFunctionGraph, mode: Mode) -> BlockGraph:
    thawed = graph.unfreeze()
    return lower(thawed.inputs, thawed.outputs, mode)


def common_work(
    first: GraphJob, second: GraphJob
) -> tuple[FrozenFunctionGraph, FrozenFunctionGraph, FrozenFunctionGraph] | None:
    """Return the work that two jobs have in common, and each job with it.

    The first job's inputs are the first inputs of the second.

    Returns
    -------
    common, first_whole, second_whole : FrozenFunctionGraph
        See `SplitJob`. None if they share no work.
    """
    inputs = [slot.type() for slot in second.inputs]
    n_own = len(first.inputs)
    outputs = [*first.graph.bind(inputs[:n_own]), *second.graph.bind(inputs)]
    # Equal nodes of both become one, so that shared work shows.
    both = FrozenFunctionGraph.from_io(inputs, outputs, dedup_nodes=True)
    roots = list(both.inputs)
    own = list(both.outputs[: len(first.outputs)])
    rest = list(both.outputs[len(first.outputs) :])
    done = set(ancestors(own)) - set(roots)
    border: dict[Variable, None] = {}
    for node in applys_between(roots, rest):
        if not any(output in done for output in node.outputs):
            border.update((v, None) for v in node.inputs if v in done and v.owner is not None)
    border.update((v, None) for v in rest if v in done and v.owner is not None)
    if not border:
        return None
    values = list(border)
    freeze = FrozenFunctionGraph.from_io
    return (
        freeze(roots[:n_own], values),
        freeze(roots[:n_own], [*own, *values]),
        freeze([*roots, *values], rest),
    )
