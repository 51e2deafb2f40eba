"""A program on a worker: the shares that are this rank's, and what it replies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np

from pymc_mpimap.errors import Incident
from pymc_mpimap.pool.head import Head
from pymc_mpimap.pool.inbox import Inbox
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.portrait import check_sources, loaded_sources
from pymc_mpimap.pool.protocol import Define, Layout, Packing, Transfer
from pymc_mpimap.pool.reply import Reply
from pymc_mpimap.pool.settings import apply_settings
from pymc_mpimap.pool.share import Share
from pymc_mpimap.pool.work import Work

__all__ = ["Part"]


class Part:
    """A program on this rank: its shares, what computes them, and the reply."""

    def __init__(self, define: Define, comm: Any, rank: int):
        apply_settings(define.settings)
        # What came by name was imported here: later, perhaps, than when the ranks met.
        here = f"rank {rank} on {socket.gethostname()}"
        check_sources(define.sources, loaded_sources(), here)
        define.dependencies.check(define.program.maps, define.sources, here)
        self.comm, self.rank = comm, rank
        self.program = define.program
        self.shares = [
            Share(m, low, high, rank)
            for m, (low, high) in zip(self.program.maps, define.runs, strict=True)
        ]
        self.works: list[Work] | None = None
        self.parent = 0
        self.warm = False
        self.head: Head | None = None

    def take_over(self, transfer: Transfer) -> None:
        """Work on other jobs, with data of which only those of new jobs were sent."""
        shares = []
        for share, (low, high), gained in zip(
            self.shares, transfer.runs, transfer.gained, strict=True
        ):
            blocks = share.map.blocks
            moved = share.map.moved(blocks.first_job(low), blocks.first_job(high), gained)
            shares.append(Share(moved, low, high, self.rank))
        self.shares = shares

    def costs(self) -> list[np.ndarray]:
        """Return for each map the nanoseconds that each block took since this was asked last."""
        return [work.costs() for work in self.works or ()]

    def lay_out(self, layout: Layout, link_to: Callable[[int], Link], inbox: Inbox) -> None:
        """Take over the place in the tree, and forget what was made for other shapes."""
        self.close()
        self.works = self.head = None
        self.warm = layout.warm
        self.parent = 0 if layout.branch is None else layout.branch.parent
        if layout.branch is not None and layout.branch.children:
            self.head = Head(layout, self.program.maps, link_to)
            inbox.current = self.head.own

    def evaluate(self, inbox: Inbox) -> list[Incident]:
        """Evaluate all shares into the reply."""
        failures: list[Incident] = []
        for work in self.works or self.prepare(inbox):
            failures += work.evaluate()
        self.warm = True
        return failures

    def prepare(self, inbox: Inbox) -> list[Work]:
        """Make the reply's buffer, and what computes into it."""
        inputs = [[inbox.current[i] for i in used] for used in self.program.uses]
        if self.head is not None:
            self.works = [Work(share, own) for share, own in zip(self.shares, inputs, strict=True)]
            self.reply = Reply(self.comm, Packing(self.head.branch.answer), self.parent)
            self.head.prepare(self.works, self.reply.places)
            return self.works
        parts = [share.outputs(own) for share, own in zip(self.shares, inputs, strict=True)]
        packing = Packing([part for own in parts for part in own], elsewhere=inbox.places)
        self.reply = Reply(self.comm, packing, self.parent)
        rest = iter(self.reply.places)
        self.works = [
            Work(share, own, [next(rest) for _ in share.map.job.outputs])
            for share, own in zip(self.shares, inputs, strict=True)
        ]
        return self.works

    def close(self) -> None:
        """Send no more; nothing may be on its way."""
        # To another rank, which may be gone, something may be on its way for ever.
        if self.works is not None and self.reply.dest == 0:
            self.reply.close()
