"""Real numbers: the plain array that is in what a user holds numbers in, or the reason for none.

Whatever of the user's becomes an array does so here, under one set of rules. An array that means
more than its numbers (a mask, a unit, values that are missing) is refused, as the numbers alone
would be others' data. What only holds numbers in another way (labels, the other order of bytes,
more digits) is taken, with a warning where digits are lost. Nothing is copied that need not be.
"""

from __future__ import annotations

from collections.abc import Buffer, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from numbers import Complex, Real
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable

from pymc_mpimap.casts import exactly, warn_of_rounding
from pymc_mpimap.errors import InputError
from pymc_mpimap.refusal import NotRealError
from pymc_mpimap.tables import Table, is_missing, opened

__all__ = ["has_variables", "real_array", "real_numbers", "real_tensor"]

_FLOAT64 = np.dtype(np.float64)

_NATIVE = frozenset("?bBhHiIlLfdFD")
"""The characters of NumPy's types that PyTensor and numba compute with."""

_WIDER = {"e": "float64", "g": "float64", "G": "complex128", "q": "int64", "Q": "uint64"}
"""The types that others become: half precision, long double, a second name of 64 bits."""

_EXACT = 2**53
"""Integers up to here are float64 numbers."""

_SCALARS = frozenset({bool, int, float, complex}) | {
    np.dtype(character).type for character in (*_NATIVE, *_WIDER)
}

_MISSING = (
    "Leave missing values out, fill them in, make parameters of them, or pass a mask as data of "
    "its own"
)
_ONLY_NUMBERS = "Give numbers: a number, an array, or a list of these"
_CURES = {
    "M": "Give the time since a start, as (x - start) / np.timedelta64(1, 'h')",
    "m": "Give how often a unit is in it, as x / np.timedelta64(1, 'h')",
    "V": "Give its fields one by one, as {field: x[field] for field in x.dtype.names}",
    "c": "Give real numbers, x.real and x.imag for example",
    "U": "Make numbers of it, as x.astype(float)",
}
_CURES |= {"S": _CURES["U"], "T": _CURES["U"]}


def real_array(value: Any, name: str, *, rows_are_jobs: bool = False) -> np.ndarray:
    """Return the real numbers that a user's value holds, as an array of a type of NumPy's own.

    Parameters
    ----------
    value : object
        A number, an array, a list of these, or a series, frame or labelled array.
    name : str
        How the user wrote it.
    rows_are_jobs : bool
        Whether the first index is the number of a job, which an error then names.

    Raises
    ------
    InputError
        If it holds no real numbers, or they would not be all that it means.

    Examples
    --------
    >>> import numpy as np
    >>> real_array(np.ma.array([1.0, 2.0], mask=[False, False]), "x_r")
    array([1., 2.])
    >>> real_array([np.float32(0.5), 2], "theta['rate']")
    array([0.5, 2. ])
    """
    try:
        return real_numbers(value, name)
    except NotRealError as error:
        raise error.refusal(rows_are_jobs=rows_are_jobs) from error.__cause__


def real_numbers(
    value: Any, name: str, *, strict: bool = False, quiet: bool = False, real: bool = True
) -> np.ndarray:
    """Return the numbers that a value holds, as an array of a type of NumPy's own.

    Parameters
    ----------
    value : object
    name : str
        How the user wrote it.
    strict : bool
        Whether to refuse objects that could be taken for numbers, but are more: masked arrays
        without masked values, fractions, arrays of objects.
    quiet : bool
        Whether digits may be lost without a word, as in results.
    real : bool
        Whether to refuse complex numbers.

    Raises
    ------
    NotRealError
    """
    kind = type(value)
    # As most data and results are.
    if kind is float or kind is np.float64:
        return np.asarray(value)
    if kind is np.ndarray and value.dtype == _FLOAT64 and value.flags.aligned:
        return np.asarray(value)
    array = _Reader(name, strict, quiet).numbers(value)
    if real and array.dtype.kind == "c":
        raise NotRealError(name, _complex(value), _CURES["c"])
    return array


def _complex(value: Any) -> str:
    return (
        f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"complex {value!r:.60}"
    )


def has_variables(value: Any) -> bool:
    """Tell whether a value is a PyTensor variable, or a list or tuple with one inside."""
    if not isinstance(value, (list, tuple)):
        return isinstance(value, Variable)
    return not set(map(type, value)) <= _SCALARS and any(has_variables(item) for item in value)


def real_tensor(value: Any, name: str) -> Any:
    """Return a value as a tensor: variables as they are, all else by `real_array`.

    Raises
    ------
    InputError
        If it is no tensor, or `real_array` refuses it.
    """
    if isinstance(value, bool):
        raise InputError(
            f"{name} is {value}. If it is of ==, that compares whether variables are the same one; "
            "use pytensor.tensor.eq(a, b). np.array(True) is a number"
        )
    if not has_variables(value):
        return pt.constant(real_array(value, name))
    if isinstance(value, (list, tuple)):
        value = [real_tensor(item, f"{name}[{i}]") for i, item in enumerate(value)]
    try:
        return pt.as_tensor_variable(value)
    except Exception as error:
        raise InputError(f"{name} is no tensor of numbers: {error}") from error


@dataclass(frozen=True)
class _Reader:
    """Reads the numbers of one value; see `real_numbers`, complex ones too."""

    name: str
    strict: bool
    quiet: bool

    def numbers(self, value: Any) -> np.ndarray:
        """Return the numbers of any value."""
        kind = type(value)
        if kind is np.ndarray:
            return self._native(value)
        if kind in _SCALARS:
            return self._scalar(value)
        if isinstance(value, (list, tuple)):
            return self._listed(value)
        if is_missing(value):
            raise self._refused(self._described(value), _MISSING)
        table = opened(value)
        return self._unknown(value) if table is None else self._table(table)

    def _unknown(self, value: Any) -> np.ndarray:
        """Return the numbers of an object, unless it says of itself that they are not all."""
        if isinstance(value, (date, np.datetime64)):  # of which datetime is a kind
            raise self._refused(f"{type(value).__name__} {value}", _CURES["M"])
        if isinstance(value, (timedelta, np.timedelta64)):
            raise self._refused(f"{type(value).__name__} {value}", _CURES["m"])
        if _is_array(value):
            self._check_meaning(value)
        if isinstance(value, np.ndarray):
            return self._native(np.asarray(value))
        if isinstance(value, (Decimal, Real, Complex)):
            return self._rounded(value)
        return self._converted(value)

    def _refused(self, what: str, cure: str, at: Any = (), *, missing: bool = False) -> Exception:
        return NotRealError(self.name, what, cure, at, missing=missing)

    def _described(self, value: Any) -> str:
        # Objects of a list are many, and may have much to say.
        shown = "" if self.strict else f" {value!r:.60}"
        return "None" if value is None else type(value).__name__ + shown

    def _no_numbers(self, value: Any) -> Exception:
        cure = _ONLY_NUMBERS
        if hasattr(type(value), "todense"):
            cure = "Give the whole matrix, as x.todense()"
        elif isinstance(value, Mapping):
            cure = "Give its entries in a dict, as {key: x[key] for key in x}, where a dict can be"
        return self._refused(self._described(value), cure)

    def _scalar(self, value: Any) -> np.ndarray:
        array = np.asarray(value)
        return self._rounded(value) if array.dtype == object else self._native(array)

    def _native(self, array: np.ndarray) -> np.ndarray:
        """Return an array as a type of the machine's own."""
        dtype = array.dtype
        if dtype.char in _NATIVE and dtype.isnative:
            return array if array.flags.aligned else array.copy()
        if dtype.kind in "biufc":
            wanted = np.dtype(_WIDER.get(dtype.char, dtype.newbyteorder("=")))
            return self._exactly(array, wanted)
        if dtype.kind == "O":
            return self._objects(array)
        kind = dtype.kind if dtype.kind != "V" or dtype.names else "U"
        raise self._refused(f"an array of {dtype}", _CURES.get(kind, _ONLY_NUMBERS))

    def _exactly(self, array: np.ndarray, dtype: Any) -> np.ndarray:
        if not self.quiet:
            return exactly(array, dtype, self.name)
        with np.errstate(over="ignore"):
            return array.astype(dtype)

    def _rounded(self, value: Any) -> np.ndarray:
        """Return a number of another kind as the nearest of the machine's."""
        if self.strict:
            raise self._no_numbers(value)
        try:
            if isinstance(value, Complex) and not isinstance(value, Real):
                return np.asarray(complex(value))
            made = float(value)
        except (OverflowError, ValueError, TypeError) as error:
            raise self._no_numbers(value) from error
        if isinstance(value, int):
            lost = int(made) != value
        else:  # A fraction is a formula, as 1 / 3 is; a decimal number is written with its digits.
            lost = isinstance(value, Decimal) and value.is_finite() and Decimal(repr(made)) != value
        if lost and not self.quiet:
            warn_of_rounding(self.name, value, "float64")
        return np.asarray(made)

    def _listed(self, items: Sequence[Any]) -> np.ndarray:
        """Return the numbers of a list as one array."""
        kinds = set(map(type, items))
        if kinds <= _SCALARS:
            array = np.asarray(items)
            whole = [kind for kind in kinds if issubclass(kind, (int, np.integer))]
            # NumPy says nothing of the digits that an integer loses beside a float.
            if not whole or array.dtype.kind in "bui" or _all_exact(items, tuple(whole)):
                return self._native(array)
        return self._joined([self._within(i, item) for i, item in enumerate(items)])

    def _within(self, i: int, item: Any) -> np.ndarray:
        try:
            return self.numbers(item)
        except NotRealError as error:
            error.path = (i, *error.path)
            raise

    def _joined(self, parts: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
        shapes = list(dict.fromkeys(part.shape for part in parts))
        if len(shapes) > 1:
            raise self._refused(
                f"a list of entries of the shapes {shapes[0]} and {shapes[1]}",
                "Within one job's data, or in theta, all entries have the same shape; a dict or "
                "tuple can hold others",
            )
        dtype = np.result_type(*parts) if parts else np.dtype(float)
        return (
            np.stack([self._exactly(part, dtype) for part in parts], axis) if parts else np.empty(0)
        )

    def _objects(self, array: np.ndarray) -> np.ndarray:
        """Return the numbers of an array of objects."""
        if self.strict:
            raise self._refused(self._described(array), _ONLY_NUMBERS)
        if array.ndim == 0:
            return self.numbers(array[()])
        if array.ndim > 1:
            return self._joined([self._within(i, row) for i, row in enumerate(array)])
        return self._listed(array.tolist())

    def _table(self, table: Table) -> np.ndarray:
        parts = []
        for column in table.columns:
            name = self.name if column.label is None else f"{self.name}[{column.label!r}]"
            reader = _Reader(name, self.strict, self.quiet)
            gone = column.missing
            if gone is not None and gone.any():
                what = f"a series with {gone.sum()} of {gone.size} values missing"
                raise reader._refused(what, _MISSING, np.argwhere(gone)[0], missing=True)
            parts.append(reader.numbers(column.values))
        return self._joined(parts, axis=1) if table.framed else parts[0]

    def _check_meaning(self, value: Any) -> None:
        """Refuse what a mask or a unit belongs to."""
        mask = _attribute(value, "mask")
        if mask is not None:
            masked = np.broadcast_to(np.asarray(mask, dtype=bool), np.shape(value))
            if masked.any():
                at = np.argwhere(masked)[0]
                what = f"a masked array with {masked.sum()} of {masked.size} values masked"
                raise self._refused(what, _MISSING, at)
            if self.strict:
                raise self._refused(self._described(value), _ONLY_NUMBERS)
        unit = _attribute(value, "unit", "units")
        if unit is not None:
            raise self._refused(
                f"{type(value).__name__} with the unit {str(unit) or 'dimensionless'}",
                "Give the numbers of a unit of your choice, as x.to_value(unit) of astropy or "
                "x.m_as(unit) of pint",
            )

    def _converted(self, value: Any) -> np.ndarray:
        """Return the numbers of an object by the protocols of arrays, or those of a sequence."""
        by_protocol = _is_array(value) or isinstance(value, (Buffer, range))
        if not by_protocol and not _is_sequence(value):
            raise self._no_numbers(value)
        try:
            # With a mask, if what it gives has one.
            read = np.asanyarray(value) if by_protocol else [value[i] for i in range(len(value))]
        except Exception as error:
            raise self._no_numbers(value) from error
        if isinstance(read, list):
            return self._listed(read)
        if read.ndim == 0 and read.dtype.kind in "OUSTV":
            raise self._no_numbers(value)
        return self._native(read) if type(read) is np.ndarray else self.numbers(read)


def _is_array(value: Any) -> bool:
    names = ("__array__", "__array_interface__", "__array_struct__")
    return any(hasattr(type(value), name) for name in names)


def _is_sequence(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping)):
        return False
    return hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")


def _all_exact(items: Sequence[Any], whole: tuple[Any, ...]) -> bool:
    return all(-_EXACT <= int(item) <= _EXACT for item in items if isinstance(item, whole))


def _attribute(value: Any, *names: str) -> Any:
    """Return the first of the attributes that there is, of an array's or by its class."""
    for name in names:
        if isinstance(value, np.ndarray) or hasattr(type(value), name):
            found: Any = getattr(value, name, None)
            if found is not None and not callable(found):
                return found
    return None
