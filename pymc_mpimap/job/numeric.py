"""Numeric jobs: a NumPy function of one job, with its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, override

import numpy as np

from pymc_mpimap.job.base import Job, Kernel
from pymc_mpimap.job.derivatives import FiniteDifferences, NumericFunction, numeric_job
from pymc_mpimap.job.evaluate import compile_numeric
from pymc_mpimap.job.memory import Memory
from pymc_mpimap.job.terms import Call, Pullback, Pushforward, Term, Value
from pymc_mpimap.reals import real_numbers
from pymc_mpimap.refusal import NotRealError
from pymc_mpimap.signature import Slot, cotangent_slot, is_differentiable, total_slot

__all__ = ["Call", "FiniteDifferences", "NumericFunction", "NumericJob", "numeric_job"]


@dataclass(frozen=True)
class NumericJob(Job):
    """One job as a NumPy function; each output is a sum of terms of its value and derivatives.

    Attributes
    ----------
    function : NumericFunction
        The user's function and how its derivatives are had.
    call : Call
        How it is called.
    inputs, outputs : tuple of Slot
    terms : tuple of tuple of Term
        For each output, what is added up.
    label : str
        How messages call it.
    memory : Memory, optional
        Says that evaluations are kept on the rank for a later call with the same inputs.
    """

    function: NumericFunction
    call: Call
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    terms: tuple[tuple[Term, ...], ...]
    label: str
    memory: Memory | None = None

    @property
    @override
    def name(self) -> str:
        return self.label

    @property
    @override
    def cheap(self) -> bool:
        return False

    @override
    def compile(self) -> Kernel:
        return compile_numeric(self)

    @cached_property
    def given(self) -> frozenset[int]:
        """The inputs that the function gives derivatives for."""
        return frozenset(
            i
            for i in self.call.parameters
            if is_differentiable(self.inputs[i])
            and self.function.refusal(self.inputs[i].name) is None
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "given"}

    @override
    def connection(self) -> list[list[bool]]:
        # Data are inputs of the function too: where they hold real numbers, a derivative exists
        # in principle, and asking for it must be refused rather than answered with zero.
        return [
            [is_differentiable(slot) and self._depends(k, i) for k in range(len(self.outputs))]
            for i, slot in enumerate(self.inputs)
        ]

    def _depends(self, output: int, i: int) -> bool:
        linear = {
            term.cotangent if isinstance(term, Pullback) else term.tangent
            for term in self.terms[output]
            if not isinstance(term, Value)
        }
        return i in linear or i in self.call.leaves

    @override
    def refusal(self, output: int, wrt: int) -> str | None:
        slot = self.inputs[wrt]
        if wrt not in self.call.leaves:
            return None  # A cotangent or tangent: the job is linear in it.
        if any(not isinstance(term, Value) for term in self.terms[output]):
            return (
                f"{self.label} is a numeric job, which gives first derivatives; a second "
                f"derivative with respect to {slot.name} was asked for. Write the job with "
                "PyTensor (a plain function) for Hessians."
            )
        if wrt not in self.call.parameters:
            return (
                f"{self.label} gives no derivative with respect to its data {slot.name}; pass it "
                "within theta or jobs if it is a parameter."
            )
        return self.function.refusal(slot.name)

    @override
    def pullback(self, wrt: Sequence[int], outputs: Sequence[int]) -> NumericJob:
        first = len(self.inputs)
        terms: list[tuple[Term, ...]] = []
        for i in wrt:
            contributions: list[Term] = []
            for position, k in enumerate(outputs):
                cotangent = first + position
                for term in self.terms[k]:
                    if isinstance(term, Value) and i in self.given:
                        contributions.append(Pullback(i, cotangent))
                    elif isinstance(term, Pullback) and term.cotangent == i:
                        contributions.append(Pushforward(term.wrt, cotangent))
                    elif isinstance(term, Pushforward) and term.tangent == i:
                        contributions.append(Pullback(term.wrt, cotangent))
            terms.append(tuple(contributions))
        return replace(
            self,
            inputs=(*self.inputs, *(cotangent_slot(self.outputs[k], None) for k in outputs)),
            outputs=tuple(cotangent_slot(self.inputs[i], i) for i in wrt),
            terms=tuple(terms),
        )

    @override
    def pushforward(self, wrt: Sequence[int], outputs: Sequence[int]) -> NumericJob:
        first = len(self.inputs)
        terms: list[tuple[Term, ...]] = []
        for k in outputs:
            contributions: list[Term] = []
            for position, i in enumerate(wrt):
                tangent = first + position
                for term in self.terms[k]:
                    if isinstance(term, Value) and i in self.given:
                        contributions.append(Pushforward(i, tangent))
                    elif isinstance(term, Pullback) and term.cotangent == i:
                        contributions.append(Pullback(term.wrt, tangent))
                    elif isinstance(term, Pushforward) and term.tangent == i:
                        contributions.append(Pushforward(term.wrt, tangent))
            terms.append(tuple(contributions))
        return replace(
            self,
            inputs=(*self.inputs, *(cotangent_slot(self.inputs[i], None) for i in wrt)),
            outputs=tuple(cotangent_slot(self.outputs[k], self.outputs[k].like) for k in outputs),
            terms=tuple(terms),
        )

    @override
    def keep(self, outputs: Sequence[int]) -> NumericJob:
        return replace(
            self,
            outputs=tuple(self.outputs[k] for k in outputs),
            terms=tuple(self.terms[k] for k in outputs),
        )

    @override
    def summed(self, outputs: Sequence[int]) -> NumericJob:
        slots = [total_slot(slot) if k in outputs else slot for k, slot in enumerate(self.outputs)]
        return replace(self, outputs=tuple(slots))

    @override
    def used_inputs(self) -> list[int]:
        used = set(self.call.leaves)
        if self.call.job_id is not None:
            used.add(self.call.job_id)
        for terms in self.terms:
            for term in terms:
                if isinstance(term, Pullback):
                    used.add(term.cotangent)
                elif isinstance(term, Pushforward):
                    used.add(term.tangent)
        used |= {slot.like for slot in self.outputs if slot.like is not None}
        used |= {slot.shapes for slot in self.outputs if slot.shapes is not None}
        used |= {shapes for i in used if (shapes := self.inputs[i].shapes) is not None}
        return sorted(used)

    @override
    def reroute(self, positions: Sequence[int], inputs: tuple[Slot, ...]) -> NumericJob:
        def moved(term: Term) -> Term:
            if isinstance(term, Pullback):
                return Pullback(positions[term.wrt], positions[term.cotangent])
            if isinstance(term, Pushforward):
                return Pushforward(positions[term.wrt], positions[term.tangent])
            return term

        renumbered = dict(enumerate(positions))
        call = replace(
            self.call,
            leaves=tuple(positions[i] for i in self.call.leaves),
            job_id=None if self.call.job_id is None else positions[self.call.job_id],
        )
        return replace(
            self,
            call=call,
            inputs=inputs,
            outputs=tuple(slot.moved(renumbered) for slot in self.outputs),
            terms=tuple(tuple(moved(term) for term in terms) for terms in self.terms),
        )

    @override
    def fuse(self, other: Job) -> NumericJob | None:
        if not isinstance(other, NumericJob):
            return None
        if (self.function, self.call) != (other.function, other.call):
            return None
        return replace(
            self,
            outputs=(*self.outputs, *other.outputs),
            terms=(*self.terms, *other.terms),
        )


def value_job(
    function: NumericFunction, call: Call, inputs: Sequence[Slot], result: Slot, label: str
) -> NumericJob:
    """Return the job that gives the function's value."""
    return NumericJob(function, call, tuple(inputs), (result,), ((Value(),),), label)


def length_job(
    length: Callable[..., int], call: Call, inputs: Sequence[Slot], result: Slot, label: str
) -> NumericJob:
    """Return the job that gives the length of each job's output, from the job's data alone."""

    def lengths(_theta: Any = None, _job: Any = None, *data: Any) -> np.ndarray:
        returned = length(*data)
        try:
            size = real_numbers(returned, "the length")
        except NotRealError:
            size = np.empty(0)
        if size.ndim or size != np.floor(size) or size < 0:
            raise ValueError(
                f"the length= of {label} returned {returned!r:.60}; it should be a whole number"
            )
        return size.astype(np.int64)

    function = NumericFunction(lengths, derivatives=None)
    return value_job(function, call, inputs, result, f"the length= of {label}")
