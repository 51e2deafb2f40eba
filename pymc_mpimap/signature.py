"""Signatures of jobs: each input and output is shared by all jobs or per job.

That one bit decides how a value moves. A shared input is broadcast and its cotangent reduced;
a per-job input is scattered and its cotangent gathered; so a cotangent's slot is the slot of
its variable, and the pullback of a map of jobs is a map of jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pytensor.tensor.type import TensorType, discrete_dtypes

__all__ = [
    "ObjectType",
    "Slot",
    "boundary_type",
    "cotangent_slot",
    "is_differentiable",
    "total_slot",
]


@dataclass(frozen=True)
class ObjectType:
    """The type of a Python object that only a numeric job can take."""

    dtype: str = "object"
    ndim: int = 0
    shape: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Slot:
    """One input or output of a job.

    Attributes
    ----------
    type : TensorType or ObjectType
        What a single job sees.
    per_job : bool
        Whether each job has its own value (scattered, gathered) or all share one
        (broadcast, summed).
    shapes : int, optional
        For per-job values whose shapes differ: the job input that holds each job's shape.
        Their packed form is one flat vector, job after job.
    like : int, optional
        For an output: the job input whose shape it has, where its type does not say it.
    on_failure : float
        For an output: what stands in for a job that raised under ``on_error="reject"``.
    name : str
        How the user wrote it, for messages; no part of the slot's value.
    """

    type: Any  # PyTensor's types do not say of themselves that they can be called.
    per_job: bool
    shapes: int | None = None
    like: int | None = None
    on_failure: float = 0.0
    name: str = field(default="", compare=False)

    @property
    def ragged(self) -> bool:
        """True if jobs have values of different shapes, packed flat."""
        return self.shapes is not None

    def moved(self, positions: dict[int, int]) -> Slot:
        """Return the slot of a job whose inputs were renumbered by ``positions``."""
        return replace(
            self,
            shapes=None if self.shapes is None else positions[self.shapes],
            like=None if self.like is None else positions.get(self.like),
        )


def is_differentiable(slot: Slot) -> bool:
    """Return whether derivatives with respect to this slot can exist: it holds real numbers."""
    return slot.type.dtype not in discrete_dtypes and slot.type.dtype != "object"


def cotangent_slot(slot: Slot, like: int | None) -> Slot:
    """Return the slot of a cotangent of `slot`: the same bit, and zero for a failed job."""
    return replace(slot, like=like, on_failure=0.0, name=f"the cotangent of {slot.name}")


def total_slot(slot: Slot) -> Slot:
    """Return the slot of the sum of an output over the jobs, and over its entries."""
    return replace(
        slot,
        type=TensorType(slot.type.dtype, ()),
        per_job=False,
        shapes=None,
        like=None,
        name=f"the sum of {slot.name}",
    )


def boundary_type(slot: Slot, n_jobs: int) -> Any:
    """Return the type that a slot has outside the map: all jobs' values together."""
    core = slot.type
    if not slot.per_job:
        return core
    if slot.ragged:
        return TensorType(core.dtype, shape=(0 if n_jobs == 0 else None,))
    return TensorType(core.dtype, shape=(n_jobs, *core.shape))


def core_shape(slot: Slot, input_shapes: Sequence[tuple[int, ...] | None]) -> tuple[int, ...]:
    """Return the shape of one job's output, given the shapes of one job's inputs."""
    if None not in slot.type.shape:
        return tuple(int(size) for size in slot.type.shape if size is not None)
    if slot.like is None or (shape := input_shapes[slot.like]) is None:
        raise AssertionError(f"output {slot.name} has neither a static shape nor a model input")
    return shape


def packed_offsets(shapes: np.ndarray) -> np.ndarray:
    """Return where each job's values begin in the packed vector, and where the last ends.

    Parameters
    ----------
    shapes : array of int64, shape (n_jobs, ndim)
        Each job's shape.
    """
    offsets = np.zeros(len(shapes) + 1, dtype=np.int64)
    np.cumsum(np.prod(shapes, axis=1), out=offsets[1:])
    return offsets
