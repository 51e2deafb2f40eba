"""Numbers in many kinds of containers: those that are taken, and those that mean more."""

from __future__ import annotations

import array
import collections
import datetime as dt
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse
import xarray as xr

ROWS = np.array([[1.5, -2.0], [0.25, 4.0], [3.0, 7.0]])
WHOLE = np.array([[1, -2], [0, 4], [3, 7]])
N = len(ROWS)


class Measured(np.ndarray):
    """An array with a unit, as astropy's and unyt's are: a subclass with an attribute."""

    unit = "mm"


class Quantity:
    """A number with a unit, as pint's are: an object around an array."""

    def __init__(self, magnitude):
        self.magnitude = magnitude

    @property
    def units(self):
        return "mm"

    def __array__(self, dtype=None, copy=None):
        return np.array(self.magnitude, dtype=dtype)


class Observed(np.ndarray):
    """An array with a mask that is none of NumPy's, as astropy's Masked is."""

    mask = np.zeros((N, 2), dtype=bool)
    mask[1, 0] = True


class InFile:
    """A variable of a file, as netCDF4's: an object that gives a masked array when read."""

    def __array__(self, dtype=None, copy=None):
        return np.ma.array(ROWS, mask=ROWS == 4.0)


class Labelled(np.ndarray):
    """An array with a remark, which its numbers do without."""

    remark = "from the left ear"


def field_of_records():
    """Return a view of every second number, none of them where the processor wants them."""
    records = np.zeros(N, dtype=[("flag", "i1"), ("y", "f8", 2)])
    records["y"] = ROWS
    return records.view(np.recarray).y


def unaligned():
    """Return numbers that begin at an odd address, as a file may hold them after a header."""
    return np.frombuffer(b"\0" + ROWS.tobytes(), dtype=float, offset=1).reshape(ROWS.shape)


def memory_map():
    """Return an array that subclasses ndarray and is only a view."""
    return ROWS.view(np.memmap)


def frame(**columns):
    """Return a pandas frame whose labels are in another order than its rows."""
    return pd.DataFrame(columns, index=[7, 5, 6])


LEFT, RIGHT = ROWS.T
WITH_NAN = np.where(ROWS == 4.0, np.nan, ROWS)
LARGE = np.full((N, 2), 2**63 + 2**11, np.uint64)

TAKEN = {
    # What is held: its numbers as they should arrive.
    "array": (ROWS, ROWS),
    "nested lists": (ROWS.tolist(), ROWS),
    "lists of arrays and numbers": (
        [[1, np.float32(0.5)], np.array([2.0, 3.0]), (4, True)],
        np.array([[1.0, 0.5], [2.0, 3.0], [4.0, 1.0]]),
    ),
    "integers": (WHOLE, WHOLE),
    "small integers": (WHOLE.astype(np.int8), WHOLE.astype(np.int8)),
    "bool": (ROWS > 1, ROWS > 1),
    "large unsigned": (LARGE, LARGE),
    "float32": (ROWS.astype(np.float32), ROWS.astype(np.float32)),
    "half precision": (ROWS.astype(np.float16), ROWS),
    "long double": (ROWS.astype(np.longdouble), ROWS),
    "big-endian": (ROWS.astype(">f8"), ROWS),
    "big-endian integers": (WHOLE.astype(">i4"), WHOLE.astype(np.int32)),
    "Fortran order": (np.asfortranarray(ROWS), ROWS),
    "reversed": (ROWS[::-1, ::-1], ROWS[::-1, ::-1]),
    "not aligned": (unaligned(), ROWS),
    "field of records": (field_of_records(), ROWS),
    "memory map": (memory_map(), ROWS),
    "subclass": (ROWS.view(Labelled), ROWS),
    "matrix": (ROWS.view(np.matrix), ROWS),
    "masked nowhere": (np.ma.array(ROWS, mask=False), ROWS),
    "with NaN": (WITH_NAN, WITH_NAN),
    "objects": (ROWS.astype(object), ROWS),
    "fractions": ([[Fraction(x) for x in row] for row in ROWS], ROWS),
    "decimal numbers": ([[Decimal(x) for x in row] for row in ROWS], ROWS),
    "integers of Python's own": (
        [[2**80, 1], [2, 3], [4, 5]],
        np.array([[2.0**80, 1.0], [2.0, 3.0], [4.0, 5.0]]),
    ),
    "range": ([range(2), range(2, 4), range(4, 6)], np.arange(6).reshape(3, 2)),
    "array.array": ([array.array("d", row) for row in ROWS], ROWS),
    "deque": (collections.deque(ROWS), ROWS),
    "pandas frame": (frame(a=LEFT, b=RIGHT), ROWS),
    "pandas frame of two types": (frame(a=[1, 0, 3], b=RIGHT), np.c_[[1, 0, 3], RIGHT]),
    "pandas frame with flags": (frame(a=LEFT > 1, b=RIGHT), np.c_[LEFT > 1, RIGHT]),
    "pandas nullable": (frame(a=pd.array([1, 0, 3]), b=pd.array([-2, 4, 7])), WHOLE),
    "pandas nullable floats": (frame(a=pd.array(LEFT), b=RIGHT), ROWS),
    "pandas with NaN": (frame(a=LEFT, b=WITH_NAN[:, 1]), WITH_NAN),
    "pandas categories": (frame(a=pd.Categorical(LEFT), b=pd.Categorical(RIGHT)), ROWS),
    "polars frame": (pl.DataFrame({"a": LEFT, "b": RIGHT}), ROWS),
    "polars lists": (pl.Series(ROWS.tolist()), ROWS),
    "polars with NaN": (pl.DataFrame({"a": LEFT, "b": WITH_NAN[:, 1]}), WITH_NAN),
    "xarray": (xr.DataArray(ROWS, dims=("job", "time"), attrs={"units": "mm"}), ROWS),
    "xarray with NaN": (xr.DataArray(WITH_NAN), WITH_NAN),
}
MASKED = np.ma.array(ROWS, mask=ROWS == 4.0)
NULLABLE = pd.array([1, None, 3])

REFUSED = {
    # What is held: what is said of it, and the number of the first job that it concerns.
    "masked": (MASKED, "a masked array with 1 of 6 values masked, the first at [1, 1]", 1),
    "masked subclass": (ROWS.view(Observed), "a masked array with 1 of 6 values masked", 1),
    "masked in a file": (InFile(), "a masked array with 1 of 6 values masked", 1),
    "masked row in a list": ([ROWS[0], MASKED[1]], "[1] is a masked array with 1 of 2 values", 1),
    "masked constant": ([[1.0, 2.0], [3.0, np.ma.masked]], "[1][1] is MaskedConstant masked", 1),
    "None": (np.where(ROWS == 4.0, None, ROWS), "[1][1] is None", 1),
    "None in a list": ([[1.0, 2.0], [3.0, None]], "[1][1] is None", 1),
    "NA in a list": ([[1.0, 2.0], [3.0, pd.NA]], "[1][1] is NAType <NA>", 1),
    "NaT": ([[1.0, 2.0], [3.0, pd.NaT]], "[1][1] is NaTType NaT", 1),
    "pandas NA": (pd.Series(NULLABLE), "a series with 1 of 3 values missing, the first at [1]", 1),
    "pandas NA in a frame": (frame(a=LEFT, b=NULLABLE), "['b'] is a series with 1 of 3", 1),
    "pandas array with NA": (NULLABLE, "a series with 1 of 3 values missing", 1),
    "pandas flags with NA": (pd.array([True, False, None]), "a series with 1 of 3", 2),
    "pandas categories with NA": (
        pd.Series(pd.Categorical([1, None, 3])),
        "a series with 1 of 3 values missing",
        1,
    ),
    "pandas objects": (pd.Series([1.0, None, 3.0], dtype=object), "[1] is None", 1),
    "pandas text": (frame(a=LEFT, b=["x", "y", "z"]), "['b'][0] is str 'x'", 0),
    "pandas dates": (pd.Series(pd.date_range("2020", periods=3)), "an array of datetime64", None),
    "pandas dates with a zone": (
        frame(a=pd.date_range("2020", periods=3, tz="UTC")),
        "['a'][0] is Timestamp 2020-01-01",
        0,
    ),
    "polars null": (pl.Series([1, None, 3]), "a series with 1 of 3 values missing", 1),
    "polars null in a frame": (
        pl.DataFrame({"a": LEFT, "b": [1.0, 2.0, None]}),
        "['b'] is a series with 1 of 3 values missing, the first at [2]",
        2,
    ),
    "polars null in a list": (pl.Series([[1.0, 2.0], [3.0, None]]), "[1][1] is None", 1),
    "xarray of units": (xr.DataArray(ROWS.view(Measured)), "Measured with the unit mm", None),
    "xarray of two": (xr.Dataset({"a": ("job", LEFT)}), "Dataset", None),
    "unit": (ROWS.view(Measured), "Measured with the unit mm", None),
    "unit around an array": (Quantity(ROWS), "Quantity with the unit mm", None),
    "unit in a list": ([ROWS[0], ROWS[1].view(Measured)], "[1] is Measured with the unit", 1),
    "sparse": (scipy.sparse.csr_matrix(ROWS), "csr_matrix", None),
    "sparse array": (scipy.sparse.coo_array(ROWS), "coo_array", None),
    "text": (ROWS.astype(str), "an array of <U", None),
    "dates": (np.array(["2020", "2021", "2022"], "M8[D]"), "an array of datetime64[D]", None),
    "durations": (np.array([1, 2, 3], "m8[s]"), "an array of timedelta64[s]", None),
    "datetime": ([dt.datetime(2020, 1, 1, tzinfo=dt.UTC)] * N, "[0] is datetime", 0),
    "complex": (ROWS + 0j, "an array of complex128", None),
    "records": (np.zeros(N, dtype=[("a", "f8"), ("b", "f8")]), "an array of", None),
    "beyond float64": (
        np.array(["1e400"] * N, np.longdouble),
        f"{np.dtype(np.longdouble)} with the value 1e+400, beyond what float64",
        0,
    ),
    "set": ({1.0, 2.0, 3.0}, "set {", None),
}

ROUNDED = {
    # What is held: the numbers that become of it.
    "long double": (np.full(N, 1 / np.longdouble(3)), np.full(N, 1 / 3)),
    "large integer beside a float": ([2**53 + 1, 0.5, 1.0], np.array([2.0**53, 0.5, 1.0])),
    "large integers of two types": (
        [np.array(2**60 + 1), np.array(2**63 + 1, np.uint64), np.array(1)],
        np.array([2.0**60, 2.0**63, 1.0]),
    ),
    "frame of large integers and floats": (
        frame(a=[2**53 + 1, 1, 2], b=[0.5, 1.5, 2.5]),
        np.array([[2.0**53, 0.5], [1.0, 1.5], [2.0, 2.5]]),
    ),
    "integer beyond 64 bits": ([2**80 + 1, 1, 2], np.array([2.0**80, 1.0, 2.0])),
    "decimal number of many digits": (
        [Decimal("0.1234567890123456789"), Decimal("0.1"), Decimal(2)],
        np.array([0.1234567890123456789, 0.1, 2.0]),
    ),
}

AS_THEY_ARE = {
    "fractions",
    "decimal numbers",
    "integers of Python's own",
    "masked row in a list",
    "masked constant",
    "None",
    "None in a list",
    "NA in a list",
    "NaT",
    "pandas objects",
    "polars null in a list",
    "unit in a list",
    "datetime",
}
"""Lists of objects, which numeric jobs get as they are."""
