"""`solve_ivp`: the solution of an initial value problem as a PyTensor expression."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FrozenFunctionGraph
from pytensor.graph.traversal import ancestors
from pytensor.tensor.random.op import RNGConsumerOp
from pytensor.tensor.type import TensorType

from pymc_mpimap.casts import exactly
from pymc_mpimap.errors import InputError, MapRectWarning
from pymc_mpimap.ode import sundials
from pymc_mpimap.ode.methods import METHODS, SCIPY, in_force
from pymc_mpimap.ode.op import SolveIVP
from pymc_mpimap.ode.system import System
from pymc_mpimap.ode.trace import trace_system
from pymc_mpimap.reals import has_variables, real_numbers, real_tensor
from pymc_mpimap.refusal import NotRealError
from pymc_mpimap.structure import flatten

__all__ = ["Doses", "Steps", "solve_ivp"]


@dataclass(frozen=True, eq=False)
class Doses:
    """Amounts that are added to states at given times, at once or over some time.

    Parameters
    ----------
    times : array_like, (n_doses,)
        When each dose begins, in any order, none before t0. They are data: a solution is not
        differentiable with respect to them.
    amounts : array_like, scalar or (n_doses,)
        How much is added, in the unit of the state. May depend on parameters, as in
        ``bioavailability * amounts``; each amount is then a sensitivity of its own.
    states : int or array_like of int, (n_doses,)
        Which state a dose goes to, counted from 0.
    durations : array_like, scalar or (n_doses,), default 0
        0 for a bolus, where the state jumps; else the time of an infusion at the constant rate
        ``amount / duration``. They are data, too.

    Examples
    --------
    Three doses of 100 mg to state 0, twelve hours apart, the last one infused over two hours:

    >>> import pymc_mpimap as mpimap
    >>> doses = mpimap.Doses([0, 12, 24], 100, durations=[0, 0, 2])
    """

    times: Any
    amounts: Any
    states: Any = 0
    durations: Any = 0.0


@dataclass(frozen=True, eq=False)
class Steps:
    """A parameter that is constant between given times, and jumps there.

    Parameters
    ----------
    times : array_like, (n_times,)
        When the value changes, in increasing order. They are data.
    values : array_like, (n_times + 1, ...)
        ``values[0]`` holds before ``times[0]``, ``values[i]`` from ``times[i - 1]`` on. May
        depend on parameters; each value is then a sensitivity of its own.

    Examples
    --------
    A room that is heated from 6 to 22 h:

    >>> import pymc_mpimap as mpimap
    >>> heating = mpimap.Steps([6, 22], [0.0, 1.5, 0.0])
    """

    times: Any
    values: Any


def solve_ivp(
    rhs: Callable[..., Any],
    t0: Any,
    y0: Any,
    ts: Any,
    params: Any = None,
    *,
    method: str = "auto",
    rtol: float = 1e-6,
    atol: float | Sequence[float] = 1e-6,
    first_step: float | None = None,
    max_steps: int = 10_000,
    doses: Doses | None = None,
    breaks: Any = None,
) -> Any:
    """Solve ``dy/dt = rhs(t, y, params)``, ``y(t0) = y0``, with derivatives.

    The result is a PyTensor variable: use it in a job of `map_rect`, or in any model. Value and
    derivatives come from one solve, in compiled code; without derivatives wanted, none are
    computed.

    Parameters
    ----------
    rhs : callable
        ``rhs(t, y, params)``, or ``rhs(t, y)`` where there are no parameters, returns dy/dt as a
        list or vector. It is called once, with symbols, and may use NumPy's or PyTensor's
        functions and whatever it closes over. Where the values decide, it takes `numpy.where` or
        `pytensor.tensor.switch` instead of ``if``. Another order of the arguments, as in
        ``rhs(y, t, params)``, is refused where their names tell it.
    t0 : scalar
        The initial time.
    y0 : vector or list of scalars, (n_states,)
        The state at t0; its length must be known. Numbers in a list are constants, which have no
        derivatives.
    ts : vector, (n_times,)
        When the solution is wanted: in order, none before t0. It may be of another length for
        each job, with no new compilation.
    params : tensor, or nest of dicts and tuples of tensors, optional
        What `rhs` gets as its last argument: numbers, arrays, `Steps` or PyTensor variables whose
        shapes are known.
    method : str, default "auto"
        ``"dopri5"`` or ``"tsit5"`` (explicit Runge-Kutta of order 5, for problems that are not
        stiff), ``"bdf"`` (implicit, of variable order, for stiff ones), or ``"auto"``, which
        begins with ``"tsit5"`` and goes on with ``"bdf"`` where stability keeps steps short.
        ``"scipy-RK45"``, ``"scipy-LSODA"``, ``"scipy-BDF"``, ``"scipy-Radau"``,
        ``"scipy-DOP853"`` and ``"scipy-RK23"`` are SciPy's, for comparison.
    rtol, atol : float
        Relative and absolute tolerance of a step's error, for the states and for each of their
        sensitivities. `atol` may be one for each state. For a parameter p above one in size the
        absolute tolerance of its sensitivities is ``atol / abs(p)``.
    first_step : float, optional
        The size of the first step, after each dose too; found by the solver if not given.
    max_steps : int, default 10000
        How many steps there may be from one output time to the next.
    doses : Doses, optional
        Boluses and infusions.
    breaks : array_like, optional
        Times at which `rhs` itself is discontinuous, as in ``pt.switch(t < 5, a, b)``: the solver
        stops there and starts anew. They are data.

    Returns
    -------
    TensorVariable, (n_times, n_states)
        The solution at `ts`; where a dose is given at the very time, just before it. NaN where
        the solve fails (too many steps, overflow, NaN, a derivative that is infinite), so that
        the proposal is rejected; how many failed and why is in the pool's report.

    Raises
    ------
    InputError
        If `rhs` cannot be traced (with the line that stands in the way), or an argument makes no
        sense. Times out of order are found when it is evaluated, and raise ValueError then.

    Notes
    -----
    Whatever is no variable may be of any kind that `map_rect` takes for an array, such as a series
    of pandas or long double, and becomes float64; it refuses the same ones, such as masked arrays.

    By CVODE and ARKODE of SUNDIALS [1]_, which the extra ``pymc_mpimap[ode]`` installs. The
    solution is differentiable with respect to `y0`, `params`, `t0`, `ts`, what `rhs` closes over,
    and the amounts and values of doses and steps; once, not twice.

    References
    ----------
    .. [1] Hindmarsh et al. (2005), SUNDIALS: Suite of nonlinear and differential/algebraic
       equation solvers. ACM Transactions on Mathematical Software 31, 363-396.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> k = pt.dscalar("k")
    >>> y = mpimap.solve_ivp(lambda t, y, k: -k * y, 0.0, [1.0], [0.0, 1.0, 2.0], k)
    >>> y.eval({k: 0.5}).round(4).ravel()
    array([1.    , 0.6065, 0.3679])
    >>> float(pt.grad(y[2, 0], k).eval({k: 0.5}).round(4))
    -0.7358
    """
    name = getattr(rhs, "__name__", None) or repr(rhs)
    if not callable(rhs):
        raise InputError(f"solve_ivp: rhs is no function but {type(rhs).__name__}")
    if method not in METHODS and method not in SCIPY:
        raise InputError(
            f"solve_ivp({name}): there is no method {method!r}; there are "
            f"{', '.join(map(repr, (*METHODS, *SCIPY)))}"
        )
    if in_force(method) != method:
        _warn_of_missing_sundials(method)
    t0, ts = _number(t0, "t0", name, 0), _number(ts, "ts", name, 1)
    free = _which_are_free(y0)
    y0 = _initial_states(y0, name)
    n_states = y0.type.shape[0]
    tolerance = _tolerances(rtol, atol, n_states, name)
    _positive_options(name, first_step, max_steps)
    flat, structure = flatten(params, "params")
    leaves = [(label, *_leaf(value, label, name)) for label, value in flat]
    system = trace_system(
        rhs, n_states, [(label, kind) for label, _, _, kind in leaves], structure, name
    )
    values = [value for _, value, _, _ in leaves] + list(system.closure)
    step_times = [when for _, _, when, _ in leaves if when is not None]
    times_of_breaks = _data([] if breaks is None else breaks, "breaks", name)
    spec = System(
        FrozenFunctionGraph.from_io(
            [system.t, *system.states, *(s for leaf in system.leaves for s in leaf)],
            list(system.derivatives),
        ),
        system.names,
        free or (True,) * n_states,
        tuple(_known(kind) for _, _, _, kind in leaves)
        + tuple(_known(v.type) for v in system.closure),
        tuple(when is not None for _, _, when, _ in leaves) + (False,) * len(system.closure),
        doses is not None,
        times_of_breaks.type.shape != (0,),
        method,
        float(rtol),
        tolerance,
        float(first_step or 0.0),
        int(max_steps),
        name,
    )
    inputs = [
        t0,
        y0,
        ts,
        times_of_breaks,
        *values,
        *step_times,
        *([] if doses is None else _doses(doses, name)),
    ]
    return SolveIVP(spec)(*inputs)


def _number(value: Any, label: str, name: str, ndim: int | None = None) -> Any:
    """Return a float64 tensor of this value."""
    where = f"solve_ivp({name}): {label}"
    if not has_variables(value) and not isinstance(value, bool):
        value = _float64(value, where)
    variable = real_tensor(value, where)
    if variable.type.dtype.startswith("complex"):
        raise InputError(f"solve_ivp({name}): {label} is complex; states and parameters are real")
    variable = variable.astype("float64")
    if ndim is not None and variable.type.ndim != ndim:
        wanted = ("a scalar", "a vector")[ndim]
        raise InputError(
            f"solve_ivp({name}): {label} should be {wanted}, but has {variable.type.ndim} "
            "dimensions"
        )
    return variable


def _float64(value: Any, where: str) -> np.ndarray:
    try:
        return exactly(real_numbers(value, where), np.float64, where)
    except NotRealError as error:
        raise error.refusal() from error.__cause__


def _data(value: Any, label: str, name: str) -> Any:
    """Return a vector that must not be random."""
    variable = _number(value, label, name, 1)
    for node in (v.owner for v in ancestors([variable])):
        if node is not None and isinstance(node.op, RNGConsumerOp):
            drawn = ", ".join(str(v.name) for v in node.outputs if v.name)
            raise InputError(
                f"solve_ivp({name}): {label} depends on the random variable {drawn or node.op}. "
                "The solver stops at these times and starts anew, and is not differentiable with "
                "respect to them: they must be data. A delay that is a parameter can be written "
                "as compartments in the right-hand side, or by shifting t0 and ts"
            )
    return variable


def _initial_states(y0: Any, name: str) -> Any:
    if isinstance(y0, (list, tuple)) and y0:
        y0 = pt.stack([_number(value, f"y0[{i}]", name, 0) for i, value in enumerate(y0)])
    y0 = _number(y0, "y0", name, 1)
    if y0.type.shape[0] is None:
        raise InputError(
            f"solve_ivp({name}): the number of states must be known, but y0 is {y0} of unknown "
            "length. Pass a list of scalars, or pytensor.tensor.specify_shape(y0, n_states)"
        )
    if y0.type.shape[0] == 0:
        raise InputError(f"solve_ivp({name}): y0 is empty")
    return y0


def _which_are_free(y0: Any) -> tuple[bool, ...]:
    """Return which of a list of initial states are no numbers; nothing for other than lists.

    Nobody has the vector that is made of a list, and so nobody can ask for its derivatives.
    """
    if not isinstance(y0, (list, tuple)):
        return ()
    return tuple(isinstance(value, Variable) for value in y0)


def _tolerances(rtol: Any, atol: Any, n_states: int, name: str) -> tuple[float, ...]:
    each = _float64(atol, f"solve_ivp({name}): atol")
    rtol = _float64(rtol, f"solve_ivp({name}): rtol")
    if rtol.ndim:
        raise InputError(
            f"solve_ivp({name}): rtol should be a number, but has the shape {rtol.shape}"
        )
    if each.shape not in ((), (n_states,)):
        raise InputError(
            f"solve_ivp({name}): atol should be a number, or one for each of the {n_states} "
            f"states, but has the shape {each.shape}"
        )
    if not (np.all(each > 0) and rtol > 0 and np.all(np.isfinite(each)) and np.isfinite(rtol)):
        raise InputError(
            f"solve_ivp({name}): tolerances should be above 0, not rtol={rtol}, atol={atol}"
        )
    return tuple(np.broadcast_to(each, (n_states,)).tolist())


def _positive_options(name: str, first_step: Any, max_steps: Any) -> None:
    if first_step is not None and _float64(first_step, f"solve_ivp({name}): first_step").ndim:
        raise InputError(f"solve_ivp({name}): first_step should be a number, not {first_step}")
    if first_step is not None and not 0 < first_step < np.inf:
        raise InputError(f"solve_ivp({name}): first_step should be above 0, not {first_step}")
    if not isinstance(max_steps, (int, np.integer)) or max_steps < 1:
        raise InputError(
            f"solve_ivp({name}): max_steps should be 1 or more, and whole, not {max_steps}"
        )


def _leaf(value: Any, label: str, name: str) -> tuple[Any, Any, TensorType]:
    """Return a parameter's value, the times of its steps if it has any, and its type in rhs."""
    if isinstance(value, Steps):
        values = _number(value.values, f"{label}.values", name)
        if values.type.ndim == 0:
            raise InputError(
                f"solve_ivp({name}): {label}.values should have one value more than there are "
                "times, but is a scalar"
            )
        times = _data(value.times, f"{label}.times", name)
        return values, times, TensorType("float64", values.type.shape[1:])
    variable = _number(value, label, name)
    return variable, None, variable.type


def _known(kind: Any) -> tuple[int, ...]:
    """Return a shape that tracing has found to be known."""
    return tuple(int(n) for n in kind.shape)


def _doses(doses: Doses, name: str) -> list[Any]:
    """Return times, amounts, durations and states, each a vector of one entry a dose."""
    times = _data(doses.times, "doses.times", name)
    durations = doses.durations
    if not has_variables(durations):
        durations = _float64(durations, f"solve_ivp({name}): doses.durations")
        if durations.ndim == 0:
            durations = pt.full_like(times, float(durations))
    durations = _data(
        _spread(_number(durations, "doses.durations", name), times), "doses.durations", name
    )
    amounts = _spread(_number(doses.amounts, "doses.amounts", name), times)
    nobody = isinstance(doses.states, (list, tuple)) and not doses.states
    states = real_tensor(
        np.empty(0, np.int64) if nobody else doses.states, f"solve_ivp({name}): doses.states"
    )
    if not states.type.dtype.startswith(("int", "uint")):
        raise InputError(
            f"solve_ivp({name}): doses.states should be whole numbers, not {states.type.dtype}"
        )
    return [times, amounts, durations, _spread(states.astype("int64"), times)]


def _spread(value: Any, times: Any) -> Any:
    return pt.full_like(times, value, dtype=value.type.dtype) if value.type.ndim == 0 else value


@cache
def _warn_of_missing_sundials(method: str) -> None:
    warnings.warn(
        f"solve_ivp: method {method!r} is done by {in_force(method)!r} here, which is slower: "
        f"{sundials.unavailable()}",
        MapRectWarning,
        stacklevel=3,
    )
