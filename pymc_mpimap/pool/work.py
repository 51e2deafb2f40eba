"""The evaluation of a share: all that can be prepared is, and nothing is allocated.

`SerialPool`, the controller and the workers all evaluate through `Work`, so that they cannot
differ.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from math import isfinite
from time import perf_counter_ns
from types import FrameType
from typing import Any

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.blocks import additions
from pymc_mpimap.errors import Incident, JobError, JobFailure, NotFinite
from pymc_mpimap.job.base import Job, Kernel, Thunk
from pymc_mpimap.pool.failures import as_cause, from_job, is_interrupt
from pymc_mpimap.pool.levels import Levels
from pymc_mpimap.pool.share import Share, output_shapes
from pymc_mpimap.signature import packed_offsets
from pymc_mpimap.tally import TALLY

__all__ = ["Work", "hand_out", "inside_job"]

_KERNELS: OrderedDict[tuple[Any, ...], Kernel] = OrderedDict()
_MAX_KERNELS = 256
_state = threading.local()

_IN_LEVELS = 1 << 16
"""Bytes up to which all blocks' sums are kept until the end: no more than a cache holds."""

_FEWEST = 4
"""The least number of blocks that are added up level by level."""


def inside_job() -> bool:
    """Return whether this thread is evaluating a job: a map within a job runs serially."""
    evaluating = getattr(_state, "frame", None)
    if evaluating is None:
        return False
    # Ctrl-C can strike before the note is taken back: only a call that still runs counts.
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame is not evaluating:
        frame = frame.f_back
    return frame is not None


def hand_out(incidents: Sequence[Incident]) -> None:
    """Hand incidents of a map within a job to the evaluation of that job, see `inside_job`."""
    _state.inner += incidents


def compiled(job: Job) -> Kernel:
    """Return the kernel of a job, compiled at most once in this process and PyTensor mode."""
    key = (job, config.mode, config.linker, config.optimizer, config.floatX)
    if key not in _KERNELS:
        _KERNELS[key] = job.compile()
        while len(_KERNELS) > _MAX_KERNELS:
            _KERNELS.popitem(last=False)
    return _KERNELS[key]


def _enter(
    frame: FrameType | None, inner: list[Incident]
) -> tuple[FrameType | None, list[Incident] | None]:
    """Note that a frame evaluates jobs, and who collects incidents within them; return the last."""
    outside = getattr(_state, "frame", None), getattr(_state, "inner", None)
    _state.frame, _state.inner = frame, inner
    return outside


class How(Enum):
    """The treatment of a block's output."""

    COPY = 0
    KEEP = 1  # until the next block's is added to it: the first of two has no place of its own
    ADD_TO_KEPT = 2
    ADD = 3


Store = tuple[How, np.ndarray, tuple[tuple[np.ndarray, np.ndarray], ...]]
"""The treatment of a block's output, its place, and the sums that are then added up."""


class Work:
    """A share whose inputs and outputs stay where they are in memory.

    Parameters
    ----------
    share : Share
    inputs : sequence of array
        The inputs that the graph supplies, for this share's jobs. Their values may change from
        one evaluation to the next; their shapes, and the shapes of ragged ones, may not.
    outputs : sequence of array, optional
        Where the outputs go; of the shapes that `shapes` says. By default they are made here.

    Attributes
    ----------
    outputs : list of array
        For each output of the job: a per-job one for the share's own jobs; for a shared one the
        sums of the share's subtrees, shape ``(n_subtrees, ...)``.
    """

    def __init__(
        self, share: Share, inputs: Sequence[Any], outputs: Sequence[np.ndarray] | None = None
    ):
        self.share = share
        self._complete = share.complete(inputs)
        if outputs is None:
            outputs = [np.empty(shape, dtype) for dtype, shape in share.outputs(inputs)]
        self.outputs = list(outputs)
        self._spent = [0] * (share.high - share.low)
        self._kept: list[Any] = [None] * len(self.outputs)
        self._evaluations = 0
        self._thunks: list[Thunk | None] = [None] * len(self._spent)
        self._levels: list[Levels] = []
        # Which outputs are sums of values, and where those of the blocks are.
        self._values: list[tuple[int, np.ndarray]] = []
        self._stores: list[tuple[Store, ...]] = list(
            zip(*(self._stored(k) for k in range(len(self.outputs))), strict=True)
        )

    def _stored(self, k: int) -> list[Store]:
        """Return for each block where output `k` goes."""
        share, output, slot = self.share, self.outputs[k], self.share.map.job.outputs[k]
        blocks = range(share.low, share.high)
        size = output.dtype.itemsize * math.prod(output.shape[1:])
        # Of values, each block's sum is kept, to find out which jobs' are not finite.
        value = not slot.per_job and slot.on_failure == -math.inf
        if value and len(blocks) == 1:
            self._values.append((k, output))
        elif value or (
            not slot.per_job and len(blocks) >= _FEWEST and len(blocks) * size <= _IN_LEVELS
        ):
            levels = Levels(share.low, share.high, share.subtrees, output)
            self._levels.append(levels)
            if value:
                self._values.append((k, levels.blocks))
            rows = range(len(blocks))
            return [(How.COPY, levels.blocks[row : row + 1], ()) for row in rows]
        if slot.shapes is not None:
            where = packed_offsets(np.asarray(self._complete[slot.shapes]))
            runs = [share.jobs(block) for block in blocks]
            return [(How.COPY, output[where[start] : where[end]], ()) for start, end in runs]
        if slot.per_job:
            return [(How.COPY, output[slice(*share.jobs(block))], ()) for block in blocks]
        stores: list[Store] = []
        for row, (low, high) in enumerate(share.subtrees):
            # The first sum on the stack is the subtree's own, in the end.
            below = (high - low).bit_length()
            scratch = np.empty((below, *output.shape[1:]), dtype=output.dtype)
            # Rows as slices: a scalar's is a vector of one, not a copy.
            stack = [output[row : row + 1], *(scratch[i : i + 1] for i in range(below))]
            depth = 0
            how = How.COPY
            for count in additions((low, high), [(b, b + 1) for b in range(low, high)]):
                if count == 0:
                    how = How.COPY if high - low == 1 else How.KEEP
                    stores.append((how, stack[depth], ()))
                else:
                    how = How.ADD_TO_KEPT if how is How.KEEP else How.ADD
                    steps = [(stack[depth - i - 1], stack[depth - i]) for i in range(1, count)]
                    stores.append((how, stack[depth - 1], tuple(steps)))
                depth += 1 - count
        return stores

    def replace(self, i: int, value: np.ndarray) -> None:
        """Let the graph's input `i` be another array of the same shape."""
        position = self.share.map.from_graph[i]
        self._complete[position] = value
        self._thunks = [None] * len(self._thunks)

    def costs(self) -> np.ndarray:
        """Return the nanoseconds that each block took on average since this was asked last."""
        evaluations, self._evaluations = self._evaluations, 0
        spent, self._spent = self._spent, [0] * len(self._spent)
        return np.array(spent) / evaluations if evaluations else np.full(len(spent), np.nan)

    def warm(self) -> None:
        """Compile what the first evaluation would: one block, its result thrown away."""
        if self._thunks and self.share.map.job.cheap:
            # An error will be raised, or rejected, by the evaluation that follows.
            outside = _enter(inspect.currentframe(), [])
            with contextlib.suppress(Exception, SystemExit):
                self._thunk(*self.share.jobs(self.share.low))()
            _state.frame, _state.inner = outside

    def evaluate(self) -> list[Incident]:
        """Evaluate the blocks into `outputs`.

        Returns
        -------
        list of JobFailure or NotFinite
            The jobs that raised and were rejected, and those whose values, only summed, are not
            finite. The same of maps within the jobs, of functions "f within g".

        Raises
        ------
        JobError
            If a job raised and the map says ``on_error="raise"``.
        """
        failures: list[Incident] = []
        inner: list[Incident] = []
        spent, thunks = self._spent, self._thunks
        self._evaluations += 1
        add, kept = np.add, self._kept
        COPY, KEEP, ADD_TO_KEPT = How.COPY, How.KEEP, How.ADD_TO_KEPT  # noqa: N806 # constants
        outside = _enter(inspect.currentframe(), inner)
        try:
            begun = perf_counter_ns()
            for k, stores in enumerate(self._stores):
                failed, before = None, len(inner)
                try:
                    thunk = thunks[k]
                    if thunk is None:
                        thunk = thunks[k] = self._thunk(*self.share.jobs(self.share.low + k))
                    results = thunk()
                except BaseException as error:
                    if not from_job(error, self.share.rank):
                        raise
                    failed = error
                if failed is not None:
                    results = self._isolate(k, failed, failures, before)
                for i, result in enumerate(results):
                    how, place, steps = stores[i]
                    if how is COPY:
                        place[...] = result
                    elif how is KEEP:
                        kept[i] = result
                    else:
                        add(kept[i] if how is ADD_TO_KEPT else place, result, place)
                    for left, right in steps:
                        add(left, right, left)
                ended = perf_counter_ns()
                spent[k] += ended - begun
                begun = ended
            within = [self._own(incident) for incident in inner]
            self._add_up(failures)
        finally:
            _state.frame, _state.inner = outside
        failures += within
        return failures

    def _own(self, incident: Incident) -> Incident:
        """Say of an incident of a map within a job where that was."""
        function = f"{incident.function} within {self.share.map.job.name}"
        if isinstance(incident, JobFailure):
            return replace(incident, function=function, rank=self.share.rank)
        return replace(incident, function=function)

    def _thunk(self, start: int, end: int) -> Thunk:
        """Return what evaluates these jobs, counted from the share's first; compiles it."""
        parts = []
        for slot, value in zip(self.share.map.job.inputs, self._complete, strict=True):
            if not slot.per_job:
                parts.append(value)
            elif slot.shapes is None:
                parts.append(value[start:end])
            else:
                offsets = packed_offsets(np.asarray(self._complete[slot.shapes]))
                parts.append(value[offsets[start] : offsets[end]])
        return compiled(self.share.map.job)(self.share.first + start, end - start, parts)

    def _isolate(
        self, k: int, failed: BaseException, failures: list[Incident], before: int
    ) -> Sequence[Any]:
        """Find the jobs that raised in a block; raise the first, or let zeros stand in for them."""
        share = self.share
        start, end = share.jobs(share.low + k)
        if end - start > 1:
            # All jobs are evaluated once more, and so are the maps within them.
            del _state.inner[before:]
        results: list[Sequence[Any]] = []
        for j in range(start, end):
            error: BaseException | None = failed if end - start == 1 else None
            if error is None:
                try:
                    results.append(self._thunk(j, j + 1)())
                    continue
                except BaseException as again:
                    if not from_job(again, share.rank):
                        raise
                    error = again
            failure = share.failure(share.first + j, error)
            # An interrupt ends the sampling on whichever rank it is raised.
            if share.map.on_error == "raise" or is_interrupt(error):
                raise JobError(failure) from as_cause(error)
            failures.append(failure)
            results.append(self._stand_in(j))
        if not failures and share.map.on_error == "raise":
            # Each job alone went well: what failed is the block, reported by its first job.
            raise JobError(share.failure(share.first + start, failed)) from as_cause(failed)
        outputs = []
        for i, slot in enumerate(share.map.job.outputs):
            column = [result[i] for result in results]
            outputs.append(np.concatenate(column) if slot.per_job else sum(column[1:], column[0]))
        return outputs

    def _add_up(self, failures: list[Incident]) -> None:
        """Add up what was kept of the blocks, and look for values that are not finite."""
        for levels in self._levels:
            levels.add_up()
        for i, sums in self._values:
            if not all(map(isfinite, self.outputs[i].tolist())):
                failures += self._not_finite(i, sums, failures)

    def _not_finite(
        self, i: int, sums: np.ndarray, rejected: Sequence[Incident]
    ) -> list[NotFinite]:
        """Return which of the jobs, whose values were only summed, have one that is not finite.

        The jobs of a block are evaluated again, one by one: that is not counted.
        """
        share = self.share
        known = {incident.job for incident in rejected}
        found: list[NotFinite] = []
        counted = TALLY.copy()
        for block in np.flatnonzero(~np.isfinite(sums)).tolist():
            start, end = share.jobs(share.low + block)
            for j in range(start, end):
                value = float(sums[block])
                if end - start > 1:
                    value = self._value(i, j)
                if share.first + j not in known and not isfinite(value):
                    found.append(NotFinite(share.map.job.name, share.first + j, str(value)))
        np.subtract(TALLY, TALLY - counted, out=TALLY)
        return found

    def _value(self, i: int, j: int) -> float:
        """Return what output `i` of one job is; zero if it raises, which is known by then."""
        with contextlib.suppress(Exception, SystemExit):
            return float(self._thunk(j, j + 1)()[i])
        return 0.0

    def _stand_in(self, j: int) -> list[np.ndarray]:
        """Return what a rejected job gives: -inf as its value, zero as its derivatives."""
        m = self.share.map
        one = [
            value[j : j + 1] if slot.per_job and not slot.ragged else value
            for slot, value in zip(m.job.inputs, self._complete, strict=True)
        ]
        outputs = []
        for slot, shape in zip(m.job.outputs, output_shapes(m, one, j, j + 1, 1), strict=True):
            own = shape if slot.per_job else shape[1:]
            outputs.append(np.full(own, slot.on_failure, dtype=slot.type.dtype))
        return outputs
