"""One rank's share of a map: its blocks and its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pymc_mpimap.blocks import Node, subtrees
from pymc_mpimap.errors import JobError, JobFailure
from pymc_mpimap.map import Map
from pymc_mpimap.pool.failures import as_cause, describe, from_job
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.protocol import Parts
from pymc_mpimap.signature import core_shape, packed_offsets

__all__ = ["Share", "answer_parts", "gained", "output_shapes"]


def output_shapes(
    m: Map, inputs: Sequence[Any], first: int, last: int, n_subtrees: int
) -> list[tuple[int, ...]]:
    """Return the shapes of a share's outputs.

    Parameters
    ----------
    inputs : sequence
        The job's inputs for these jobs (held data included where an output's shape needs them).
    """
    cores = [_core_shape_of_input(m, i, value) for i, value in enumerate(inputs)]
    shapes: list[tuple[int, ...]] = []
    for slot in m.job.outputs:
        if slot.shapes is not None:
            shapes.append((int(packed_offsets(np.asarray(inputs[slot.shapes]))[-1]),))
        elif slot.per_job:
            shapes.append((last - first, *core_shape(slot, cores)))
        else:
            shapes.append((n_subtrees, *core_shape(slot, cores)))
    return shapes


def _core_shape_of_input(m: Map, i: int, value: Any) -> tuple[int, ...] | None:
    slot = m.job.inputs[i]
    if slot.ragged or not isinstance(value, np.ndarray):
        return None
    shape: tuple[int, ...] = value.shape
    return shape[1:] if slot.per_job else shape


class Share:
    """The blocks ``low <= block < high`` of a map, on one rank.

    Parameters
    ----------
    m : Map
        With at least the data of these blocks' jobs.
    low, high : int
        The run of blocks.
    rank : int
        The rank this is, for messages.
    """

    def __init__(self, m: Map, low: int, high: int, rank: int = 0):
        self.map, self.low, self.high, self.rank = m, low, high, rank
        blocks = m.blocks
        self.first, self.last = blocks.first_job(low), blocks.first_job(high)
        self.subtrees: list[Node] = list(subtrees(blocks.count, low, high))
        self._held: list[Any] | None = None

    def jobs(self, block: int) -> tuple[int, int]:
        """Return a block's first and last job, counted from this share's first."""
        blocks = self.map.blocks
        return blocks.first_job(block) - self.first, blocks.first_job(block + 1) - self.first

    def complete(self, inputs: Sequence[Any]) -> list[Any]:
        """Return all inputs of the job for this share's jobs, held data included.

        Raises
        ------
        JobError
            If local data cannot be loaded.
        """
        if self._held is None:
            self._held = self._load()
        supplied = iter(inputs)
        return [
            next(supplied) if data is None else held
            for data, held in zip(self.map.data, self._held, strict=True)
        ]

    def outputs(self, inputs: Sequence[Any]) -> list[tuple[str, tuple[int, ...]]]:
        """Return the dtypes and shapes of the outputs, which `inputs` and held data may decide."""
        shapes = output_shapes(
            self.map, self.complete(inputs), self.first, self.last, len(self.subtrees)
        )
        dtypes = (slot.type.dtype for slot in self.map.job.outputs)
        return list(zip(dtypes, shapes, strict=True))

    def _load(self) -> list[Any]:
        """Return the held data of this share's jobs; loads what is local."""
        try:
            return [
                None if data is None else data.block(self.first, self.last)
                for data in self.map.data
            ]
        except BaseException as error:
            if not from_job(error, self.rank):
                raise
            failed = error
        failure = self.failure(self.first, failed, "loading the data of ")
        raise JobError(failure) from as_cause(failed)

    def failure(self, job: int, error: BaseException, doing: str = "") -> JobFailure:
        """Describe what a job raised."""
        return describe(error, f"{doing}{self.map.job.name}", job, self.rank)


def answer_parts(
    program: Program, shares: Sequence[Share], values: Sequence[np.ndarray], ranks: int
) -> Parts:
    """Return the dtypes and shapes of an answer.

    Parameters
    ----------
    program : Program
    shares : sequence of Share
        For each map, that of who answers.
    values : sequence of array
        Its part of each of the program's inputs.
    ranks : int
        For how many ranks it answers.
    """
    parts: list[tuple[str, tuple[int, ...]]] = []
    for share, used in zip(shares, program.uses, strict=True):
        m = share.map
        supplied = (values[i] for i in used)
        inputs = [
            next(supplied) if data is None else _shape_data(m, i, share)
            for i, data in enumerate(m.data)
        ]
        shapes = output_shapes(m, inputs, share.first, share.last, len(share.subtrees))
        parts += [
            (slot.type.dtype, shape) for slot, shape in zip(m.job.outputs, shapes, strict=True)
        ]
    return (*parts, ("int64", (ranks,))) if ranks > 1 else tuple(parts)


def _shape_data(m: Map, i: int, share: Share) -> Any:
    """Return held data only where the shapes of outputs follow from them."""
    if any(i in (slot.shapes, slot.like) for slot in m.job.outputs):
        held = m.data[i]
        return None if held is None else held.block(share.first, share.last)
    return None


def gained(old: Share, new: Share) -> tuple[Any, ...]:
    """Return the data of the jobs that a rank owns now and did not before."""
    if old.first == old.last:
        runs = [(new.first, new.last)]
    else:
        runs = [
            (new.first, min(new.last, old.first)),
            (max(new.first, old.last), new.last),
        ]
    return tuple(new.map.owned(first, last).data for first, last in runs if first < last)
