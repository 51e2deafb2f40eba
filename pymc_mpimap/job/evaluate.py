"""Evaluate numeric jobs: one call of the user's function for the value and all derivatives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pymc_mpimap.errors import DerivativeError
from pymc_mpimap.job.base import Kernel
from pymc_mpimap.job.derivatives import FiniteDifferences
from pymc_mpimap.job.loop import one_by_one
from pymc_mpimap.job.terms import Call, Pullback, Term, Value
from pymc_mpimap.reals import real_numbers
from pymc_mpimap.refusal import NotRealError

if TYPE_CHECKING:
    from pymc_mpimap.job.numeric import NumericJob

__all__ = ["compile_numeric"]

COMPLEX_STEP = 1e-30


class Evaluation:
    """The value of one job and its derivatives with respect to the parameters."""

    def __init__(self, value: np.ndarray, derivatives: dict[int, np.ndarray]):
        self.value = value
        self.derivatives = derivatives


def compile_numeric(job: NumericJob) -> Kernel:
    """Return the kernel of a numeric job; see `pymc_mpimap.job.base.Kernel`."""
    terms = [term for group in job.terms for term in group]
    wanted = sorted({term.wrt for term in terms if not isinstance(term, Value)})
    evaluate = _evaluator(job, wanted)

    def one(j: int, values: Sequence[Any]) -> list[np.ndarray]:
        evaluation = evaluate(j, values)
        results = []
        for group, slot in zip(job.terms, job.outputs, strict=True):
            total: Any = None
            for term in group:
                part = _contracted(term, evaluation, values)
                total = part if total is None else total + part
            if slot.type.ndim == 0 and np.ndim(total):
                total = np.sum(total)  # A vector, of which the job gives the sum.
            # A copy: the function may return the same array for each job.
            results.append(np.array(total, dtype=slot.type.dtype))
        return results

    return one_by_one(job, one)


def _contracted(term: Term, evaluation: Evaluation, values: Sequence[Any]) -> Any:
    """Return the value, or a derivative contracted with a cotangent or tangent."""
    if isinstance(term, Value):
        return evaluation.value
    derivative = evaluation.derivatives[term.wrt]
    if isinstance(term, Pullback):
        cotangent = values[term.cotangent]
        if np.ndim(cotangent) == 0:
            return cotangent * (derivative.sum(axis=0) if evaluation.value.ndim else derivative)
        return np.tensordot(cotangent, derivative, axes=1)
    tangent = values[term.tangent]
    return np.tensordot(derivative, tangent, axes=np.ndim(tangent))


def _evaluator(
    job: NumericJob, wanted: Sequence[int]
) -> Callable[[int, Sequence[Any]], Evaluation]:
    """Return the function from a job's number and inputs to its value and wanted derivatives."""
    call, function = job.call, job.function
    derivatives = function.derivatives

    def arguments(values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        leaves = [_read_only(values[i]) for i in call.leaves]
        keywords = {} if call.job_id is None else {"job_id": int(values[call.job_id])}
        return call.rebuild(leaves), keywords

    def value_at(values: Sequence[Any]) -> Any:
        positional, keywords = arguments(values)
        return function.function(*positional, **keywords)

    def evaluate(j: int, values: Sequence[Any]) -> Evaluation:
        known = None if job.memory is None else job.memory.recall(j, values)
        value, gradients = known or (None, None)
        if known is None:
            if derivatives == "returned":
                value, gradients = _split(job, value_at(values))
            else:
                value = value_at(values)
        if wanted and gradients is None:
            # What is kept may be asked for the others later.
            needed = job.given if job.memory is not None else wanted
            if callable(derivatives):
                positional, keywords = arguments(values)
                gradients = _by_function(job, derivatives(*positional, **keywords))
            else:
                gradients = _by_steps(job, needed, values, value, value_at)
        if job.memory is not None:
            job.memory.keep(j, values, copy.deepcopy((value, gradients)))
        array = _checked_value(job, value)
        return Evaluation(array, _chosen(job, values, array, gradients, wanted))

    return evaluate


def _read_only(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def _split(job: NumericJob, returned: Any) -> tuple[Any, list[Any]]:
    """Take what the function returned apart into the value and one derivative a parameter."""
    call = job.call
    expected = "(value, d_theta, d_job)"
    if not isinstance(returned, tuple) or not 1 <= len(returned) <= 3:
        raise TypeError(
            f"{job.name} should return {expected}, but returned {returned!r:.80}. If it returns "
            "the value alone, say how its derivatives are had: numeric_job(derivatives=...)"
        )
    value, *rest = returned
    return value, _leaves(call, rest, f"of {expected}")


def _leaves(call: Call, parts: Sequence[Any], where: str) -> list[Any]:
    d_theta, d_job = (*parts, None, None)[:2]
    return [
        *call.theta.take(d_theta, f"d_theta {where}"),
        *call.job.take(d_job, f"d_job {where}"),
    ]


def _checked_value(job: NumericJob, returned: Any) -> np.ndarray:
    value = _real_value(job, returned)
    ndim = 0 if job.function.length is None else 1
    if value.ndim != ndim:
        hint = (
            "a scalar, as numeric_job was given no length="
            if ndim == 0
            else f"a vector, as numeric_job(length={job.function.length!r}) says"
        )
        raise ValueError(f"{job.name} returned a value of shape {value.shape}; it should be {hint}")
    if isinstance(job.function.length, (int, np.integer)) and len(value) != job.function.length:
        raise ValueError(
            f"{job.name} returned {len(value)} values, but numeric_job(length="
            f"{job.function.length}) says otherwise"
        )
    return value


def _real_value(job: NumericJob, returned: Any) -> np.ndarray:
    try:
        return real_numbers(returned, "the value", quiet=True)
    except NotRealError as error:
        wanted = "a real number" if job.function.length is None else "real numbers"
        raise TypeError(
            f"{job.name} returned {error.found} as its value; it should be {wanted}"
        ) from error


def _chosen(
    job: NumericJob,
    values: Sequence[Any],
    value: np.ndarray,
    gradients: list[Any] | None,
    wanted: Sequence[int],
) -> dict[int, np.ndarray]:
    """Return the wanted derivatives as arrays, each checked against its parameter's shape."""
    chosen: dict[int, np.ndarray] = {}
    if not wanted:
        return chosen
    assert gradients is not None
    by_input = dict(zip(job.call.parameters, gradients, strict=True))
    for i in wanted:
        name = job.inputs[i].name
        if by_input[i] is None:
            raise DerivativeError(
                f"{job.name} returned no derivative with respect to {name}. If it never does, say "
                f"so with numeric_job(without=[{name!r}])"
            )
        try:
            array = real_numbers(by_input[i], name, quiet=True)
        except NotRealError as error:
            raise TypeError(
                f"{job.name} returned {error.found} as the derivative with respect to {name}; it "
                f"should be real numbers"
            ) from error
        shape = (*value.shape, *np.shape(values[i]))
        if array.shape != shape:
            raise ValueError(
                f"{job.name} returned a derivative with respect to {name} of shape {array.shape}; "
                f"for a value of shape {value.shape} and {name} of shape {np.shape(values[i])} it "
                f"should be {shape}"
            )
        chosen[i] = np.asarray(array, dtype=np.result_type(array, np.float32))
    return chosen


def _by_function(job: NumericJob, parts: Any) -> list[Any]:
    """Take what a function of derivatives returned apart, one derivative a parameter."""
    if not isinstance(parts, tuple) or not 1 <= len(parts) <= 2:
        raise TypeError(
            f"the derivatives= function of {job.name} should return (d_theta, d_job), but "
            f"returned {parts!r:.80}"
        )
    return _leaves(job.call, parts, "of (d_theta, d_job)")


def _by_steps(
    job: NumericJob,
    needed: Collection[int],
    values: Sequence[Any],
    value: Any,
    value_at: Callable[[Sequence[Any]], Any],
) -> list[Any]:
    """Return the derivatives by the needed parameters, for a function of the value alone."""
    how = job.function.derivatives

    def derivative(i: int) -> np.ndarray | None:
        if i not in needed:
            return None
        if isinstance(how, FiniteDifferences):
            return _differences(
                values, i, value, lambda point: _real_value(job, value_at(point)), how.step
            )
        return _complex_step(job, values, i, value, value_at)

    return [derivative(i) for i in job.call.parameters]


def _with(values: Sequence[Any], i: int, changed: Any) -> list[Any]:
    return [*values[:i], changed, *values[i + 1 :]]


def _differences(
    values: Sequence[Any],
    i: int,
    value: Any,
    value_at: Callable[[Sequence[Any]], np.ndarray],
    step: float,
) -> np.ndarray:
    parameter = np.asarray(values[i], dtype=float)
    derivative = np.empty((*np.shape(value), parameter.size))
    for k in range(parameter.size):
        h = step * max(1.0, abs(parameter.flat[k]))
        high, low = parameter.copy(), parameter.copy()
        high.flat[k] += h
        low.flat[k] -= h
        rise = value_at(_with(values, i, high[()])) - value_at(_with(values, i, low[()]))
        # Divided by the step that was really taken, which rounding makes differ from 2h.
        derivative[..., k] = rise / (high.flat[k] - low.flat[k])
    return derivative.reshape((*np.shape(value), *parameter.shape))


def _complex_step(
    job: NumericJob,
    values: Sequence[Any],
    i: int,
    value: Any,
    value_at: Callable[[Sequence[Any]], Any],
) -> np.ndarray:
    parameter = np.asarray(values[i])
    derivative = np.empty((*np.shape(value), parameter.size))
    for k in range(parameter.size):
        shifted = parameter.astype(complex)
        shifted.flat[k] += 1j * COMPLEX_STEP
        try:
            returned = value_at(_with(values, i, shifted[()]))
            result = real_numbers(returned, "the value", quiet=True, real=False)
        except NotRealError as error:
            raise TypeError(f"{job.name} returned {error.found} as its value") from error
        if not np.iscomplexobj(result):
            raise TypeError(
                f"{job.name} was given a complex {job.inputs[i].name} for derivatives="
                f"'complex-step', but returned {result.dtype}: somewhere the imaginary part is "
                "lost. Use FiniteDifferences(step=...) or return the derivatives"
            )
        derivative[..., k] = result.imag / COMPLEX_STEP
    return derivative.reshape((*np.shape(value), *parameter.shape))
