"""Rewrites: as few round trips as possible, and no job evaluated twice.

Maps that do not depend on each other become one: the value and the gradient of a potential, and
several potentials, are one round trip. This is the algorithm; its registration is at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, override

from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.features import ReplaceValidate
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.rewriting.reachability import (
    ancestor_bitsets,
    greedy_independent_subset,
    update_ancestors_after_contraction,
)
from pytensor.scalar.basic import Second
from pytensor.tensor.basic import alloc
from pytensor.tensor.elemwise import Elemwise

from pymc_mpimap.data import JobData, object_digest
from pymc_mpimap.job.graph import GraphJob
from pymc_mpimap.job.memory import Memory
from pymc_mpimap.job.numeric import NumericJob
from pymc_mpimap.job.split import SplitJob, common_work
from pymc_mpimap.map import Map
from pymc_mpimap.op import MapRectOp
from pymc_mpimap.signature import Slot

__all__ = [
    "DropUnused",
    "FillFromShape",
    "LoadJaxDispatch",
    "MapRewriter",
    "MergeMaps",
    "Placed",
    "RememberEvaluations",
    "make_node",
    "map_nodes",
    "placed_maps",
]


@dataclass(frozen=True)
class Placed:
    """A map with the variables that it takes, and those that its outputs replace."""

    map: Map
    inputs: tuple[Variable, ...]
    replaces: tuple[Variable, ...]


def placed_maps(node: Apply) -> list[Placed]:
    """Return a node's maps, each with its own inputs and outputs."""
    placed = []
    outputs = list(node.outputs)
    for m, route in zip(node.op.maps, node.op.routes, strict=True):
        own, outputs = outputs[: len(m.job.outputs)], outputs[len(m.job.outputs) :]
        placed.append(Placed(m, tuple(node.inputs[i] for i in route), tuple(own)))
    return placed


def make_node(placed: Sequence[Placed]) -> list[tuple[Variable, Variable]]:
    """Make one node of several maps; each input is taken once.

    Returns
    -------
    list of (Variable, Variable)
        What is replaced by what.
    """
    inputs: dict[Variable, int] = {}
    routes = [[inputs.setdefault(v, len(inputs)) for v in part.inputs] for part in placed]
    node = MapRectOp([part.map for part in placed], routes).make_node(*inputs)
    replaced = [variable for part in placed for variable in part.replaces]
    return list(zip(replaced, node.outputs, strict=True))


class _Union:
    """The inputs of two maps together, each once."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.data: list[JobData | None] = []
        self.variables: list[Variable] = []
        self._known: dict[Any, int] = {}

    def add(self, part: Placed) -> list[int]:
        """Add a map's inputs; return where each is now."""
        variables = iter(part.inputs)
        sources: list[Any] = [next(variables) if held is None else held for held in part.map.data]
        positions = [-1] * len(sources)

        def place(i: int) -> int:
            if positions[i] >= 0:
                return positions[i]
            slot = part.map.job.inputs[i]
            shapes = None if slot.shapes is None else place(slot.shapes)
            key = (sources[i], slot.type, slot.per_job, shapes)
            if key not in self._known:
                self._known[key] = len(self.slots)
                self.slots.append(replace(slot, shapes=shapes))
                held = isinstance(sources[i], JobData)
                self.data.append(sources[i] if held else None)
                if not held:
                    self.variables.append(sources[i])
            positions[i] = self._known[key]
            return positions[i]

        for i in range(len(sources)):
            place(i)
        return positions


def fuse(a: Placed, b: Placed) -> Placed | None:
    """Return one map that evaluates both together, or None where they have nothing in common."""
    alike = ("n_jobs", "grain_size", "on_error")
    if any(getattr(a.map, name) != getattr(b.map, name) for name in alike):
        return None
    if a.map.on_error == "reject" and a.map.origin != b.map.origin:
        return None  # A job that is rejected must not take another map's job with it.
    union = _Union()
    positions = union.add(a), union.add(b)
    slots = tuple(union.slots)
    first, second = (
        part.map.job.reroute(where, slots) for part, where in zip((a, b), positions, strict=True)
    )
    job = first.fuse(second)
    if job is None:
        return None
    fused = replace(a.map, job=job, data=tuple(union.data))
    return Placed(fused, tuple(union.variables), (*a.replaces, *b.replaces))


def merged(nodes: Sequence[Apply]) -> list[tuple[Variable, Variable]]:
    """Return the replacements that make one node of several independent ones."""
    together: list[Placed] = []
    for part in (part for node in nodes for part in placed_maps(node)):
        for position, other in enumerate(together):
            fused = fuse(other, part)
            if fused is not None:
                together[position] = fused
                break
        else:
            together.append(part)
    return make_node(together)


def map_nodes(fgraph: Any) -> list[Apply]:
    """Return the nodes of maps, each after those it depends on."""
    if not any(isinstance(node.op, MapRectOp) for node in fgraph.apply_nodes):
        return []
    return [node for node in fgraph.toposort() if isinstance(node.op, MapRectOp)]


class MapRewriter(GraphRewriter):
    """A rewrite of the nodes of maps."""

    @override
    def add_requirements(self, fgraph: Any) -> None:
        fgraph.attach_feature(ReplaceValidate())


class FillFromShape(MapRewriter):
    """Let what only has an output's shape (its first cotangent) not wait for its value."""

    @override
    def apply(self, fgraph: Any) -> None:
        if not map_nodes(fgraph):
            return
        for node in fgraph.toposort():
            if isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, Second):
                model, value = node.inputs
                shape = _shape_without_value(model)
                if shape is not None and node.outputs[0].type.shape == model.type.shape:
                    filled = alloc(value, *shape)
                    fgraph.replace_validate(node.outputs[0], filled, reason="map_rect_fill")


def _shape_without_value(variable: Any) -> tuple[Any, ...] | None:
    """Return a variable's shape where it is known without the value, or else None."""
    if None not in variable.type.shape:
        return tuple(variable.type.shape)
    node = variable.owner
    if node is not None and isinstance(node.op, Elemwise):
        whole = (v for v in node.inputs if True not in v.type.broadcastable)
        return next((shape for v in whole if (shape := _shape_without_value(v)) is not None), None)
    if node is None or not isinstance(node.op, MapRectOp):
        return None
    shapes = node.op.infer_shape(node, [tuple(v.shape) for v in node.inputs])
    return tuple(shapes[node.outputs.index(variable)])


class DropUnused(MapRewriter):
    """Drop outputs that nobody uses, and inputs that no output needs any more."""

    @override
    def apply(self, fgraph: Any) -> None:
        for node in reversed(map_nodes(fgraph)):
            parts = []
            for part in placed_maps(node):
                kept = [k for k, v in enumerate(part.replaces) if fgraph.clients[v]]
                if kept:
                    pruned, positions = part.map.keep(kept).pruned()
                    parts.append(
                        Placed(
                            pruned,
                            tuple(part.inputs[k] for k in positions),
                            tuple(part.replaces[k] for k in kept),
                        )
                    )
            if parts and sum(len(part.replaces) for part in parts) < len(node.outputs):
                fgraph.replace_all_validate(make_node(parts), reason="map_rect_drop_unused")


class MergeMaps(MapRewriter):
    """Make one node of maps that do not depend on each other."""

    @override
    def apply(self, fgraph: Any) -> None:
        remaining = map_nodes(fgraph)
        if len(remaining) < 2:
            return
        ancestors, bitflags = ancestor_bitsets(fgraph)
        while len(remaining) > 1:
            independent = greedy_independent_subset(ancestors, bitflags, remaining)
            if len(independent) > 1:
                fgraph.replace_all_validate_remove(
                    merged(independent), remove=independent, reason="map_rect_merge"
                )
                update_ancestors_after_contraction(ancestors, bitflags, independent)
            done = set(independent)
            remaining = [node for node in remaining if node not in done]


class RememberEvaluations(MapRewriter):
    """Keep what the ranks have computed where a pullback must wait for its map's value.

    A cotangent that depends on the value (predictions gathered, the likelihood outside of the
    map) forces a second round trip. What is remembered on the rank is looked up by the content of
    the inputs, so that a result never depends on it.
    """

    @override
    def apply(self, fgraph: Any) -> None:
        nodes = map_nodes(fgraph)
        if len(nodes) < 2:
            return
        parts = [placed_maps(node) for node in nodes]
        for later, earlier in combinations(range(len(nodes) - 1, -1, -1), 2):
            for i, k in product(range(len(parts[earlier])), range(len(parts[later]))):
                a, b = remembering(parts[earlier][i], parts[later][k])
                parts[earlier][i], parts[later][k] = a, b
        for node, new in zip(reversed(nodes), reversed(parts), strict=True):
            if any(part.map != old for part, old in zip(new, node.op.maps, strict=True)):
                # From the last to the first: a node's inputs are then still what they were.
                fgraph.replace_all_validate(make_node(new), reason="map_rect_remember")


def remembering(a: Placed, b: Placed) -> tuple[Placed, Placed]:
    """Let `b` use what `a`, evaluated before it, has in common with it."""
    if isinstance(a.map.job, NumericJob) and isinstance(b.map.job, NumericJob):
        same = a.map.job.function == b.map.job.function
        return (_numeric_memory(a), _numeric_memory(b)) if same else (a, b)
    if isinstance(a.map.job, GraphJob) and isinstance(b.map.job, GraphJob):
        return _split(a, b)
    return a, b


def _numeric_memory(part: Placed) -> Placed:
    job, data = part.map.job, part.map.data
    assert isinstance(job, NumericJob)
    arguments = [*job.call.leaves, *([] if job.call.job_id is None else [job.call.job_id])]
    held = [None if (d := data[i]) is None else d.digest for i in arguments]
    supplied = tuple(i for i in arguments if data[i] is None)
    call = job.call
    asked = (*call.structures, call.arguments, call.job_id is None)
    types = [str(job.inputs[i].type) for i in arguments]
    memory = Memory(object_digest((job.function.digest, held, asked, types)), supplied)
    return replace(part, map=replace(part.map, job=replace(job, memory=memory)))


def _split(a: Placed, b: Placed) -> tuple[Placed, Placed]:
    if (a.map.n_jobs, a.map.grain_size) != (b.map.n_jobs, b.map.grain_size):
        return a, b
    union = _Union()
    first = union.add(a)
    n_slots, n_variables = len(union.slots), len(union.variables)
    second = union.add(b)
    slots = tuple(union.slots)
    own, other = a.map.job.reroute(first, slots[:n_slots]), b.map.job.reroute(second, slots)
    assert isinstance(own, GraphJob)
    assert isinstance(other, GraphJob)
    found = common_work(own, other)
    if found is None:
        return a, b
    common, first_whole, second_whole = found
    data = tuple(union.data)
    held = [None if d is None else d.digest for d in data[:n_slots]]
    supplied = tuple(i for i in range(n_slots) if data[i] is None)
    memory = Memory(object_digest((common, held)), supplied)
    records = SplitJob(own, common, first_whole, True, memory)
    recalls = SplitJob(other, common, second_whole, False, memory)
    variables = tuple(union.variables)
    return (
        Placed(
            replace(a.map, job=records, data=data[:n_slots]), variables[:n_variables], a.replaces
        ),
        Placed(replace(b.map, job=recalls, data=data), variables, b.replaces),
    )


class LoadJaxDispatch(GraphRewriter):
    """Tell PyTensor's JAX backend of maps when, and only when, it is used."""

    @override
    def apply(self, fgraph: Any) -> None:
        if map_nodes(fgraph):
            import pymc_mpimap.dispatch.jax  # noqa: F401 # registers itself


# After the canonical form, in which equal inputs are one variable and cotangents are simple;
# before elementwise fusion (49) and in-placing (50), which hide dependencies.
optdb.register("map_rect_fill", FillFromShape(), "fast_run", "fast_compile", position=48.0)
optdb.register("map_rect_drop_unused", DropUnused(), "fast_run", "fast_compile", position=48.1)
optdb.register("map_rect_merge", MergeMaps(), "fast_run", "fast_compile", position=48.2)
optdb.register(
    "map_rect_remember", RememberEvaluations(), "fast_run", "fast_compile", position=48.3
)
optdb.register("map_rect_jax_dispatch", LoadJaxDispatch(), "jax", position=48.4)
