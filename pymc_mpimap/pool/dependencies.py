"""Dependencies of a program: code and values that each process has found for itself.

A graph names its Ops; which function computes them is looked up in registries that every import
may add to. A job's function names the variables of its module; each process has its own. Rank 0
says what it has, and a rank that has something else refuses the program.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Self

from pytensor.graph.fg import AbstractFunctionGraph
from pytensor.graph.op import Op

from pymc_mpimap.errors import MapRectWarning, PoolError
from pymc_mpimap.job.base import Job
from pymc_mpimap.job.derivatives import NumericFunction
from pymc_mpimap.job.lowering import BlockGraph
from pymc_mpimap.map import Map
from pymc_mpimap.pool.module_state import Snapshot, fingerprint, is_configured, variables_of

__all__ = ["Dependencies"]

_REGISTRIES = {
    "numba": (
        "pytensor.link.numba.dispatch.basic",
        ("numba_funcify", "numba_funcify_and_cache_key", "numba_funcify_default_op_cache_key"),
    ),
    "jax": ("pytensor.link.jax.dispatch.basic", ("jax_funcify",)),
}
"""For each backend, the functions that find what computes an Op, and the module they are in."""


@dataclass(frozen=True)
class Dependencies:
    """The code and values that rank 0 has found for a program.

    Attributes
    ----------
    implementations : dict of (str, str) to (str, str, int)
        For each registry and type of Op: the module, name and line of what computes it.
    variables : dict of (str, str) to (bytes, bool)
        Variables of the user's own modules, by the module's name and their own, that functions in
        the program may read and that other ranks may have other values of. For each a
        fingerprint, and whether another value is another computation beyond doubt.
    whole : bool
        Whether the fingerprints are of large values too.
    """

    implementations: dict[tuple[str, str], tuple[str, str, int]]
    variables: dict[tuple[str, str], tuple[bytes, bool]]
    whole: bool

    @classmethod
    def of(cls, maps: Iterable[Map], start: Snapshot | None) -> Self:
        """Return what this process has for these maps.

        Parameters
        ----------
        maps : iterable of Map
        start : Snapshot, optional
            What the modules held when the ranks met, by which time they all had run the same
            script. What has not changed since is not compared. None for ranks that run no script.
        """
        parts = list(_parts(maps))
        variables, whole = {}, start is not None
        for variable, value in variables_of(parts).items():
            changed = start is None or start.changed(variable, value)
            digest = fingerprint(value, whole=whole) if changed else None
            if digest is not None:
                sure = (
                    start is not None and start.knows(variable) and is_configured(variable, value)
                )
                variables[variable] = digest, sure
        return cls(_implementations(parts), variables, whole)

    def check(self, maps: Iterable[Map], modules: Iterable[str], here: str) -> None:
        """Refuse to compute with other code or values than rank 0.

        Parameters
        ----------
        maps : iterable of Map
            The same on this rank.
        modules : iterable of str
            The user's own modules on rank 0: imported here if an implementation is missing.
        here : str
            This rank and its host, for messages.

        Raises
        ------
        PoolError
            It names the Op or variable in question.
        """
        parts = list(_parts(maps))
        found = _implementations(parts)
        if found != self.implementations:
            for module in [*(module for module, _, _ in self.implementations.values()), *modules]:
                _load(module)
            found = _implementations(parts)
        for key, expected in self.implementations.items():
            if (actual := found.get(key)) != expected:
                raise PoolError(_of_implementation(key, expected, actual, here))
        self._check_variables(here)

    def _check_variables(self, here: str) -> None:
        for (module, name), (digest, sure) in self.variables.items():
            held = vars(sys.modules[module]).get(name) if module in sys.modules else None
            if digest == fingerprint(held, whole=self.whole):
                continue
            message = (
                f"{here} has another {module}.{name} than rank 0, and a job may use it. Other "
                "ranks have what it was when they entered the pool, or imported the module. Change "
                "it before, or pass it to map_rect as data"
            )
            if sure:
                raise PoolError(message)
            if (module, name) not in _WARNED:
                _WARNED.add((module, name))
                warnings.warn(
                    f"{message}. If jobs only write to it, as to a count or a cache, all is well",
                    MapRectWarning,
                    stacklevel=2,
                )


_WARNED: set[tuple[str, str]] = set()
"""The variables that this rank has warned of."""


def _implementations(parts: Iterable[Any]) -> dict[tuple[str, str], tuple[str, str, int]]:
    parts = list(parts)
    ops = {type(part) for part in parts if isinstance(part, Op)}
    backends = {part.backend for part in parts if isinstance(part, BlockGraph)}
    return {
        (registry, _name_of(op)): _identity(dispatch(op))
        for registry, dispatch in _registries(backends)
        for op in ops
    }


def _of_implementation(
    key: tuple[str, str],
    expected: tuple[str, str, int],
    actual: tuple[str, str, int] | None,
    here: str,
) -> str:
    registry, op = key
    theirs = "nothing" if actual is None else f"{actual[0]}.{actual[1]}"
    return (
        f"{op} is computed by {expected[0]}.{expected[1]} on rank 0, but by {theirs} on {here}, "
        f"as {registry} says there; results would differ. Register the implementation before the "
        "pool is entered, or in a module that the other ranks can import"
    )


def _registries(backends: AbstractSet[str]) -> Iterator[tuple[str, Callable[[type], Any]]]:
    for backend in sorted(backends & _REGISTRIES.keys()):
        module, names = _REGISTRIES[backend]
        for name in names:
            yield name, getattr(importlib.import_module(module), name).dispatch


def _load(module: str) -> None:
    # What cannot be imported here is missing, and the check that follows says so.
    with contextlib.suppress(Exception):
        if module not in sys.modules:
            importlib.import_module(module)


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _identity(function: Any) -> tuple[str, str, int]:
    code = getattr(function, "__code__", None)
    line = 0 if code is None else code.co_firstlineno
    return function.__module__, getattr(function, "__qualname__", repr(function)), line


_WITH_PARTS = (
    AbstractFunctionGraph, BlockGraph, Job, Map, NumericFunction, Op, functools.partial,
    types.FunctionType, types.MethodType,
)  # fmt: skip


def _parts(maps: Iterable[Map]) -> Iterator[Any]:
    """Return all that the maps are made of: graphs, Ops, also those within Ops, and functions."""
    todo: list[Any] = list(maps)
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, AbstractFunctionGraph):
            todo += [node.op for node in part.toposort()]
        else:
            for value in vars(part).values() if hasattr(part, "__dict__") else ():
                inside = value if isinstance(value, tuple) else (value,)
                todo += [v for v in inside if isinstance(v, _WITH_PARTS)]
