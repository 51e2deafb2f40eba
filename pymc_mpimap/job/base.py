"""The interface of a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

from pytensor.compile.mode import Mode
from pytensor.graph.fg import FunctionGraph

from pymc_mpimap.signature import Slot

__all__ = ["Job", "Kernel", "Thunk"]

Thunk = Callable[[], Sequence[Any]]
"""Evaluates jobs that it was made for, with what their inputs hold by then."""

Kernel = Callable[[int, int, Sequence[Any]], Thunk]
"""``kernel(first, n, inputs)``: returns the thunk of the jobs ``first <= job < first + n``.

Inputs and outputs are in slot order. A shared input is the value itself, a shared output the sum
over these jobs; per-job values have one row a job, ragged ones are packed flat. The inputs stay
where they are and are read anew by each call; the shapes of ragged ones do not change.
"""


class Job(ABC):
    """The computation of each job, as a value: equal jobs compute the same.

    Attributes
    ----------
    inputs, outputs : tuple of Slot
        What a job takes and gives.
    """

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that the user gave it."""

    @property
    @abstractmethod
    def cheap(self) -> bool:
        """True if several jobs make a block by default."""

    @property
    def operations(self) -> int | None:
        """About how many operations on numbers one job takes; None if that cannot be told."""
        return None

    @property
    def is_lowered(self) -> bool:
        """True once its graphs, if it has any, are rewritten for a backend."""
        return True

    def lowered(self, mode: Mode | None = None) -> Self:  # noqa: ARG002 # of jobs with graphs
        """Return the job with its graphs rewritten, for each rank to compile as they are.

        Parameters
        ----------
        mode : Mode, optional
            See `pymc_mpimap.job.lowering.job_mode`. By default PyTensor's own default mode.
        """
        return self

    def rewritten(
        self,
        rewrite: Callable[[FunctionGraph], object],  # noqa: ARG002 # of jobs with graphs
    ) -> Self:
        """Return the job with its graph as `rewrite`, called with it, leaves it."""
        return self

    @abstractmethod
    def compile(self) -> Kernel:
        """Return what makes thunks for blocks of consecutive jobs on this rank."""

    @abstractmethod
    def connection(self) -> list[list[bool]]:
        """Say for each input, for each output, whether the one depends smoothly on the other."""

    @abstractmethod
    def refusal(self, output: int, wrt: int) -> str | None:
        """Say why this output has no derivative with respect to this input, or return None."""

    @abstractmethod
    def pullback(self, wrt: Sequence[int], outputs: Sequence[int]) -> Job:
        """Return the job that pulls cotangents of `outputs` back to the inputs `wrt`.

        Its inputs are this job's and then one cotangent for each of `outputs`; it has one output
        for each of `wrt`, shared or per job as that input is.
        """

    @abstractmethod
    def pushforward(self, wrt: Sequence[int], outputs: Sequence[int]) -> Job:
        """Return the job that pushes tangents of the inputs `wrt` forward to `outputs`.

        Its inputs are this job's and then one tangent for each of `wrt`.
        """

    @abstractmethod
    def keep(self, outputs: Sequence[int]) -> Job:
        """Return the job that gives only these outputs; its inputs stay as they are."""

    @abstractmethod
    def summed(self, outputs: Sequence[int]) -> Job:
        """Return the job whose given outputs, per job so far, are summed over all jobs.

        Of an output that is a vector, the entries are summed too.
        """

    @abstractmethod
    def used_inputs(self) -> list[int]:
        """Return the inputs that matter to some output, shapes of ragged ones included."""

    @abstractmethod
    def reroute(self, positions: Sequence[int], inputs: tuple[Slot, ...]) -> Job:
        """Return this job with new input slots: its input ``i`` is now ``inputs[positions[i]]``.

        Several old inputs may become one; new ones that nobody uses are allowed.
        An input that nobody uses may be left out with the position -1.
        """

    @abstractmethod
    def fuse(self, other: Job) -> Job | None:
        """Return the job that gives this job's outputs and then the other's, evaluated together.

        Both have the same inputs. None if they have nothing in common to evaluate together.
        """
