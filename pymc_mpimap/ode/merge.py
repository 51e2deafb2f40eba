"""Rewrites: each system is solved once, with the sensitivities that are used and no others."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, override

from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.features import ReplaceValidate
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.tensor.blockwise import Blockwise

from pymc_mpimap.ode.op import SolveIVP

__all__ = ["LoadJaxDispatch", "MergeSolves"]


def _core(node: Apply) -> Any:
    """Return a node's Op, or that which it does for each of several."""
    return node.op.core_op if isinstance(node.op, Blockwise) else node.op


class MergeSolves(GraphRewriter):
    """Make one solve of all that are alike but for their sensitivities, with those in use."""

    @override
    def add_requirements(self, fgraph: Any) -> None:
        fgraph.attach_feature(ReplaceValidate())

    @override
    def apply(self, fgraph: Any) -> None:
        alike: dict[Any, list[Apply]] = defaultdict(list)
        for node in fgraph.toposort():
            op = _core(node)
            if isinstance(op, SolveIVP):
                alike[op.system, tuple(node.inputs), op is node.op].append(node)
        for (system, inputs, single), nodes in alike.items():
            used: dict[int | None, list[Variable]] = defaultdict(list)
            for node in nodes:
                for i, output in zip((None, *_core(node).wrt), node.outputs, strict=True):
                    if fgraph.clients[output]:
                        used[i].append(output)
            wrt = sorted(i for i in used if i is not None)
            if len(nodes) == 1 and len(wrt) == len(_core(nodes[0]).wrt):
                continue
            op = SolveIVP(system, wrt)
            node = (op if single else Blockwise(op)).make_node(*inputs)
            merged = dict(zip((None, *wrt), node.outputs, strict=True))
            replacements = [(old, merged[i]) for i, outputs in used.items() for old in outputs]
            fgraph.replace_all_validate(replacements, reason="merge_solves")


class LoadJaxDispatch(GraphRewriter):
    """Tell PyTensor's JAX backend of solves when, and only when, it is used."""

    @override
    def apply(self, fgraph: Any) -> None:
        if any(isinstance(_core(node), SolveIVP) for node in fgraph.apply_nodes):
            import pymc_mpimap.ode.jax  # noqa: F401 # registers itself


# With the merging of maps: after the canonical form, before elementwise fusion and in-placing.
optdb.register("merge_ode_solves", MergeSolves(), "fast_run", "fast_compile", position=48.05)
optdb.register("ode_jax_dispatch", LoadJaxDispatch(), "jax", position=48.41)
