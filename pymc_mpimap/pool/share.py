"""One rank's share of a map: its blocks, its data, and their evaluation.

`SerialPool`, the controller and the workers all evaluate through `Share`, so that they cannot
differ.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.blocks import Node, add_up, subtrees
from pymc_mpimap.errors import JobError, JobFailure
from pymc_mpimap.job.base import Job, Kernel
from pymc_mpimap.map import Map
from pymc_mpimap.signature import core_shape, packed_offsets

__all__ = ["Share", "ShareResult", "inside_job", "output_shapes"]

_KERNELS: OrderedDict[tuple[Any, ...], Kernel] = OrderedDict()
_MAX_KERNELS = 256
_state = threading.local()


def inside_job() -> bool:
    """Whether this thread is evaluating a job just now: a map within a job runs serially."""
    return getattr(_state, "inside", False)


def compiled(job: Job) -> Kernel:
    """Return the kernel of a job, compiled at most once in this process and PyTensor mode."""
    key = (job, config.mode, config.linker, config.optimizer, config.floatX)
    if key not in _KERNELS:
        _KERNELS[key] = job.compile()
        while len(_KERNELS) > _MAX_KERNELS:
            _KERNELS.popitem(last=False)
    return _KERNELS[key]


@dataclass
class ShareResult:
    """What a share gives.

    Attributes
    ----------
    outputs : list of array
        For each output of the job: a per-job one for the share's own jobs; for a shared one the
        sums of the share's subtrees, shape ``(n_subtrees, ...)``.
    failures : list of JobFailure
        The jobs that raised and were rejected.
    """

    outputs: list[np.ndarray]
    failures: list[JobFailure] = field(default_factory=list)


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
        self._kernel: Kernel | None = None

    def warm(self, inputs: Sequence[Any]) -> None:
        """Compile what the first evaluation would: one block, its result thrown away."""
        if self.low < self.high and self.map.job.cheap:
            # An error will be raised, or rejected, by the evaluation that follows.
            with contextlib.suppress(JobError):
                self._evaluate_block(self.low, self._complete(inputs), [])

    def evaluate(self, inputs: Sequence[Any]) -> ShareResult:
        """Evaluate these blocks.

        Parameters
        ----------
        inputs : sequence
            The inputs that the graph supplies, for this share's jobs.

        Raises
        ------
        JobError
            If a job raised and the map says ``on_error="raise"``.
        """
        complete = self._complete(inputs)
        shapes = output_shapes(self.map, complete, self.first, self.last, len(self.subtrees))
        outputs = [
            np.empty(shape, dtype=slot.type.dtype)
            for shape, slot in zip(shapes, self.map.job.outputs, strict=True)
        ]
        failures: list[JobFailure] = []
        if self.low == self.high:
            return ShareResult(outputs, failures)
        sums: list[dict[Node, np.ndarray]] = [{} for _ in outputs]
        offsets = {
            slot.shapes: packed_offsets(np.asarray(complete[slot.shapes]))
            for slot in self.map.job.outputs
            if slot.shapes is not None
        }
        for block in range(self.low, self.high):
            results = self._evaluate_block(block, complete, failures)
            start, end = self._jobs(block)
            for k, (slot, result) in enumerate(zip(self.map.job.outputs, results, strict=True)):
                if slot.shapes is not None:
                    where = offsets[slot.shapes]
                    outputs[k][where[start] : where[end]] = result
                elif slot.per_job:
                    outputs[k][start:end] = result
                else:
                    sums[k][block, block + 1] = np.asarray(result)
        for k, slot in enumerate(self.map.job.outputs):
            if not slot.per_job:
                for position, node in enumerate(self.subtrees):
                    outputs[k][position] = add_up(node, sums[k])
        return ShareResult(outputs, failures)

    def _jobs(self, block: int) -> tuple[int, int]:
        """Return a block's first and last job, counted from this share's first."""
        blocks = self.map.blocks
        return blocks.first_job(block) - self.first, blocks.first_job(block + 1) - self.first

    def _complete(self, inputs: Sequence[Any]) -> list[Any]:
        """Return all inputs of the job for this share's jobs, held data included."""
        if self._held is None:
            self._held = self._load()
        supplied = iter(inputs)
        return [
            next(supplied) if data is None else held
            for data, held in zip(self.map.data, self._held, strict=True)
        ]

    def _load(self) -> list[Any]:
        """Return the held data of this share's jobs; loads what is local."""
        try:
            return [
                None if data is None else data.block(self.first, self.last)
                for data in self.map.data
            ]
        except Exception as error:
            raise JobError(self._failure(self.first, error, "loading the data of ")) from error

    def _evaluate_block(
        self, block: int, complete: Sequence[Any], failures: list[JobFailure]
    ) -> list[Any]:
        start, end = self._jobs(block)
        try:
            return self._call(start, end, complete)
        except (Exception, SystemExit) as error:
            failed = error
        return self._isolate(start, end, complete, failed, failures)

    def _call(self, start: int, end: int, complete: Sequence[Any]) -> list[Any]:
        if self._kernel is None:
            self._kernel = compiled(self.map.job)
        parts = []
        for slot, value in zip(self.map.job.inputs, complete, strict=True):
            if not slot.per_job:
                parts.append(value)
            elif slot.shapes is None:
                parts.append(value[start:end])
            else:
                offsets = packed_offsets(np.asarray(complete[slot.shapes]))
                parts.append(value[offsets[start] : offsets[end]])
        outside, _state.inside = inside_job(), True
        try:
            return self._kernel(self.first + start, end - start, parts)
        finally:
            _state.inside = outside

    def _isolate(
        self,
        start: int,
        end: int,
        complete: Sequence[Any],
        failed: BaseException,
        failures: list[JobFailure],
    ) -> list[Any]:
        """Find the jobs that raised in a block; raise the first, or let zeros stand in for them."""
        results: list[list[Any]] = []
        for j in range(start, end):
            error: BaseException | None = failed if end - start == 1 else None
            if error is None:
                try:
                    results.append(self._call(j, j + 1, complete))
                    continue
                except (Exception, SystemExit) as again:
                    error = again
            failure = self._failure(self.first + j, error)
            if self.map.on_error == "raise":
                raise JobError(failure) from error
            failures.append(failure)
            results.append(self._stand_in(j, complete))
        if not failures and self.map.on_error == "raise":
            # Each job alone went well: what failed is the block, reported by its first job.
            raise JobError(self._failure(self.first + start, failed)) from failed
        outputs = []
        for k, slot in enumerate(self.map.job.outputs):
            column = [result[k] for result in results]
            outputs.append(np.concatenate(column) if slot.per_job else sum(column[1:], column[0]))
        return outputs

    def _stand_in(self, j: int, complete: Sequence[Any]) -> list[np.ndarray]:
        """Return what a rejected job gives: -inf as its value, zero as its derivatives."""
        one = [
            value[j : j + 1] if slot.per_job and not slot.ragged else value
            for slot, value in zip(self.map.job.inputs, complete, strict=True)
        ]
        shapes = output_shapes(self.map, one, j, j + 1, 1)
        outputs = []
        for slot, shape in zip(self.map.job.outputs, shapes, strict=True):
            own = shape if slot.per_job else shape[1:]
            outputs.append(np.full(own, slot.on_failure, dtype=slot.type.dtype))
        return outputs

    def _failure(self, job: int, error: BaseException, doing: str = "") -> JobFailure:
        # The first line is the exception's own; PyTensor adds hints below it.
        text = (str(error).strip().splitlines() or [""])[0]
        return JobFailure(
            function=f"{doing}{self.map.job.name}",
            job=job,
            rank=self.rank,
            host=socket.gethostname(),
            exception=f"{type(error).__name__}: {text}" if text else type(error).__name__,
            traceback="".join(traceback.format_exception(error)),
        )
