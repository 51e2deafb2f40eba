"""Rewrites that reach the graphs in a map's jobs, as they reach the graph around it.

PyMC and samplers rewrite a model's graph before they differentiate and compile it: they simplify
and stabilize it, and put -inf in place of checks of parameters, or remove them. A job is part of
the model, so the same is done to its graph, by the same query, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, override

from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.rewriting.basic import GraphRewriter, NodeRewriter, get_active_mode
from pytensor.graph.rewriting.db import EquilibriumDB, RewriteDatabase, RewriteDatabaseQuery

from pymc_mpimap.job.lowering import as_pymc_compiles, job_mode
from pymc_mpimap.op import MapRectOp

__all__ = ["InJobs", "LowerJobs"]


class InJobs(RewriteDatabase):
    """A stage of PyTensor's rewriting, for the graphs in jobs.

    Parameters
    ----------
    stage : EquilibriumDB
        A query of it finds this database, and passes itself on.
    """

    def __init__(self, stage: EquilibriumDB):
        super().__init__()  # type: ignore[no-untyped-call] # PyTensor's
        self._stage = stage

    @override
    def __query__(self, q: RewriteDatabaseQuery) -> NodeRewriter:
        # The stage is queried where there are jobs, and not here: it would come back to this.
        return _RewriteJobs(lambda: self._stage.query(q))


class _RewriteJobs(NodeRewriter):
    """Rewrites the graphs in a node's jobs, each once."""

    def __init__(self, query: Callable[[], GraphRewriter]):
        super().__init__()
        self._query = query
        self._results: set[MapRectOp] = set()

    def __str__(self) -> str:
        return str(self.name)

    @override
    def tracks(self) -> Sequence[Any]:
        return [MapRectOp]

    @override
    def transform(
        self, fgraph: Any, node: Apply, enforce_tracks: bool = True, *_: Any, **__: Any
    ) -> list[Variable] | bool:
        if node.op in self._results:
            return False
        rewrite = self._query().rewrite
        op = node.op.running([m.job.rewritten(rewrite) for m in node.op.maps])
        self._results.add(op)
        return False if op == node.op else op.make_node(*node.inputs).outputs


class LowerJobs(GraphRewriter):
    """Rewrite the graphs in jobs for the backend of the function that is being compiled.

    Where JAX's host will evaluate them, they are rewritten for another backend later; what PyMC
    does to the model's checks of parameters is done now, as only now it is known which model's.
    """

    @override
    def apply(self, fgraph: Any) -> None:
        nodes = [node for node in fgraph.toposort() if isinstance(node.op, MapRectOp)]
        if not nodes:
            return
        mode = job_mode(get_active_mode(fgraph))
        checks = optdb.query(as_pymc_compiles(RewriteDatabaseQuery(include=["canonicalize"])))
        for node in nodes:
            jobs = [m.job for m in node.op.maps]
            if mode is None:
                op = node.op.running([job.rewritten(checks.rewrite) for job in jobs])
            else:
                op = node.op.running([job.lowered(mode) for job in jobs])
            if op is not node.op:
                replacements = zip(node.outputs, op.make_node(*node.inputs).outputs, strict=True)
                fgraph.replace_all(list(replacements), reason="map_rect_lower")


for _stage in ("canonicalize", "stabilize"):
    optdb[_stage].register("in_map_rect_jobs", InJobs(optdb[_stage]), "fast_run", "fast_compile")

# With PyTensor's own graphs within graphs, those of scans for one: after all that changes which
# maps there are.
optdb.register("map_rect_lower", LowerJobs(), "minimum_compile", position=49.65)
