"""Orders as bytes: without the data that the receiver has already, and with arrays beside them."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, override

import cloudpickle
import numpy as np
from pytensor.graph.op import Op

from pymc_mpimap.data import JobData
from pymc_mpimap.errors import PoolError
from pymc_mpimap.local_data import Local, LocalData

__all__ = ["Key", "keys_of", "pack", "unpack", "with_sources"]

Key = tuple[Any, ...]


def keys_of(data: Iterable[JobData | None]) -> set[Key]:
    """Return by what data, and where they come from, are known to a rank that has them."""
    return set(with_sources(data))


def with_sources(data: Iterable[JobData | None]) -> dict[Key, JobData | Local]:
    """Return data, and what local ones are loaded by, by their keys."""
    found: dict[Key, JobData | Local] = {}
    for held in data:
        if held is not None:
            found[held.key] = held
            if isinstance(held, LocalData):
                found[held.source.key] = held.source
    return found


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # it has no types
    def __init__(self, file: Any, known: set[Key], arrays: list[pickle.PickleBuffer]):
        super().__init__(file, protocol=5, buffer_callback=arrays.append)
        self._known = known

    @override
    def persistent_id(self, obj: Any) -> Key | None:
        if isinstance(obj, JobData | Local) and obj.key in self._known:
            return obj.key
        return None

    @override
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and issubclass(obj, Op) and obj.__module__ == "__main__":
            return _op_type, (obj.__qualname__, cloudpickle.dumps(obj))
        return super().reducer_override(obj)


def _op_type(name: str, pickled: bytes) -> Any:
    """Return a type of Op that was defined in the script: this rank's own, if it is the same.

    What computes it is registered for the type that each rank defined when it ran the script.
    """
    sent = pickle.loads(pickled)
    own = getattr(sys.modules["__main__"], name, None)
    return own if isinstance(own, type) and _methods(own) == _methods(sent) else sent


def _methods(kind: type) -> dict[str, Any]:
    return {n: v.__code__ for n, v in vars(kind).items() if isinstance(v, FunctionType)}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, known: Mapping[Key, Any], arrays: Sequence[np.ndarray]):
        super().__init__(file, buffers=arrays)
        self._known = known

    @override
    def persistent_load(self, pid: Key) -> Any:
        if pid not in self._known:
            raise PoolError(
                "data are missing here that came with an earlier program; did that one fail?"
            )
        return self._known[pid]


def pack(order: Any, known: set[Key]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return an order as bytes, and the arrays in it where they are.

    Parameters
    ----------
    known : set
        The keys of data that the receiver has.
    """
    file, arrays = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(file, known, arrays).dump(order)
    pickled = np.frombuffer(file.getbuffer(), np.uint8)
    return pickled, [np.frombuffer(array.raw(), np.uint8) for array in arrays]


def unpack(pickled: np.ndarray, arrays: Sequence[np.ndarray], known: Mapping[Key, Any]) -> Any:
    """Return the order that these bytes are.

    Parameters
    ----------
    known : mapping
        What the receiver has, by key.
    """
    return _Unpickler(io.BytesIO(pickled.data), known, arrays).load()
