"""`map_rect`: the jobs of a model, evaluated in parallel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.replace import clone_replace, vectorize_graph
from pytensor.graph.rewriting.utils import rewrite_graph
from pytensor.graph.traversal import ancestors, graph_inputs
from pytensor.tensor.shape import Shape_i
from pytensor.tensor.type import TensorType

from pymc_mpimap.arguments import (
    Argument,
    Leaf,
    number_of_jobs,
    per_job_argument,
    shared_argument,
)
from pymc_mpimap.data import JobData, SharedData, StackedData
from pymc_mpimap.errors import InputError
from pymc_mpimap.job.base import Job
from pymc_mpimap.job.derivatives import NumericFunction
from pymc_mpimap.job.graph import GraphJob
from pymc_mpimap.job.numeric import Call, length_job, value_job
from pymc_mpimap.map import Map, OnError, default_grain
from pymc_mpimap.op import apply_map
from pymc_mpimap.signature import Slot
from pymc_mpimap.trace import Trace, trace

__all__ = ["map_rect"]


def map_rect(
    f: Callable[..., Any],
    theta: Any,
    jobs: Any,
    x_r: Any = None,
    x_i: Any = None,
    *,
    name: str | None = None,
    on_error: OnError = "raise",
    grain_size: int | None = None,
) -> Any:
    """Evaluate a function for each of many independent jobs, on the ranks of the pool in force.

    Parameters
    ----------
    f : callable
        ``f(theta, job, x_r, x_i)`` returns a scalar or a vector, of any length, for one job.
        Trailing arguments that `map_rect` is not given are left out; one in between is None, as
        is ``job`` where the jobs have no parameters of their own. It may take a keyword
        ``job_id`` (an integer) and use anything of the enclosing scope: arrays, model variables,
        ``pm.Data``. A plain function is traced: called once with PyTensor variables. One marked
        by `numeric_job` is called with NumPy arrays, on the ranks.
    theta : tensor, or dict or tuple of tensors
        Parameters that all jobs share, of any shape.
    jobs : tensor, list, dict or tuple of these, or int
        Each job's own parameters: a tensor with one row a job, shape ``(n_jobs, ...)``; a list
        with one tensor a job, which may differ in size; or the number of jobs where they have
        none.
    x_r, x_i : array, list, dict or tuple of these, or `local`, optional
        Each job's own data (Stan's names for real and integer data; here any of the two takes
        both): an array, tensor or ``pm.Data`` with one row a job; a list with one array a job,
        which may differ in size; for numeric jobs a list of any picklable objects; or
        ``local(load)`` for data that each rank loads for its own jobs. See the notes for what
        may stand for an array.
    name : str, optional
        How messages call the job; the function's own name by default.
    on_error : {"raise", "reject"}
        When a job raises: raise `JobError`, or let the job's value be -inf and its derivatives
        zero, so that the sampler rejects the proposal; the pool's report counts these.
        Without a pool, the first of each function is a MapRectWarning.
    grain_size : int, optional
        How many consecutive jobs make a block, the unit of work and of summation. By default one
        for numeric jobs; traced ones are grouped in at most 64 blocks, or 16 where more would be
        very small. Results depend on it in the last bits, never on the number of ranks.

    Returns
    -------
    TensorVariable, shape (total_length,)
        The jobs' outputs, concatenated in job order; with scalar jobs, shape ``(n_jobs,)``.

    Raises
    ------
    InputError
        If an argument cannot be taken; the message names it, the job and the sizes.
    JobError
        On evaluation, if a job raises; see `on_error`.

    See Also
    --------
    MPIPool : puts MPI ranks to work.
    numeric_job : marks a function that computes with NumPy.
    local : data loaded where they are needed.

    Notes
    -----
    The semantics are those of Stan's ``map_rect(f, phi, theta, x_r, x_i)`` [1]_, with `theta`
    for ``phi`` and `jobs` for ``theta``, less the packing into rectangles.

    An array may also be a series or frame of pandas, polars or Arrow, a labelled array of xarray,
    nested lists of numbers, or what else converts to NumPy: the job gets its numbers alone, as
    NumPy's own arrays, without labels. NaN stays NaN. Half precision, long double and the other
    order of bytes become native float64; `MapRectWarning` says where digits are lost. What means
    more than its numbers is refused: masked values, missing ones (None, NA, null, NaT), units,
    dates, complex numbers. A list for a numeric job with entries that are no arrays of numbers,
    masked arrays for example, is a list of objects, and each job gets its own just as it is.

    References
    ----------
    .. [1] Stan Functions Reference, "Map".

    Examples
    --------
    Three groups of different sizes, one shared scale, one location a group:

    >>> import numpy as np
    >>> import pymc as pm
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> y = [np.array([0.1, 0.3]), np.array([1.2]), np.array([-0.5, 0.0, 0.4])]
    >>> def group(theta, mu, y):
    ...     return pm.logp(pm.Normal.dist(mu, theta["sigma"]), y).sum()
    >>> with pm.Model() as model:
    ...     sigma = pm.HalfNormal("sigma")
    ...     mu = pm.Normal("mu", shape=3)
    ...     lik = pm.Potential("lik", mpimap.map_rect(group, {"sigma": sigma}, mu, y))
    >>> lik.type.shape
    (3,)

    A closure and the job's number:

    >>> weights = np.array([1.0, 10.0])
    >>> x = pt.dscalar("x")
    >>> def weighted(theta, job, *, job_id):
    ...     return theta * pt.constant(weights)[job_id]
    >>> mpimap.map_rect(weighted, x, 2).eval({x: 3.0})
    array([ 3., 30.])

    Jobs may return vectors of different lengths, which are concatenated:

    >>> def powers(theta, job, x_r):
    ...     return theta**x_r
    >>> mpimap.map_rect(powers, x, 2, [np.array([1.0]), np.array([2.0, 3.0])]).eval({x: 2.0})
    array([2., 4., 8.])
    """
    numeric = isinstance(f, NumericFunction)
    label = name or getattr(f, "name" if numeric else "__name__", None) or repr(f)
    _check_options(label, on_error, grain_size)
    try:
        arguments = [
            shared_argument("theta", theta),
            *(
                per_job_argument(kind, value, traced=not numeric)
                for kind, value in (("jobs", jobs), ("x_r", x_r), ("x_i", x_i))
            ),
        ]
        n_jobs = number_of_jobs(arguments[1:])
    except InputError as error:
        raise InputError(f"map_rect({label}): {error}") from error.__cause__
    given = 2 if x_i is None and x_r is None else 3 if x_i is None else 4
    wants_job_id = _check_signature(f, label, given)
    builder = _Builder(label, n_jobs, arguments, given, wants_job_id)
    job, sources, result = (
        builder.numeric(f.as_it_is_now()) if isinstance(f, NumericFunction) else builder.traced(f)
    )
    grain = grain_size or default_grain(job, n_jobs)
    data = tuple(source if isinstance(source, JobData) else None for source in sources)
    output: Any = apply_map(
        Map(job, n_jobs, data, grain, on_error, uuid4().bytes),
        [source for source in sources if isinstance(source, Variable)],
    )[0]
    return output.reshape((n_jobs * result,)) if isinstance(result, int) else output


def _check_options(label: str, on_error: str, grain_size: Any) -> None:
    if on_error not in ("raise", "reject"):
        raise InputError(f"map_rect({label}): on_error={on_error!r}; give 'raise' or 'reject'")
    if grain_size is not None and (not isinstance(grain_size, (int, np.integer)) or grain_size < 1):
        raise InputError(f"map_rect({label}): grain_size={grain_size!r}; give a positive number")


def _check_signature(f: Any, label: str, given: int) -> bool:
    """Check that f takes the arguments it will be given; say whether it asks for job_id."""
    function = f.function if isinstance(f, NumericFunction) else f
    if not callable(function):
        raise InputError(f"map_rect({label}): f is no function but {type(f).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False
    parameter = signature.parameters.get("job_id")
    wants = parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
    words = ["theta", "job", "x_r", "x_i"][:given]
    try:
        signature.bind(*words, **({"job_id": 0} if wants else {}))
    except TypeError as error:
        call = f"{label}({', '.join(words)}{', job_id=...' if wants else ''})"
        raise InputError(
            f"map_rect({label}): f takes {signature}, but will be called as {call}: {error}"
        ) from None
    return wants


class _Builder:
    """Builds a job of either kind from the same arguments."""

    def __init__(
        self, label: str, n_jobs: int, arguments: Sequence[Argument], given: int, job_id: bool
    ):
        self.label, self.n_jobs, self.given = label, n_jobs, given
        self.arguments = arguments
        self.slots: list[Slot] = []
        self.sources: list[Any] = []
        self.leaves = [self._add(leaf) for argument in arguments for leaf in argument.leaves]
        self.job_id: int | None = None
        if job_id:
            numbers = StackedData(np.arange(n_jobs, dtype=np.int64))
            self.job_id = self._slot(Slot(TensorType("int64", ()), True, name="job_id"), numbers)

    def _slot(self, slot: Slot, source: Any) -> int:
        self.slots.append(slot)
        self.sources.append(source)
        return len(self.slots) - 1

    def _add(self, leaf: Leaf) -> int:
        name = leaf.name.replace("jobs", "job", 1) if leaf.name.startswith("jobs") else leaf.name
        shapes = None
        if leaf.shapes is not None:
            kind = TensorType("int64", (leaf.type.ndim,))
            shapes = self._slot(Slot(kind, True, name=f"the shapes of {name}"), leaf.shapes)
        return self._slot(Slot(leaf.type, leaf.per_job, shapes, name=name), leaf.source)

    def _ragged_output(self, lengths: Any, dtype: str) -> Slot:
        shapes = pt.as_tensor_variable(lengths).astype("int64").reshape((self.n_jobs, 1))
        kind = TensorType("int64", (1,))
        index = self._slot(Slot(kind, True, name="the lengths of the outputs"), shapes)
        core = TensorType(dtype, (None,))
        return Slot(core, True, index, on_failure=-np.inf, name=self.label)

    def _output(self, dtype: str, shape: tuple[int, ...]) -> Slot:
        failure = -np.inf if np.dtype(dtype).kind == "f" else 0
        return Slot(TensorType(dtype, shape), True, on_failure=failure, name=self.label)

    def numeric(self, f: NumericFunction) -> tuple[Job, list[Any], int | None]:
        """Return a numeric job, its inputs' sources, and the static length of its output."""
        theta, job_structure, x_r, x_i = (argument.structure for argument in self.arguments)
        call = Call(theta, job_structure, x_r, x_i, tuple(self.leaves), self.given, self.job_id)
        dtype = "float64"
        if f.length is None:
            return (
                value_job(f, call, self.slots, self._output(dtype, ()), self.label),
                self.sources,
                None,
            )
        if not callable(f.length):
            length = int(f.length)
            job = value_job(f, call, self.slots, self._output(dtype, (length,)), self.label)
            return job, self.sources, length
        one = self._output("int64", ())
        counting = length_job(f.length, call.of_data, self.slots, one, self.label)
        slot = self._ragged_output(self._counted(counting), dtype)
        return value_job(f, call, self.slots, slot, self.label), self.sources, None

    def _counted(self, job: Job) -> Any:
        """Return the lengths as a map of their own, found while compiling if the data are held."""
        data = tuple(s if isinstance(s, JobData) else None for s in self.sources)
        inputs = [s for s in self.sources if isinstance(s, Variable)]
        return apply_map(Map(job, self.n_jobs, data, 1), inputs)[0]

    def traced(self, f: Callable[..., Any]) -> tuple[Job, list[Any], int | None]:
        """Return a traced job, its inputs' sources, and the static length of its output."""
        variables = [slot.type(name=slot.name) for slot in self.slots]
        leaves = iter(variables[i] for i in self.leaves)
        positional = [argument.structure.take_leaves(leaves) for argument in self.arguments]
        keywords = {} if self.job_id is None else {"job_id": variables[self.job_id]}
        traced = trace(f, self.label, variables, positional[: self.given], keywords)
        for inner, source in traced.lifted:
            lifted = Slot(inner.type, False, name=inner.name or "a variable of the closure")
            variables.append(inner)
            self._slot(lifted, source)
        output, kind = traced.output, traced.output.type
        length: int | None = None
        if kind.ndim == 0:
            slot = self._output(kind.dtype, ())
        else:
            lengths = self._lengths(traced, variables)
            if isinstance(lengths, int):
                length = lengths
                slot = self._output(kind.dtype, (length,))
            else:
                slot = self._ragged_output(lengths, kind.dtype)
                variables.append(self.slots[-1].type())
        job = GraphJob.trace(variables, [output], self.slots, [slot], self.label)
        return job, self.sources, length

    def _lengths(self, traced: Trace, variables: Sequence[Variable]) -> Any:
        """Return each job's output length: a number, or a vector computed outside of the map."""
        length: Any = rewrite_graph(traced.output.shape[0], include=("ShapeOpt", "canonicalize"))
        if isinstance(length, Constant):
            return int(length.data)
        length = self._in_terms_of_shapes(length, variables)
        outside: dict[Variable, Variable] = {}
        for variable, slot, source in zip(variables, self.slots, self.sources, strict=True):
            known = source
            if isinstance(source, SharedData):
                known = pt.constant(source.value)
            elif isinstance(source, StackedData):
                known = pt.constant(source.values)
            if isinstance(known, Variable) and not slot.ragged:
                outside[variable] = known
        needed = set(ancestors([length], blockers=list(variables)))
        if all(v in outside for v in variables if v in needed):
            lengths = pt.broadcast_to(vectorize_graph(length, outside), (self.n_jobs,))
            if all(isinstance(root, Constant) for root in graph_inputs([lengths])):
                counted = lengths.eval(mode="FAST_COMPILE")
                alike = set(counted.tolist() or [0])
                return alike.pop() if len(alike) == 1 else pt.constant(counted, dtype="int64")
            return lengths
        one = self._output("int64", ())
        counting = GraphJob.trace(
            variables, [length.astype("int64")], self.slots, [one], f"length of {self.label}"
        )
        return self._counted(counting)

    def _in_terms_of_shapes(self, length: Any, variables: Sequence[Any]) -> Any:
        """Take the sizes of ragged inputs from their shapes, which are known outside of the map."""
        shapes_of = {
            variable: variables[slot.shapes]
            for variable, slot in zip(variables, self.slots, strict=True)
            if slot.shapes is not None
        }
        sizes = {
            v: shapes_of[v.owner.inputs[0]][v.owner.op.i]
            for v in ancestors([length])
            if v.owner is not None
            and isinstance(v.owner.op, Shape_i)
            and v.owner.inputs[0] in shapes_of
        }
        return clone_replace(length, sizes) if sizes else length
