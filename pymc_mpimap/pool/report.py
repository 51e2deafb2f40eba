"""What a pool has done: how often, how fast, how busy each rank was, what was rejected."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pymc_mpimap.errors import Incident, NotFinite
from pymc_mpimap.pool.finite import not_finite
from pymc_mpimap.pool.program import Program
from pymc_mpimap.tally import N_COUNTS, REASONS, TALLY

__all__ = ["PoolReport", "Recorder"]

MOST_LINES = 5
"""How many rejected jobs are printed; all of them are in the report."""

_log = logging.getLogger("pymc_mpimap")


@dataclass(frozen=True)
class PoolReport:
    """A pool's account of itself; ``print`` it.

    Attributes
    ----------
    evaluations : int
        Round trips: with NUTS one for each value and gradient.
    seconds : float
        Wall time from the first evaluation's end (which includes compilation) to the last's.
    busy : tuple of float
        For each rank, the seconds that it spent in jobs during that time.
    hosts : tuple of str
        Where each rank runs.
    rejected : dict of str to int
        How often each job raised and its proposal was rejected.
    messages : dict of str to str
        For each such job, its last exception.
    not_finite : dict of str to int
        How often each job's value was NaN or infinite, by job and value ("job 3 of f: nan"). NaN
        and -inf reject the proposal.
    solves : int
        How many ODEs were solved, on all ranks, by `solve_ivp`.
    failed_solves : dict of str to int
        Why solves failed, and how often each; their proposals were rejected.
    lost : tuple of str
        Which ranks were lost, how, and what followed.
    """

    evaluations: int
    seconds: float
    busy: tuple[float, ...]
    hosts: tuple[str, ...]
    rejected: dict[str, int] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    solves: int = 0
    failed_solves: dict[str, int] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    not_finite: dict[str, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Evaluations a second; 0 before the second one."""
        return (self.evaluations - 1) / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        ranks = len(self.busy)
        lines = [
            (
                f"{self.evaluations} evaluations on {ranks} rank{'s' if ranks > 1 else ''}, "
                f"{self.per_second:.1f} a second"
            ),
        ]
        for rank, (busy, host) in enumerate(zip(self.busy, self.hosts, strict=True)):
            share = 100 * busy / self.seconds if self.seconds > 0 else 0.0
            lines.append(f"  rank {rank} on {host}: busy {share:5.1f} % of the time")
        lines += [f"  {said}" for said in self.lost]
        return "\n".join([*lines, *self.troubles()])

    def troubles(self) -> list[str]:
        """Return the lines on what was rejected, was not finite, or could not be solved."""
        rejected = {f"{job}: {self.messages[job]}": n for job, n in self.rejected.items()}
        lines = _most_often("rejected", rejected, "rejected")
        lines += _most_often("not finite", self.not_finite, "not_finite")
        if self.failed_solves:
            lines.append(f"  {sum(self.failed_solves.values())} of {self.solves} solves failed:")
            lines += [f"    {times} times {why}" for why, times in self.failed_solves.items()]
        return lines


def _most_often(what: str, counts: Mapping[str, int], name: str) -> list[str]:
    often = sorted(counts, key=lambda job: -counts[job])
    lines = []
    for job in often[:MOST_LINES]:
        times = "once" if counts[job] == 1 else f"{counts[job]} times"
        lines.append(f"  {what} {times}: {job}")
    if rest := often[MOST_LINES:]:
        total = sum(counts[job] for job in rest)
        lines.append(f"  {what} {total} times: {len(rest)} more jobs, see report().{name}")
    return lines


class Recorder:
    """Collects what a `PoolReport` tells."""

    def __init__(self, hosts: Sequence[str]):
        self.hosts = tuple(hosts)
        self._busy = [0] * len(hosts)
        self._evaluations = 0
        self._begun = self._ended = 0
        self._rejected: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._lost: list[str] = []
        self._rejected_now: set[str] = set()
        self._not_finite: Counter[str] = Counter()
        self._told = 0
        self._counted = np.zeros(N_COUNTS, np.int64)
        self._before = TALLY.copy()

    def from_the_beginning(self) -> None:
        """Count all that was solved in this process, before there was a pool too."""
        self._before[:] = 0

    def counted(self, counts: Sequence[int] | np.ndarray) -> None:
        """Add to what this process counts, see `tally`, what another rank has counted."""
        self._counted += counts

    def evaluated(self, busy: Sequence[int], ended: int) -> None:
        """Record an evaluation, the nanoseconds that each rank worked for it, and when it ended."""
        self._ended = ended
        if self._evaluations == 0:
            self._begun = self._ended
        else:
            for rank, spent in enumerate(busy):
                self._busy[rank] += spent
        self._evaluations += 1

    def lost(self, said: str) -> None:
        """Record that a rank was lost, and what followed."""
        self._lost.append(said)

    def noted(self, incidents: Sequence[Incident]) -> None:
        """Record jobs that raised and whose proposal is rejected, or whose value is not finite."""
        for failure in incidents:
            if isinstance(failure, NotFinite):
                self._not_finite[str(failure)] += 1
                continue
            job = f"job {failure.job} of {failure.function}"
            self._rejected[job] += 1
            self._messages[job] = failure.exception
            self._rejected_now.add(job)

    def gave(
        self, program: Program, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> None:
        """Record which jobs' values of an evaluation are not finite, but for the rejected ones."""
        if odd := not_finite(program, inputs, outputs, self._rejected_now):
            self._not_finite.update(odd)
        if self._rejected_now:
            self._rejected_now.clear()

    def tell(self) -> None:
        """Log what kept proposals from being taken, unless all of it was told before.

        Values of -inf alone are no trouble: many models have them outside of their support.
        """
        report = self.report()
        serious = [report.rejected, report.failed_solves]
        serious.append({k: n for k, n in report.not_finite.items() if not k.endswith(": -inf")})
        count = sum(sum(counts.values()) for counts in serious)
        if count > self._told:
            self._told = count
            _log.warning(
                "Of %d evaluations of the pool, some gave no valid value:\n%s",
                report.evaluations,
                "\n".join(report.troubles()),
            )

    def report(self) -> PoolReport:
        """Return the account so far."""
        solves, *failed = (self._counted + TALLY - self._before).tolist()
        return PoolReport(
            self._evaluations,
            1e-9 * (self._ended - self._begun),
            tuple(1e-9 * spent for spent in self._busy),
            self.hosts,
            dict(self._rejected),
            dict(self._messages),
            solves,
            {
                REASONS.get(number, f"of the solver's error {-number}"): times
                for number, times in enumerate(failed, start=1)
                if times
            },
            tuple(self._lost),
            dict(self._not_finite),
        )
