"""The controller's side: send each worker what changed, collect the answers."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.errors import JobError, JobFailure, PoolError
from pymc_mpimap.map import Map
from pymc_mpimap.pool.balance import even_cuts
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.program import Program, assemble
from pymc_mpimap.pool.protocol import (
    DOWN,
    HEADER,
    PAYLOAD,
    UP,
    Command,
    Define,
    Layout,
    Packing,
    Status,
    new_buffer,
    same_bytes,
)
from pymc_mpimap.pool.report import Recorder
from pymc_mpimap.pool.share import Share, ShareResult, output_shapes
from pymc_mpimap.pool.wait import Patience, wait_until
from pymc_mpimap.signature import packed_offsets
from pymc_mpimap.tally import TALLY

__all__ = ["Controller"]


def current_settings() -> dict[str, Any]:
    """Return PyTensor's configuration where it changes compiled code, for the workers."""
    names = ("mode", "linker", "optimizer", "floatX", "cast_policy", "numba__fastmath")
    settings = {name: getattr(config, name) for name in names}
    if "jax" in sys.modules:
        settings["jax_enable_x64"] = sys.modules["jax"].config.jax_enable_x64
    return settings


class Link:
    """The line to one worker: its buffers and persistent requests."""

    def __init__(self, comm: Any, rank: int, patience: Patience):
        self.comm, self.rank, self.patience = comm, rank, patience
        self.busy = 0.0
        self.counts: list[int] = []
        self._sends: dict[int, Any] = {}
        self._sending: Any = None
        self._owed: int | None = None
        self._down_into(new_buffer(8 * HEADER))
        self._up_into(new_buffer(8 * HEADER))

    def _down_into(self, buffer: np.ndarray) -> None:
        self.message, self._sends = buffer, {}
        self._header = buffer[: 8 * HEADER].view(np.int64)

    def _up_into(self, buffer: np.ndarray) -> None:
        self.answer = buffer
        self._answer_header = buffer[: 8 * HEADER].view(np.int64)
        self._receive = self.comm.Recv_init(buffer, source=self.rank, tag=UP)

    def reserve(self, down: int, up: int) -> None:
        """Make room for messages of these sizes; nothing may be under way."""
        if down > len(self.message):
            self._down_into(new_buffer(down))
        if up > len(self.answer):
            self._up_into(new_buffer(up))

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way; the answer to an interrupted evaluation is dropped.

        Returns
        -------
        bool
            Whether that was so in time.
        """
        if self._owed is not None and self.collect(timeout) is None:
            return False
        if self._sending is not None:
            if not wait_until(self._sending.Test, self.patience, timeout):
                return False
            self._sending = None
        return True

    def send(self, command: Command, evaluation: int, number: int, size: int) -> None:
        """Send what stands in the message buffer, up to `size`, with this header.

        The link must be settled, and the caller not be interrupted.
        """
        self._header[:4] = (command, evaluation, number, 0)
        if size not in self._sends:
            self._sends[size] = self.comm.Send_init(self.message[:size], dest=self.rank, tag=DOWN)
        self._sending = self._sends[size]
        self._receive.Start()
        self._sending.Start()
        self._owed = evaluation

    def control(self, number: int, order: Define | Layout) -> None:
        """Send a definition or a layout: not on the hot path. As for `send`."""
        payload = np.frombuffer(cloudpickle.dumps(order, protocol=5), np.uint8)
        self._header[:4] = (Command.CONTROL, 0, number, len(payload))
        requests = [
            self.comm.Isend(self.message[: 8 * HEADER], dest=self.rank, tag=DOWN),
            self.comm.Isend(payload, dest=self.rank, tag=PAYLOAD),
        ]
        for request in requests:
            wait_until(request.Test, self.patience)

    def collect(self, timeout: float | None = None) -> tuple[Status, list[JobFailure]] | None:
        """Wait for the answer that is owed; None if out of time.

        Can be interrupted while it waits, and called again.
        """
        if not wait_until(self._receive.Test, self.patience, timeout):
            return None
        with Uninterrupted():
            answered, status, busy, size, *counts = self._answer_header.tolist()
            failures: list[JobFailure] = []
            if size:
                payload = np.empty(size, dtype=np.uint8)
                request = self.comm.Irecv(payload, source=self.rank, tag=PAYLOAD)
                wait_until(request.Test, self.patience)
                failures = pickle.loads(payload.tobytes())
            owed, self._owed = self._owed, None
        if answered != owed:
            raise PoolError(
                f"rank {self.rank} answered evaluation {answered} where {owed} was asked for; "
                "please report this"
            )
        self.busy, self.counts = busy * 1e-9, counts
        return Status(status), failures


class _Assignment:
    """A program as the controller knows it: who works on what, and what was last sent."""

    def __init__(self, number: int, program: Program, ranks: int):
        self.number, self.program = number, program
        self.cuts = [even_cuts(m.blocks.count, ranks) for m in program.maps]
        self.shares = [
            [Share(m, cuts[rank], cuts[rank + 1], rank) for rank in range(ranks)]
            for m, cuts in zip(program.maps, self.cuts, strict=True)
        ]
        for shares in self.shares:
            own = shares[0]
            own.map = own.map.owned(own.first, own.last)
        by_jobs = {
            (m.n_jobs, m.grain_size): [(share.first, share.last) for share in shares]
            for m, shares in zip(program.maps, self.shares, strict=True)
        }
        self.job_runs = [by_jobs[move.jobs] if move.jobs else None for move in program.moves]
        self.working = [
            rank
            for rank in range(1, ranks)
            if any(shares[rank].low < shares[rank].high for shares in self.shares)
        ]
        self.defined = False
        self.last: list[np.ndarray] | None = None
        self.packings: dict[int, Packing] = {}
        self.answers: dict[int, Packing] = {}
        self.offsets: dict[int, np.ndarray] = {}

    def measure(self, values: list[np.ndarray]) -> None:
        """Note where each job's part of the ragged inputs begins."""
        self.offsets = {
            move.shapes: packed_offsets(values[move.shapes])
            for move in self.program.moves
            if move.shapes is not None
        }

    def part(self, i: int, rank: int, value: np.ndarray) -> np.ndarray:
        """Return a rank's part of an input."""
        runs, move = self.job_runs[i], self.program.moves[i]
        if runs is None:
            return value
        first, last = runs[rank]
        if move.shapes is not None:
            offsets = self.offsets[move.shapes]
            first, last = offsets[first], offsets[last]
        return value[first:last]


class Controller:
    """Evaluates programs on all ranks of a communicator, of which this is rank 0.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
        The private communicator; None for this process alone.
    hosts : sequence of str
        Where each rank runs.
    patience : Patience
    """

    def __init__(self, comm: Any, hosts: Sequence[str], patience: Patience):
        self.hosts = hosts
        self.links = [Link(comm, rank, patience) for rank in range(1, len(hosts))]
        self._assignments: dict[tuple[Program, str], _Assignment] = {}
        self._evaluation = 0

    def evaluate(
        self, program: Program, inputs: Sequence[np.ndarray], recorder: Recorder
    ) -> list[np.ndarray]:
        """Return a program's outputs, and record how it went."""
        program.check(inputs)
        # Compiled code belongs to the PyTensor mode that it was compiled in.
        key = program, config.mode
        assignment = self._assignments.get(key)
        if assignment is None:
            assignment = _Assignment(len(self._assignments), program, len(self.hosts))
            self._assignments[key] = assignment
        values = [np.asarray(inputs[move.position]) for move in program.moves]
        if assignment.working and not assignment.defined:
            counted = TALLY.copy()
            self._warm(assignment, values)
            recorder.counted(counted - TALLY)  # What is done to compile is no evaluation.
        for rank in assignment.working:
            self.links[rank - 1].settle()
        with Uninterrupted():
            self._dispatch(assignment, values)
        busy = [0.0] * len(self.hosts)
        results: list[list[ShareResult | None]] = [[None] * len(self.hosts) for _ in program.maps]
        failed: list[JobError] = []
        begun = time.perf_counter()
        try:
            for k, used in enumerate(program.uses):
                own = [assignment.part(i, 0, values[i]) for i in used]
                results[k][0] = assignment.shares[k][0].evaluate(own)
        except JobError as error:
            failed.append(error)
        busy[0] = time.perf_counter() - begun
        failures = [f for column in results if column[0] is not None for f in column[0].failures]
        for rank in assignment.working:
            link = self.links[rank - 1]
            answer = link.collect()
            assert answer is not None  # Without a time limit, there is one.
            status, reported = answer
            busy[rank] = link.busy
            recorder.counted(link.counts)
            if status == Status.FAILED:
                failed.append(JobError(reported[0]))
                continue
            failures += reported
            self._unpack(assignment, rank, link, results)
        if failed:
            raise min(failed, key=lambda error: error.failure.job)
        outputs: list[np.ndarray] = []
        for m, shares, column in zip(program.maps, assignment.shares, results, strict=True):
            present = [(s, r) for s, r in zip(shares, column, strict=True) if r is not None]
            outputs += assemble(m, [s.subtrees for s, _ in present], [r for _, r in present])
        recorder.rejected(failures)
        recorder.evaluated(busy)
        return outputs

    def _dispatch(self, assignment: _Assignment, values: list[np.ndarray]) -> None:
        """Send every working rank what changed since the last time."""
        self._evaluation += 1
        # Until all is sent, nothing is known of what the workers have: an error forgets it.
        last, assignment.last = assignment.last, None
        fits = last is not None and all(
            a.shape == b.shape for a, b in zip(values, last, strict=True)
        )
        if fits:
            assert last is not None
            fits = all(same_bytes(values[i], last[i]) for i in assignment.program.shape_moves)
        if not fits:
            self._lay_out(assignment, values)
        for rank in assignment.working:
            link = self.links[rank - 1]
            packing = assignment.packings[rank]
            changed = tuple(
                i
                for i, value in enumerate(values)
                if not fits
                or not same_bytes(
                    assignment.part(i, rank, value),
                    assignment.part(i, rank, last[i]),  # type: ignore[index]
                )
            )
            flags = link.message[8 * HEADER : 8 * HEADER + packing.flags]
            flags[:] = 0
            flags[list(changed)] = 1
            views, size = packing.views(link.message, changed)
            for i, view in zip(changed, views, strict=True):
                view[...] = assignment.part(i, rank, values[i])
            link.send(Command.EVALUATE, self._evaluation, assignment.number, size)
        if fits and last is not None:
            for mine, value in zip(last, values, strict=True):
                mine[...] = value
            assignment.last = last
        else:
            assignment.last = [value.copy() for value in values]

    def _lay_out(self, assignment: _Assignment, values: list[np.ndarray]) -> None:
        """Agree with the workers on the shapes of all that will be sent, either way."""
        moves = assignment.program.moves
        assignment.measure(values)
        if not assignment.defined:
            self._define(assignment)
        for rank in assignment.working:
            link = self.links[rank - 1]
            parts = [assignment.part(i, rank, value) for i, value in enumerate(values)]
            layout = tuple((part.dtype.str, part.shape) for part in parts)
            assignment.packings[rank] = Packing(layout, len(moves))
            assignment.answers[rank] = self._answer(assignment, rank, parts)
            link.control(assignment.number, Layout(assignment.number, layout))
            link.reserve(assignment.packings[rank].nbytes, assignment.answers[rank].nbytes)

    def _warm(self, assignment: _Assignment, values: list[np.ndarray]) -> None:
        """Compile before the others do, which then find the code in PyTensor's cache."""
        assignment.measure(values)
        for shares, used in zip(assignment.shares, assignment.program.uses, strict=True):
            shares[0].warm([assignment.part(i, 0, values[i]) for i in used])

    def _define(self, assignment: _Assignment) -> None:
        """Send each worker the program and the data of its jobs, once."""
        settings = current_settings()
        for rank in assignment.working:
            mine = [shares[rank] for shares in assignment.shares]
            owned = tuple(share.map.owned(share.first, share.last) for share in mine)
            program = replace(assignment.program, maps=owned)
            runs = tuple((share.low, share.high) for share in mine)
            self.links[rank - 1].control(
                assignment.number, Define(assignment.number, program, runs, settings)
            )
        assignment.defined = True

    def _answer(self, assignment: _Assignment, rank: int, parts: list[np.ndarray]) -> Packing:
        """Return how a worker's answer is packed."""
        shapes: list[tuple[Any, tuple[int, ...]]] = []
        for shares, used in zip(assignment.shares, assignment.program.uses, strict=True):
            share = shares[rank]
            supplied = iter(parts[i] for i in used)
            inputs = [
                next(supplied) if held is None else _shape_data(share.map, i, share)
                for i, held in enumerate(share.map.data)
            ]
            sizes = output_shapes(share.map, inputs, share.first, share.last, len(share.subtrees))
            for slot, shape in zip(share.map.job.outputs, sizes, strict=True):
                shapes.append((slot.type.dtype, shape))
        return Packing(shapes)

    def _unpack(
        self,
        assignment: _Assignment,
        rank: int,
        link: Link,
        results: list[list[ShareResult | None]],
    ) -> None:
        packing = assignment.answers[rank]
        arrays, _ = packing.views(link.answer, tuple(range(len(packing.parts))))
        rest = iter(arrays)
        for k, m in enumerate(assignment.program.maps):
            results[k][rank] = ShareResult([next(rest) for _ in m.job.outputs])

    def stop(self, timeout: float) -> bool:
        """Tell all workers to stop; say whether all of them answered in time."""
        deadline = time.perf_counter() + timeout

        def left() -> float:
            return max(0.0, deadline - time.perf_counter())

        if not all(link.settle(left()) for link in self.links):
            return False
        with Uninterrupted():
            self._evaluation += 1
            for link in self.links:
                link.send(Command.STOP, self._evaluation, 0, 8 * HEADER)
        return all(link.collect(left()) is not None for link in self.links)


def _shape_data(m: Map, i: int, share: Share) -> Any:
    """Return held data only where the shapes of outputs follow from them."""
    if any(i in (slot.shapes, slot.like) for slot in m.job.outputs):
        held = m.data[i]
        return None if held is None else held.block(share.first, share.last)
    return None
