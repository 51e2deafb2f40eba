"""The header of a chain: its variables, and how their values become bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pymc_mpimap.errors import InputError

__all__ = ["Header", "Variables"]

Variables = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each variable, by its name."""

_KINDS = "biufc"
"""Kinds of dtypes that are plain bytes: bool, integers, floats, complex numbers."""


@dataclass(frozen=True)
class Header:
    """The plain part of a chain's first record.

    Attributes
    ----------
    chain : int
    variables : dict of str to (tuple of int, str)
    versions : dict of str to str
        Of the packages that it was begun with.
    run : int
        A random number, the same in all chains of a run.

    Raises
    ------
    InputError
        If values of such a variable cannot be written as plain numbers.
    """

    chain: int
    variables: Variables
    versions: Mapping[str, str]
    run: int

    def __post_init__(self) -> None:
        for name, (shape, dtype) in self.variables.items():
            try:
                is_plain = np.dtype((dtype, shape)).base.kind in _KINDS
            except (TypeError, ValueError, OverflowError):
                is_plain = False
            if not is_plain:
                raise InputError(
                    f"the variable {name}, of shape {shape} and dtype {dtype}, is not an array of "
                    "plain numbers, as can be kept on disk: leave it out by "
                    "disk_trace(var_names=...)"
                )

    def pack(self) -> bytes:
        """Return it as JSON."""
        fields = {
            "chain": self.chain,
            "run": self.run,
            "variables": self.variables,
            "versions": self.versions,
        }
        return json.dumps(fields).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Read it, from whom it may be.

        Raises
        ------
        ValueError
            If it is none.
        """
        try:
            fields = json.loads(data)
            variables = {
                str(name): (tuple(int(n) for n in shape), str(dtype))
                for name, (shape, dtype) in fields["variables"].items()
            }
            versions = {str(name): str(version) for name, version in fields["versions"].items()}
            return cls(int(fields["chain"]), variables, versions, int(fields["run"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"its header is none: {error}") from None

    @cached_property
    def _draw(self) -> np.dtype:
        # A field has no name of the user's, which might be one that NumPy does not take.
        fields: list[Any] = [("in_warmup", "u1")]
        for k, (shape, dtype) in enumerate(self.variables.values()):
            fields.append((str(k), np.dtype(dtype).newbyteorder("<"), shape))
        return np.dtype(fields)

    @property
    def n_bytes(self) -> int:
        """The length of the plain part of a draw."""
        return self._draw.itemsize

    @cached_property
    def _in_order(self) -> list[tuple[str, tuple[int, ...], np.dtype, np.dtype]]:
        return [
            (name, shape, np.dtype(dtype), np.dtype(dtype).newbyteorder("<"))
            for name, (shape, dtype) in self.variables.items()
        ]

    def pack_draw(self, values: Mapping[str, Any], *, in_warmup: bool) -> bytes:
        """Return the values of a draw, in the order of the header's variables.

        Raises
        ------
        InputError
            If a value is not of its variable's shape or dtype.
        """
        parts = [b"\1" if in_warmup else b"\0"]
        for name, shape, dtype, stored in self._in_order:
            value = np.asarray(values[name])
            if value.shape != shape or value.dtype != dtype:
                raise InputError(
                    f"the variable {name} was of shape {shape} and dtype {dtype} at first, and is "
                    f"of shape {value.shape} and dtype {value.dtype} in this draw: disk_trace "
                    "keeps variables whose shape stays the same; leave it out by var_names=..."
                )
            parts.append(value.astype(stored, copy=False).tobytes())
        return b"".join(parts)

    def unpack_draws(
        self, parts: Iterable[bytes]
    ) -> tuple[np.ndarray[Any, np.dtype[np.bool]], dict[str, np.ndarray]]:
        """Return which draws are of the warm-up, and each variable's values."""
        draws = np.frombuffer(b"".join(parts), self._draw)
        values = {
            name: draws[str(k)].astype(dtype, order="C")
            for k, (name, _, dtype, _) in enumerate(self._in_order)
        }
        return draws["in_warmup"] != 0, values
