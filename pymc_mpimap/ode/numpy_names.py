"""The functions of PyTensor that do what NumPy's do, by NumPy's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytensor.tensor as pt

__all__ = ["REDUCTIONS", "RENAMED", "SAME_NAMES", "UFUNCS", "VIEWS"]


def _logical(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: function(*[pt.neq(a, 0) for a in args])


# NumPy's functions of elements whose twins have other names,
_PAIRS = (
    "absolute=abs conjugate=conj divide=true_div equal=eq fabs=abs float_power=pow fmax=maximum "
    "floor_divide=int_div fmin=minimum greater=gt greater_equal=ge less=lt less_equal=le "
    "multiply=mul negative=neg not_equal=neq power=pow remainder=mod square=sqr subtract=sub"
)
RENAMED = dict(pair.split("=") for pair in _PAIRS.split())

# and those that are made of others.
UFUNCS: dict[str, Callable[..., Any]] = {
    "cbrt": lambda x: pt.sign(x) * pt.abs(x) ** (1 / 3),
    "heaviside": lambda x, at_zero: pt.switch(pt.eq(x, 0), at_zero, pt.gt(x, 0)),
    "hypot": lambda x, y: pt.sqrt(x * x + y * y),
    "logical_and": _logical(pt.and_),
    "logical_not": _logical(pt.invert),
    "logical_or": _logical(pt.or_),
    "logical_xor": _logical(pt.xor),
    "positive": lambda x: x,
}

REDUCTIONS = {
    "add": "sum",
    "logical_and": "all",
    "logical_or": "any",
    "maximum": "max",
    "minimum": "min",
    "multiply": "prod",
}

# NumPy's functions of arrays whose twins take the same arguments and mean the same.
_NAMES = (
    "all any broadcast_to concatenate cumprod cumsum diag diagonal diff dot einsum expand_dims "
    "flip full_like logaddexp matmul max mean min moveaxis nan_to_num outer prod repeat reshape "
    "roll squeeze stack std sum swapaxes tensordot tile trace transpose tril triu var"
)
SAME_NAMES = frozenset(_NAMES.split())

# Of these and the methods of these names, NumPy's results share their elements with the array.
_SHARING = (
    "broadcast_to diagonal expand_dims flip moveaxis ravel reshape squeeze swapaxes transpose"
)
VIEWS = frozenset(_SHARING.split())
