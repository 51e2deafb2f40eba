"""`numeric_job`: a NumPy function of one job, and how its derivatives are had."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import cloudpickle
import numpy as np

from pymc_mpimap.data import object_digest
from pymc_mpimap.errors import InputError

__all__ = ["FiniteDifferences", "NumericFunction", "numeric_job"]


@dataclass(frozen=True)
class FiniteDifferences:
    """Central differences, ``(f(x + h) - f(x - h)) / 2h`` with ``h = step * max(1, |x|)``.

    Parameters
    ----------
    step : float
        The relative step. The error is about ``step**2`` times the third derivative plus
        ``eps / step`` times the value, so that 6e-6 suits a function exact to 1e-16 and a
        solver with the relative error ``tol`` wants about ``tol ** (1 / 3)``.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> @mpimap.numeric_job(derivatives=mpimap.FiniteDifferences(step=6e-6))
    ... def f(theta, job):
    ...     return np.sin(theta) * job
    >>> theta = pt.dscalar("theta")
    >>> total = mpimap.map_rect(f, theta, np.array([1.0, 2.0])).sum()
    >>> round(float(pt.grad(total, theta).eval({theta: 0.0})), 9)
    3.0
    """

    step: float

    def __post_init__(self) -> None:
        if not 0 < self.step < 1:
            raise InputError(
                f"FiniteDifferences(step={self.step}): the step is relative, between 0 and 1"
            )


@dataclass(frozen=True, eq=False)
class NumericFunction:
    """A user's NumPy function, marked by `numeric_job`.

    Attributes
    ----------
    function : callable
        ``f(theta, job, x_r, x_i)``.
    derivatives : {"returned", "complex-step"}, FiniteDifferences, callable or None
        How the derivatives are had.
    without : tuple of str
        The inputs that no derivative is given for.
    length : int, callable or None
        The length of the value, None for a scalar.
    """

    function: Callable[..., Any]
    derivatives: Any = "returned"
    without: tuple[str, ...] = ()
    length: int | Callable[..., int] | None = None
    name: str = ""
    digest: bytes = field(default=b"")

    def __post_init__(self) -> None:
        content = (self.function, self.derivatives, self.without, self.length)
        object.__setattr__(self, "digest", self.digest or object_digest(content))
        name = self.name or getattr(self.function, "__name__", repr(self.function))
        object.__setattr__(self, "name", name)

    def __reduce__(self) -> tuple[Any, ...]:
        # By value: under its name, a module has the marked function, not the function itself.
        content = (self.function, self.derivatives, self.without, self.length, self.name)
        return _unpickled, (cloudpickle.dumps(content), self.digest)

    def as_it_is_now(self) -> NumericFunction:
        """Return the function with the values that its globals and closure have by now."""
        return replace(self, digest=b"")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumericFunction) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function itself, as without the mark."""
        return self.function(*arguments, **keywords)

    def refusal(self, input_name: str) -> str | None:
        """Say why there is no derivative with respect to an input of this name, or return None."""
        if self.derivatives is None:
            return (
                f"{self.name} is a numeric job that gives no derivatives (derivatives=None), but "
                f"the gradient with respect to {input_name} was asked for. Let it return (value, "
                "d_theta, d_job), or pass derivatives= to numeric_job."
            )
        if any(input_name == name or input_name.startswith(f"{name}[") for name in self.without):
            return (
                f"{self.name} gives no derivative with respect to {input_name}: numeric_job was "
                f"told without={list(self.without)}."
            )
        return None


def _unpickled(content: bytes, digest: bytes) -> NumericFunction:
    function, derivatives, without, length, name = pickle.loads(content)
    return NumericFunction(function, derivatives, without, length, name, digest)


@overload
def numeric_job(f: Callable[..., Any], /) -> NumericFunction: ...
@overload
def numeric_job(
    *,
    derivatives: Any = ...,
    without: Sequence[str] = ...,
    length: int | Callable[..., int] | None = ...,
) -> Callable[[Callable[..., Any]], NumericFunction]: ...
def numeric_job(
    f: Callable[..., Any] | None = None,
    /,
    *,
    derivatives: Any = "returned",
    without: Sequence[str] = (),
    length: int | Callable[..., int] | None = None,
) -> Any:
    """Mark a function of one job that computes with NumPy (an ODE solver, a simulator).

    Parameters
    ----------
    f : callable
        ``f(theta, job, x_r, x_i)`` with NumPy arrays in the same dicts and tuples that `map_rect`
        is given; arguments that `map_rect` is not given are left out at the end. It may take a
        keyword ``job_id``. By default it returns ``(value, d_theta, d_job)``: the derivatives
        have the structure of theta and of job; for a vector value of length m each has a leading
        axis of length m. What has no parameters (``theta=None``, a bare number of jobs) is None
        or left out at the end.
    derivatives : {"returned", "complex-step"}, FiniteDifferences, callable or None
        ``"returned"``: with the value, as above. A callable with the same arguments: it returns
        ``(d_theta, d_job)``, and `f` the value alone. ``"complex-step"``: `f` returns the value
        alone and is called once for each parameter with a step of 1e-30 along the imaginary
        axis, which is exact where `f` is an analytic function of its parameters (no ``abs``, no
        comparison of parameters, no solver that casts to real numbers). `FiniteDifferences`:
        central differences with a stated step. None: there are none.
    without : sequence of str
        The inputs that `f` gives no derivative for, such as ``"job"`` or ``"theta['dose']"``;
        asking for them is refused when the gradient is built.
    length : int or callable, optional
        For a vector value: its length, or a function ``length(x_r, x_i)`` of the job's data.

    Returns
    -------
    NumericFunction
        To be passed to `map_rect`.

    Raises
    ------
    InputError
        If an option is not one of the above.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> @mpimap.numeric_job
    ... def decay(theta, job, x_r):
    ...     mean = job * np.exp(-theta * x_r["t"])
    ...     residual = x_r["y"] - mean
    ...     d_mean = residual  # of -0.5 * residual**2
    ...     value = -0.5 * (residual**2).sum()
    ...     return value, (d_mean * -x_r["t"] * mean).sum(), (d_mean * mean / job).sum()
    >>> rate, start = pt.dscalar("rate"), pt.dvector("start")
    >>> data = {"t": [np.arange(3.0), np.arange(2.0)], "y": [np.ones(3), np.ones(2)]}
    >>> log_likelihood = mpimap.map_rect(decay, rate, start, data).sum()
    >>> gradient = pt.grad(log_likelihood, rate).eval({rate: 0.5, start: np.ones(2)})
    >>> round(float(gradient), 6)
    -0.942391
    """
    known = (
        derivatives is None or callable(derivatives) or isinstance(derivatives, FiniteDifferences)
    )
    if not known and derivatives not in ("returned", "complex-step"):
        raise InputError(
            f"numeric_job(derivatives={derivatives!r}): give 'returned', 'complex-step', "
            "FiniteDifferences(step=...), a function that returns (d_theta, d_job), or None"
        )
    if length is not None and not callable(length) and not isinstance(length, (int, np.integer)):
        raise InputError(
            f"numeric_job(length={length!r}): give a whole number, a function, or None for a scalar"
        )
    if isinstance(length, (int, np.integer)) and length < 0:
        raise InputError(f"numeric_job(length={length}): a length cannot be negative")
    for name in without:
        if not name.startswith(("theta", "job")):
            raise InputError(
                f"numeric_job(without={list(without)}): {name!r} is no parameter; parameters are "
                "'theta', 'job' and their entries, such as \"theta['dose']\""
            )

    def mark(function: Callable[..., Any]) -> NumericFunction:
        if not callable(function):
            raise InputError(f"numeric_job marks a function, not {function!r:.80}")
        return NumericFunction(function, derivatives, tuple(without), length)

    return mark if f is None else mark(f)
