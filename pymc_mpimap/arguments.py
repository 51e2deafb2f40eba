"""From what the user passes to `map_rect` to the inputs of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.rewriting.utils import rewrite_graph
from pytensor.graph.traversal import graph_inputs
from pytensor.tensor.type import TensorType

from pymc_mpimap.casts import exactly
from pymc_mpimap.data import JobData, ObjectData, PackedData, SharedData, StackedData
from pymc_mpimap.errors import InputError
from pymc_mpimap.local_data import Local, LocalData
from pymc_mpimap.reals import has_variables, real_array, real_numbers, real_tensor
from pymc_mpimap.refusal import NotRealError
from pymc_mpimap.signature import ObjectType
from pymc_mpimap.structure import LEAF, NOTHING, Structure, flatten
from pymc_mpimap.tables import opened

__all__ = ["Argument", "Leaf", "number_of_jobs", "per_job_argument", "shared_argument"]

Source = Variable | JobData


@dataclass(frozen=True)
class Leaf:
    """One array (or object) of an argument.

    Attributes
    ----------
    name : str
        How the user wrote it.
    type : TensorType or ObjectType
        What one job sees of it.
    per_job : bool
    source : Variable or JobData
        All jobs' values together: from the graph, or held.
    shapes : Variable or JobData, optional
        For ragged values: each job's shape.
    n_jobs : int, optional
        How many jobs it has values for, where that is known.
    """

    name: str
    type: Any
    per_job: bool
    source: Source
    shapes: Source | None = None
    n_jobs: int | None = None


@dataclass(frozen=True)
class Argument:
    """One of theta, jobs, x_r and x_i, taken apart."""

    name: str
    structure: Structure
    leaves: tuple[Leaf, ...]
    n_jobs: int | None = None


def shared_argument(name: str, value: Any) -> Argument:
    """Take theta apart."""
    pairs, structure = flatten(value, name)
    return Argument(name, structure, tuple(_shared_leaf(label, leaf) for label, leaf in pairs))


def _shared_leaf(name: str, value: Any) -> Leaf:
    if not has_variables(value):
        array = real_array(value, name)
        return Leaf(name, TensorType(array.dtype, array.shape), False, SharedData(array))
    variable = real_tensor(value, name)
    return Leaf(name, variable.type, False, variable)


def per_job_argument(name: str, value: Any, traced: bool) -> Argument:
    """Take jobs, x_r or x_i apart.

    Parameters
    ----------
    traced : bool
        Whether the job is traced, and so takes numbers only.
    """
    if name == "jobs" and isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if value < 0:
            raise InputError(f"jobs={value}: the number of jobs cannot be negative")
        return Argument(name, NOTHING, (), int(value))
    if isinstance(value, Local):
        return _local_argument(name, value, traced)
    pairs, structure = flatten(value, name)
    leaves = []
    for label, leaf in pairs:
        if isinstance(leaf, Local):
            raise InputError(
                f"{label} is local(...) inside a dict or tuple; pass local(load) as {name} itself, "
                "and let load(job_id) return the dict or tuple"
            )
        leaves.append(_per_job_leaf(label, leaf, traced))
    return Argument(name, structure, tuple(leaves))


def _per_job_leaf(name: str, value: Any, traced: bool) -> Leaf:
    if isinstance(value, Variable):
        return _stacked_variable(name, real_tensor(value, name))
    items = _entries(value)
    if items is not None:
        return _listed(name, items, traced)
    array = real_array(value, name, rows_are_jobs=True)
    if array.ndim == 0:
        raise InputError(
            f"{name} is the single value {value!r:.60}, but must have one entry a job: an array "
            "with one row a job or a list. What all jobs share belongs in theta or in the closure "
            "of f"
        )
    core = TensorType(array.dtype, array.shape[1:])
    return Leaf(name, core, True, StackedData(array), n_jobs=len(array))


def _entries(value: Any) -> list[Any] | None:
    """Return the entries of what is a list of one entry a job; None for arrays."""
    if isinstance(value, list):
        return value
    table = opened(value)
    if table is not None and not table.framed and table.columns[0].label is None:
        missing = table.columns[0].missing
        value = table.columns[0].values if missing is None or not missing.any() else None
    if isinstance(value, list):
        return value
    if type(value) is np.ndarray and value.dtype == object and value.ndim > 0:
        return list(value)
    return None


def _stacked_variable(name: str, variable: Any) -> Leaf:
    if variable.type.ndim == 0:
        raise InputError(
            f"{name} is a scalar, but must have one row a job. What all jobs share belongs in "
            "theta or in the closure of f"
        )
    core = TensorType(variable.type.dtype, variable.type.shape[1:])
    return Leaf(name, core, True, variable, n_jobs=_known_length(variable))


def _known_length(variable: Any) -> int | None:
    """Return the length of a tensor's first axis where it follows from constants and data."""
    if variable.type.shape[0] is not None:
        return int(variable.type.shape[0])
    length: Any = rewrite_graph(variable.shape[0], include=("ShapeOpt", "canonicalize"))
    roots = list(graph_inputs([length]))
    if all(isinstance(r, Constant) or _is_data(r) for r in roots):
        return int(length.eval(mode="FAST_COMPILE"))
    return None


def _is_data(variable: Variable) -> bool:
    return isinstance(variable, SharedVariable) and isinstance(variable.type, TensorType)


def _listed(name: str, items: list[Any], traced: bool) -> Leaf:
    """Return the leaf of a list with one entry a job."""
    if has_variables(items):
        return _listed_variables(
            name, [real_tensor(item, f"{name}[{j}]") for j, item in enumerate(items)]
        )
    arrays = _arrays_of_jobs(name, items, traced)
    if arrays is None:
        return Leaf(name, ObjectType(), True, ObjectData(items), n_jobs=len(items))
    _check_same_ndim(name, [array.ndim for array in arrays])
    dtype = np.result_type(*arrays) if arrays else np.dtype(float)
    try:
        arrays = [a if a.dtype == dtype else exactly(a, dtype, name) for a in arrays]
    except NotRealError as error:
        raise error.refusal() from None
    if len({array.shape for array in arrays}) <= 1:
        stack = np.array(arrays, dtype=dtype)
        return Leaf(
            name, TensorType(dtype, stack.shape[1:]), True, StackedData(stack), n_jobs=len(items)
        )
    core = TensorType(dtype, _common_shape([array.shape for array in arrays]))
    shapes = np.array([array.shape for array in arrays], dtype=np.int64)
    flat = np.concatenate([array.ravel() for array in arrays])
    return Leaf(name, core, True, PackedData(flat, shapes), StackedData(shapes), len(items))


def _arrays_of_jobs(name: str, items: Sequence[Any], traced: bool) -> list[np.ndarray] | None:
    """Return the entries of a list as arrays, or None if a numeric job gets them as they are."""
    arrays = []
    missing = None
    for j, item in enumerate(items):
        try:
            arrays.append(real_numbers(item, name, strict=not traced))
        except NotRealError as error:
            error.path = (j, *error.path)
            if traced:
                raise _not_traced(error, isinstance(item, dict)) from error.__cause__
            if not error.missing:
                return None
            missing = missing or error
    # One group's missing value must not make other objects of all groups, whose sums leave it out.
    if missing is not None:
        raise missing.refusal(rows_are_jobs=True)
    return arrays


def _not_traced(error: NotRealError, is_dict: bool) -> InputError:
    refusal = error.refusal(rows_are_jobs=True)
    if not is_dict:
        return InputError(
            f"{refusal}. A traced job takes numbers only; mark f with @numeric_job to work on "
            "Python objects"
        )
    return InputError(
        f"{refusal}. Give a dict of lists rather than a list of dicts; a traced job takes "
        "numbers only, and one marked with @numeric_job any object"
    )


def _check_same_ndim(name: str, ndims: Sequence[int]) -> None:
    for j, ndim in enumerate(ndims):
        if ndim != ndims[0]:
            raise InputError(
                f"{name}[{j}] has {ndim} dimensions, but {name}[0] has {ndims[0]}; jobs may "
                "differ in sizes, not in the number of dimensions"
            )


def _common_shape(shapes: Sequence[tuple[int | None, ...]]) -> tuple[int | None, ...]:
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def _listed_variables(name: str, items: list[Any]) -> Leaf:
    _check_same_ndim(name, [item.type.ndim for item in items])
    static = [item.type.shape for item in items]
    known = all(None not in shape for shape in static)
    if known and len(set(static)) == 1:
        return _stacked_variable(name, pt.stack(items))
    flat = pt.concatenate([item.ravel() for item in items])
    if known:
        shapes = pt.constant(np.array(static, dtype=np.int64))
    else:
        shapes = pt.stack([pt.stack(list(item.shape)) for item in items]).astype("int64")
    core = TensorType(flat.type.dtype, _common_shape(static))
    return Leaf(name, core, True, flat, shapes, len(items))


def _local_argument(name: str, value: Local, traced: bool) -> Argument:
    if not traced:
        return Argument(name, LEAF, (Leaf(name, ObjectType(), True, LocalData(value)),))
    try:
        example = value(0) if value.like is None else value.like
    except Exception as error:
        raise InputError(
            f"{name}: load(0) of local(load) raised {type(error).__name__}: {error}. It was called "
            "to learn the types of a job's data; local(load, like=...) tells them instead"
        ) from error
    pairs, structure = flatten(example, name)
    leaves = []
    for position, (label, leaf) in enumerate(pairs):
        array = real_array(leaf, f"{label}, as load(job_id) returns it,")
        kind = TensorType(array.dtype, (None,) * array.ndim)
        values = LocalData(value, position, structure, kind=kind, name=name)
        shapes = LocalData(value, position, structure, kind=kind, shapes=True, name=name)
        leaves.append(Leaf(label, kind, True, values, shapes))
    return Argument(name, structure, tuple(leaves))


def number_of_jobs(arguments: Sequence[Argument]) -> int:
    """Return the number of jobs that all arguments agree on.

    Raises
    ------
    InputError
        If they disagree, or none of them tells.
    """
    counts: list[tuple[str, int]] = []
    for argument in arguments:
        if argument.n_jobs is not None:
            counts.append((argument.name, argument.n_jobs))
        counts += [(leaf.name, leaf.n_jobs) for leaf in argument.leaves if leaf.n_jobs is not None]
    if not counts:
        raise InputError(
            "the number of jobs is not known: jobs has no static length. Give its first dimension "
            "a size (shape=, dims= or pt.specify_shape), pass a list with one entry a job, or give "
            "data with one row a job"
        )
    first_name, n_jobs = counts[0]
    for name, count in counts[1:]:
        if count != n_jobs:
            has = (
                f"{first_name} has {n_jobs} rows" if first_name != "jobs" else f"jobs has {n_jobs}"
            )
            raise InputError(
                f"{name} has {count} rows, but {has}; each needs one row (or list entry) for each "
                "job, in the same order"
            )
    return n_jobs
