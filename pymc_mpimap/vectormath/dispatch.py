"""The numba code of the Ops, and the keys by which PyTensor caches it."""

# mypy: disallow-untyped-decorators=False
# Neither PyTensor's nor Numba's have types.

from __future__ import annotations

import inspect
from hashlib import blake2b
from typing import Any

import numpy as np
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from pytensor.graph.basic import Apply
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    numba_njit,
    numba_typify,
    register_funcify_and_cache_key,
)
from pytensor.link.utils import fgraph_to_python

from pymc_mpimap.vectormath import functions, lanes, products
from pymc_mpimap.vectormath.ops import (
    Columns,
    InlinedComposite,
    LaneSum,
    MatricesTimesVectors,
    StackSum,
    Stored,
    VectorizableOp,
)

__all__ = ["cache_key", "processor_suits"]


def processor_suits() -> bool:
    """Return whether x * y + z is one instruction; where it is a call, nothing is gained."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return not triple.startswith(("x86", "i686")) or "+fma" in features.split(",")


def cache_key(*parts: object) -> str:
    """Return a key of what is compiled: it changes with every change of the code."""
    sources = [inspect.getsource(module) for module in (functions, products)]
    digest = blake2b(repr((*sources, *parts)).encode(), digest_size=16)
    return f"pymc_mpimap-{digest.hexdigest()}"


@intrinsic
def _inlined_here(_context: Any) -> Any:
    """Have LLVM inline the function in which this is called into its callers."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.function.attributes.add("alwaysinline")
        return context.get_dummy_value()

    return types.none(), generate


@register_funcify_and_cache_key(VectorizableOp)
def _funcify_function(op: VectorizableOp, **_: Any) -> tuple[Any, str]:
    return getattr(functions, op.function), cache_key("function", op.function)


@register_funcify_and_cache_key(LaneSum)
def _funcify_sum(op: LaneSum, node: Apply[Any], **_: Any) -> tuple[Any, str]:
    key = cache_key("sum", lanes.STAMP, op.n_kept, node.inputs[0].type.ndim)
    return lanes.sum_of_rows(op.n_kept), key


@register_funcify_and_cache_key(StackSum)
def _funcify_stack(op: StackSum, node: Apply[Any], **_: Any) -> tuple[Any, str]:
    key = cache_key("stack", lanes.STAMP, op.n_summed, node.inputs[0].type.ndim)
    return lanes.sum_of_stack(op.n_summed), key


@register_funcify_and_cache_key(Columns)
def _funcify_columns(op: Columns, **_: Any) -> tuple[Any, str]:
    vectors = [f"x{k}" for k in range(len(op.places))]
    at = {place: k for k, place in enumerate(op.places)}
    source = [
        f"def columns({', '.join(vectors)}):",
        "    n = len(x0)",
        "    s0 = 1",
        *(
            line
            for k, vector in enumerate(vectors[1:], 1)
            for line in (
                f"    s{k} = 0 if len({vector}) == 1 else 1",
                f"    if len({vector}) != n and s{k} == 1:",
                "        raise ValueError('the columns of a matrix are of different lengths')",
            )
        ),
        f"    matrix = np.empty((n, {op.n_columns}))",
        "    for i in range(n):",
        *(
            f"        matrix[i, {k}] = " + (f"x{at[k]}[i * s{at[k]}]" if k in at else "0.0")
            for k in range(op.n_columns)
        ),
        "    return matrix",
    ]
    function = compile_numba_function_src("\n".join(source), "columns", {"np": np})
    return numba_njit(function), cache_key(*source)


@register_funcify_and_cache_key(MatricesTimesVectors)
def _funcify_products(op: MatricesTimesVectors, **_: Any) -> tuple[Any, str]:
    product = (
        products.transposed_times_vectors if op.transposed else products.matrices_times_vectors
    )
    return product, cache_key("products", op.transposed)


@register_funcify_and_cache_key(Stored)
def _funcify_stored(_op: Stored, **_: Any) -> tuple[Any, str]:
    @numba_njit
    def stored(x: Any) -> Any:
        return x

    return stored, cache_key("stored")


@register_funcify_and_cache_key(InlinedComposite)
def _funcify_composite(op: InlinedComposite, **options: Any) -> tuple[Any, str | None]:
    options.pop("storage_map", None)
    options.pop("node", None)
    _, key = numba_funcify_and_cache_key(
        op.fgraph, squeeze_output=True, fgraph_name="inlined_composite", **options
    )

    # The function of that graph calls each Op's by way of another one, which PyTensor caches and
    # which is not inlined. Here they are called directly.
    def convert(op: Any, *, node: Any, **options: Any) -> Any:
        return numba_funcify_and_cache_key(op, node=node, **options)[0]

    function = fgraph_to_python(
        op.fgraph,
        op_conversion_fn=convert,
        type_conversion_fn=numba_typify,
        squeeze_output=True,
        fgraph_name="inlined_composite",
    )
    body = numba_njit(function, forceinline=True)
    names = ", ".join(f"i{i}" for i in range(len(op.fgraph.inputs)))
    outer = compile_numba_function_src(
        f"def inlined_composite({names}):\n    inlined_here()\n    return body({names})\n",
        "inlined_composite",
        {"inlined_here": _inlined_here, "body": body},
    )
    # PyTensor may call it from a function of its own, which the loop calls: hence inlined by
    # Numba into that one, which is then to be inlined into the loop.
    inlined = numba_njit(outer, inline="always")
    return inlined, None if key is None else cache_key("composite", key)
