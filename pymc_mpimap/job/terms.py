"""Parts of numeric jobs: the call of the function, and the terms made of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pymc_mpimap.structure import NOTHING, Structure

__all__ = ["Call", "Pullback", "Pushforward", "Term", "Value"]


@dataclass(frozen=True)
class Call:
    """The way from a job's inputs to the arguments of the user's function.

    Attributes
    ----------
    theta, job, x_r, x_i : Structure
        The nests that the arguments are; their leaves are the job's first inputs, in this order.
    leaves : tuple of int
        Which input each leaf is.
    arguments : int
        How many positional arguments the function gets (trailing ones that were not given
        are left out).
    job_id : int, optional
        The input with the job's number, if the function asks for it.
    """

    theta: Structure
    job: Structure
    x_r: Structure
    x_i: Structure
    leaves: tuple[int, ...]
    arguments: int
    job_id: int | None = None

    @property
    def structures(self) -> tuple[Structure, ...]:
        """The four nests, in the order of the function's arguments."""
        return (self.theta, self.job, self.x_r, self.x_i)

    @property
    def parameters(self) -> tuple[int, ...]:
        """The inputs that the function may give derivatives for: theta's leaves, then job's."""
        return self.leaves[: self.theta.n_leaves + self.job.n_leaves]

    @property
    def of_data(self) -> Call:
        """The call without parameters and number: that of what depends on the data alone."""
        leaves = self.leaves[len(self.parameters) :]
        return replace(self, theta=NOTHING, job=NOTHING, leaves=leaves, job_id=None)

    def rebuild(self, leaves: Sequence[Any]) -> list[Any]:
        """Return theta, job, x_r and x_i with these leaves, as many as the function takes."""
        rest = iter(leaves)
        return [structure.take_leaves(rest) for structure in self.structures][: self.arguments]


@dataclass(frozen=True)
class Value:
    """The value that the function returns."""


@dataclass(frozen=True)
class Pullback:
    """The derivative with respect to the parameter `wrt`, contracted with a cotangent."""

    wrt: int
    cotangent: int


@dataclass(frozen=True)
class Pushforward:
    """The derivative with respect to the parameter `wrt`, contracted with a tangent."""

    wrt: int
    tangent: int


Term = Value | Pullback | Pushforward
