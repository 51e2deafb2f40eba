"""Casts of numbers to other types: never out of range, and not without a word where digits go."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pymc_mpimap.errors import MapRectWarning
from pymc_mpimap.refusal import NotRealError
from pymc_mpimap.version import PACKAGE

__all__ = ["exactly", "warn_of_rounding"]


def exactly(array: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """Return numbers as another type; warn where digits are lost, refuse what is out of range.

    Raises
    ------
    NotRealError
        If a number is beyond the range of the type.
    """
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(dtype)
        if array.dtype.kind in "iu" and dtype.kind in "iu":
            info = np.iinfo(dtype)
            outside = (array < info.min) | (array > info.max)
        elif array.dtype.kind == "b" or array.dtype.newbyteorder("=") == dtype:
            return made
        else:
            outside = np.isinf(made) & np.isfinite(array)
    if outside.any():
        at = np.argwhere(outside)[0] if array.ndim else ()
        raise NotRealError(
            name,
            f"{array.dtype} with the value {array[tuple(at)]!s}, beyond what {dtype} can hold",
            "Give it in another unit, or let the type be one that can hold all values",
            at,
        )
    if dtype.kind in "fc" and (lost := _first_rounded(array, made)) is not None:
        warn_of_rounding(name, lost, dtype)
    return made


def _first_rounded(array: np.ndarray, made: np.ndarray) -> Any:
    """Return the first number that was rounded, if any was."""
    if array.dtype.kind not in "iu":
        rounded = (made.astype(array.dtype) != array) & (array == array)  # noqa: PLR0124 # no NaN
        return array[rounded][0] if rounded.any() else None
    # Integers of fewer digits than the type has are exact; the few others in Python's own.
    largest = 2 ** (np.finfo(made.dtype).nmant + 1)
    if array.dtype.itemsize * 8 <= np.finfo(made.dtype).nmant:
        return None
    large = (array > largest) | (array < -largest) if array.dtype.kind == "i" else array > largest
    pairs = zip(array[large], made[large], strict=True)
    return next((one for one, other in pairs if int(one) != int(other)), None)


def warn_of_rounding(name: str, value: Any, dtype: Any) -> None:
    """Warn that numbers are rounded, with one of them as an example."""
    warnings.warn(
        f"{name}: numbers lose digits as {dtype}, as {value!r:.60} does",
        MapRectWarning,
        skip_file_prefixes=(str(PACKAGE),),
    )
