"""MapRectOp under the numba linker: compiled code calls the pool in force through Python."""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numba
import numpy as np
from pytensor.configdefaults import config
from pytensor.graph.basic import Apply
from pytensor.link.numba.dispatch.basic import (
    get_numba_type,
    numba_njit,
    register_funcify_and_cache_key,
)

from pymc_mpimap.op import MapRectOp, evaluate_op
from pymc_mpimap.pool.unseen import without_caller

__all__: list[str] = []

# With fast-math, the compiler may reorder sums, and does so differently in fresh code and in the
# same code from PyTensor's cache: draws would depend on which rank compiled what, and when. Those
# who want it all the same set numba__fastmath themselves.
if config._config_var_dict["numba__fastmath"].is_default:  # noqa: SLF001 # no public name
    config.numba__fastmath = False

# Compiled code refers to an Op by its number here, not by its content: a script that builds the
# same Ops in the same order finds its compiled functions in PyTensor's cache, whatever the data.
_ops: list[MapRectOp] = []
_numbers: dict[MapRectOp, int] = {}
_lock = threading.Lock()


def _number(op: MapRectOp) -> int:
    with _lock:
        if op not in _numbers:
            _numbers[op] = len(_ops)
            _ops.append(op)
        return _numbers[op]


def _call(number: int, *inputs: np.ndarray) -> tuple[Any, bool]:
    """Return an Op's outputs, and whether it failed with nobody but compiled code to hear of it.

    An exception that leaves object mode is lost there: Numba has no account of it, so a ``try`` in
    compiled code, as around nutpie's densities, reads what was never written. That ended the
    process. So compiled code is told, and raises an exception that it knows.
    """
    op = _ops[number]
    try:
        outputs = [_in_c_order(output) for output in evaluate_op(op, inputs)]
        failed = False
    except BaseException:
        if not without_caller():
            raise
        kinds: list[Any] = [kind for m in op.maps for kind in m.output_types()]
        outputs = [np.empty((0,) * kind.ndim, kind.dtype) for kind in kinds]
        failed = True
    return (outputs[0] if len(outputs) == 1 else tuple(outputs)), failed


def _in_c_order(array: np.ndarray) -> np.ndarray:
    """Return the array as compiled code takes it; a pool of the user's own may give any."""
    if array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array)


@register_funcify_and_cache_key(MapRectOp)
def _funcify(op: MapRectOp, node: Apply, **_: Any) -> tuple[Callable[..., Any], str]:
    number = _number(op)
    types = [get_numba_type(output.type, layout="C") for output in node.outputs]
    returned = types[0] if len(types) == 1 else numba.types.Tuple(types)

    @numba_njit
    def map_rect(*inputs):  # type: ignore[no-untyped-def] # numba infers the types
        with numba.objmode(result=returned, failed=numba.types.boolean):
            result, failed = _call(number, *inputs)
        if failed:
            raise RuntimeError("a job raised")
        return result

    # The key is a file name too: a digest, however many outputs there are.
    key = blake2b(f"2 {number} {returned}".encode(), digest_size=16).hexdigest()
    return map_rect, f"pymc_mpimap-{key}"
