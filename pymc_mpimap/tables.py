"""Tables of other libraries: the arrays inside, and where a value is missing.

None of the libraries is imported here: what the user has not imported, no value comes from.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Column", "Table", "is_missing", "opened"]


@dataclass(frozen=True, eq=False)
class Column:
    """One column of a table, or all there is.

    Attributes
    ----------
    label : object
        What the user calls it; None where there are no columns.
    values : object
        An array, or a list of entries.
    missing : array of bool, optional
        Where a value is missing that `values` may show as another, such as NaN; None where no
        value can be.
    """

    label: Any
    values: Any
    missing: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """An array without its labels, or columns of one length.

    Attributes
    ----------
    columns : tuple of Column
    framed : bool
        Whether the columns stand side by side as a second axis.
    """

    columns: tuple[Column, ...]
    framed: bool


def is_missing(value: Any) -> bool:
    """Tell whether a scalar stands for a value that is not there; NaN is a number."""
    pandas = sys.modules.get("pandas")
    absent = (None, getattr(pandas, "NA", None), getattr(pandas, "NaT", None), np.ma.masked)
    return any(value is one for one in absent)


def opened(value: Any) -> Table | None:
    """Return the arrays of a series, frame or labelled array; None for what is no table.

    Examples
    --------
    >>> import pandas as pd
    >>> table = opened(pd.DataFrame({"dose": [1.0, 2.0], "count": pd.array([3, None])}))
    >>> [column.label for column in table.columns], table.framed
    (['dose', 'count'], True)
    >>> table.columns[1].missing.tolist()
    [False, True]
    """
    for library, open_ in _LIBRARIES.items():
        module = sys.modules.get(library)
        # A module that is being imported, or a stub of the user's own, may lack the names.
        if module is not None:
            table = open_(module, value)
            if table is not None:
                return table
    return None


def _classes(module: Any, *names: str) -> Any:
    found = (getattr(module, name, None) for name in names)
    return tuple(kind for kind in found if isinstance(kind, type))


def _single(values: Any, missing: Any = None) -> Table:
    return Table((Column(None, values, missing),), False)


def _from_pandas(pandas: Any, value: Any) -> Table | None:
    if isinstance(value, _classes(pandas, "DataFrame")):
        kinds = set(value.dtypes)
        if len(kinds) < 2 and all(isinstance(kind, np.dtype) for kind in kinds):
            return _single(value.to_numpy())
        # By position: labels may occur twice.
        series = [value.iloc[:, i] for i in range(value.shape[1])]
        return Table(tuple(_pandas_column(s.name, s) for s in series), True)
    extensions = getattr(getattr(pandas.api, "extensions", None), "ExtensionArray", ())
    if isinstance(value, (*_classes(pandas, "Series", "Index"), extensions)):
        return Table((_pandas_column(None, value),), False)
    return None


def _pandas_column(label: Any, values: Any) -> Column:
    if hasattr(values.dtype, "pyarrow_dtype"):
        # NumPy would have NaN for what is missing inside of an entry.
        return _arrow_column(label, getattr(values, "array", values).__arrow_array__())
    # NaN of NumPy's types is the user's own; other types have a value for what is missing.
    missing = None if isinstance(values.dtype, np.dtype) else np.asarray(values.isna(), dtype=bool)
    return Column(label, values.to_numpy(), missing)


def _from_polars(polars: Any, value: Any) -> Table | None:
    if isinstance(value, _classes(polars, "DataFrame")):
        return Table(tuple(_polars_column(s.name, s) for s in value.get_columns()), True)
    if isinstance(value, _classes(polars, "Series")):
        return Table((_polars_column(None, value),), False)
    return None


def _polars_column(label: Any, series: Any) -> Column:
    missing = series.is_null().to_numpy() if series.null_count() else None
    # As above: no NaN inside of entries.
    return Column(
        label, series.to_list() if series.dtype.is_nested() else series.to_numpy(), missing
    )


def _from_xarray(xarray: Any, value: Any) -> Table | None:
    if isinstance(value, _classes(xarray, "DataArray", "Variable")):
        return _single(value.data)  # Its units, if it has any, are still there.
    return None


def _from_pyarrow(pyarrow: Any, value: Any) -> Table | None:
    if isinstance(value, _classes(pyarrow, "Table", "RecordBatch")):
        pairs = zip(value.schema.names, value.columns, strict=True)
        return Table(tuple(_arrow_column(label, column) for label, column in pairs), True)
    if isinstance(value, _classes(pyarrow, "Array", "ChunkedArray")):
        return Table((_arrow_column(None, value),), False)
    return None


def _arrow_column(label: Any, column: Any) -> Column:
    missing = np.array(column.is_null().to_pylist(), dtype=bool) if column.null_count else None
    nested = getattr(column.type, "num_fields", 0) > 0
    return Column(label, column.to_pylist() if nested else np.asarray(column), missing)


_LIBRARIES = {
    "pandas": _from_pandas,
    "polars": _from_polars,
    "xarray": _from_xarray,
    "pyarrow": _from_pyarrow,
}
