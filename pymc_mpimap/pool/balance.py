"""The balance of load: cut points of contiguous runs of blocks, which follow measured costs.

A rank's time is the sum of what its blocks cost, and an evaluation lasts as long as its slowest
rank. `balanced_cuts` finds the best cut points for given costs. `Balance` decides when costs are
asked for and when new cut points are worth the move: results do not depend on them, only time does.

Speeds of ranks are not part of the model: a block costs what it took where it ran last. On a rank
that is half as fast, blocks look twice as expensive, and so some of them leave it; they then turn
out to be cheaper, and the next step is smaller. Where the steps end, all ranks are busy for equally
long, which is what is wanted. Steps that do not keep what they promised make `Balance` ask for
more, and wait longer, before the next.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from statistics import median

import numpy as np

__all__ = ["Balance", "balanced_cuts", "even_cuts"]


def even_cuts(n_blocks: int, n_ranks: int) -> list[int]:
    """Return the cut points of contiguous runs of blocks, as equal as can be.

    Where they cannot be equal, rank 0, which has the chain to run, is not given more than others.

    Returns
    -------
    list of int, length n_ranks + 1
        Rank r works on the blocks ``cuts[r] <= block < cuts[r + 1]``.

    Examples
    --------
    >>> even_cuts(10, 4)
    [0, 2, 5, 7, 10]
    >>> even_cuts(2, 4)
    [0, 0, 1, 1, 2]
    """
    return [n_blocks * rank // n_ranks for rank in range(n_ranks + 1)]


_UNITS = 2**50
"""Costs are counted in whole units, so many in all, so that sums and comparisons are exact."""


def balanced_cuts(costs: np.ndarray, n_ranks: int, head_start: float = 0.0) -> list[int]:
    """Return the cut points with which the slowest rank is as fast as can be.

    The time of the slowest rank is found by bisection: whether a time is enough is seen by giving
    each rank as many blocks as it can do in it. Of all cut points that need no more, those are
    taken that give each rank about an equal part of what is left, and none nothing while blocks
    are left.

    Parameters
    ----------
    costs : array, shape (n_blocks,)
        Seconds, none of them negative.
    n_ranks : int
    head_start : float
        For how many seconds rank 0 is busy besides its blocks. Negative where it is the others
        who lose time, to the messages for example.

    Returns
    -------
    list of int, length n_ranks + 1
        As `even_cuts` returns them; the same where all costs are zero.

    Examples
    --------
    >>> balanced_cuts(np.array([5.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 2)
    [0, 1, 6]
    >>> balanced_cuts(np.ones(10), 2, head_start=4.0)
    [0, 3, 10]
    """
    costs = np.asarray(costs, dtype=float)
    n_blocks, total = len(costs), float(costs.sum())
    if n_ranks == 1 or not total > 0:
        return even_cuts(n_blocks, n_ranks)
    scale = _UNITS / (total + abs(head_start))
    units = np.rint(costs * scale).astype(np.int64)
    head, largest = round(head_start * scale), int(units.max())
    ends = np.concatenate([[0], np.cumsum(units)])
    # No partition can be faster than `low`, and greedy ones are never slower than `high`.
    low = max(head, largest + min(head, 0), -(-(int(ends[-1]) + head) // n_ranks))
    high = max(head, (int(ends[-1]) + max(head, 0)) // n_ranks + 1 + largest)
    while low < high:
        middle = (low + high) // 2
        if _is_enough(ends, n_ranks, head, middle):
            high = middle
        else:
            low = middle + 1
    return _spread(ends, n_ranks, head, low)


def _is_enough(ends: np.ndarray, n_ranks: int, head: int, limit: int) -> bool:
    """Return whether all ranks can be done in `limit`."""
    cut = int(np.searchsorted(ends, limit - head, "right")) - 1
    reach = (np.searchsorted(ends, ends + limit, "right") - 1).tolist()
    for _ in range(n_ranks - 1):
        cut = reach[cut]
    return bool(cut == len(ends) - 1)


def _spread(ends: np.ndarray, n_ranks: int, head: int, limit: int) -> list[int]:
    """Return cut points such that no rank takes longer than `limit`, which is enough."""
    n_blocks = len(ends) - 1
    # From behind: where each rank must have begun, at the earliest, for the rest to be done.
    back = np.searchsorted(ends, ends - limit, "left").tolist()
    earliest = [n_blocks]
    for _ in range(n_ranks - 1):
        earliest.append(back[earliest[-1]])
    earliest.reverse()
    reach = (np.searchsorted(ends, ends + limit, "right") - 1).tolist()
    known = ends.tolist()
    begun, least, farthest = -head, 0, int(np.searchsorted(ends, limit - head, "right")) - 1
    cuts = [0]
    for rank in range(1, n_ranks):
        wanted = begun + (known[-1] - begun) // (n_ranks - rank + 1)
        after = min(bisect_right(known, wanted), n_blocks)
        # Rank 0, which has the chain to run, is not given more than its part.
        below = rank == 1 or 2 * wanted <= known[after - 1] + known[after]
        near = after - 1 if below else after
        least = max(least, earliest[rank - 1])
        most = max(least, min(farthest, n_blocks - (n_ranks - rank)))
        cut = max(least, min(near, most))
        cuts.append(cut)
        begun, least, farthest = known[cut], min(cut + 1, n_blocks), reach[cut]
    return [*cuts, n_blocks]


_MOST_DOUBT = 64


class Balance:
    """Decides when to move the cut points of a map, and where to.

    A pure state machine, without a clock: it is told what each evaluation took, says when it wants
    to know what each block costs, and answers that with new cut points or none.

    After the start and after each move, `ignored` evaluations pass (compilation, caches, memory
    touched for the first time); then it asks once, only for the averages to begin anew, and again
    after `first_interval`. The interval doubles with each answer that brings no move. Costs have
    drifted when in each of `in_a_row` looks a part of all time, more than `tolerance` and more
    than noise explains, was spent on other ranks than before, or the slowest rank took that much
    more. It then asks at once, for the averages to begin anew, and soon again.

    A move must promise a gain of `relative_gain`, of more than noise explains, and of
    `absolute_gain`. Moving is doubted when half of the promise is not kept, and when the cut points
    are to move again before `lasting` evaluations have passed, and those before them would be as
    good. Each doubt doubles the time until the next move and what counts as lasting, up to 64
    times, and the gain that is asked for, up to four times. Calm of that length halves them.

    Parameters
    ----------
    n_blocks, n_ranks : int
    relative_gain : float
        As a part of the time of an evaluation.
    absolute_gain : float
        In seconds an evaluation: below, other things matter more.
    ignored, first_interval, longest_interval : int
        In evaluations.
    tolerance : float
    in_a_row : int
    lasting : int

    Attributes
    ----------
    cuts : list of int, length n_ranks + 1
        Rank r works on the blocks ``cuts[r] <= block < cuts[r + 1]``.
    moves : int
        How often they have moved.
    asked : int
        How often costs were asked for.

    Examples
    --------
    >>> balance = Balance(n_blocks=4, n_ranks=2)
    >>> costs = np.array([3e-3, 1e-3, 1e-3, 1e-3])
    >>> for evaluation in range(1, 10):
    ...     if balance.wants_costs([4e-3, 2e-3], overhead=1e-5):
    ...         print(evaluation, balance.propose(costs))
    2 None
    6 [0, 1, 4]
    8 None
    """

    def __init__(
        self,
        n_blocks: int,
        n_ranks: int,
        *,
        relative_gain: float = 0.02,
        absolute_gain: float = 5e-6,
        ignored: int = 2,
        first_interval: int = 4,
        longest_interval: int = 128,
        tolerance: float = 0.05,
        in_a_row: int = 3,
        lasting: int = 64,
    ):
        self.cuts = even_cuts(n_blocks, n_ranks)
        self.moves = self.asked = 0
        self.n_blocks, self.n_ranks = n_blocks, n_ranks
        self.relative_gain, self.absolute_gain = relative_gain, absolute_gain
        self.ignored, self.first_interval = ignored, first_interval
        self.longest_interval, self._interval = longest_interval, first_interval
        self.tolerance, self.in_a_row, self.lasting = tolerance, in_a_row, lasting
        self._evaluations = self._calm_since = self._since = self._due = self._differs = 0
        self._discard, self._drifted, self._doubt = True, False, 1
        self._step = ignored
        self._wait: float = ignored if n_ranks > 1 and n_blocks > 1 else math.inf
        self._costs = np.full(n_blocks, math.nan)
        self._measured_by = np.full(n_blocks, -1)
        self._overheads: deque[float] = deque(maxlen=16)
        self._changes: deque[float] = deque(maxlen=16)
        self._last: np.ndarray | None = None
        self._expected = np.ones(n_ranks)
        self._noise = math.inf
        # Of so many normal numbers, the largest is about so many standard deviations above zero.
        self._extremes = math.sqrt(2 * math.log(n_ranks))
        self._before: list[int] | None = None
        self._promise: tuple[float, float] | None = None

    def wants_costs(self, busy: Sequence[float], overhead: float) -> bool:
        """Note what an evaluation took, and say whether costs are to be asked for.

        To be called after every evaluation; most calls only count. If true, each rank is asked
        for the average cost of each of its blocks since it was asked last (since the beginning
        at first), and `propose` is called with the answer. If that is not done, it is true again
        soon.

        Parameters
        ----------
        busy : sequence of float, length n_ranks
            The seconds that each rank spent on its blocks.
        overhead : float
            The seconds by which rank 0 began with its blocks, or stayed away from them, longer
            than others did: packing and sending, less what the others lose to messages.
        """
        self._wait -= 1
        return self._wait <= 0 and self._look(busy, overhead)

    def _look(self, busy: Sequence[float], overhead: float) -> bool:
        self._evaluations += self._step
        self._since += self._step
        if self._discard:
            return self._ask()
        self._wait = self._step
        self._overheads.append(overhead)
        times = np.array(busy, dtype=float)
        times[0] += overhead
        part, parts = _parts(times)
        if self._last is not None:
            self._changes.append(_elsewhere(parts, self._last))
        self._last = parts
        elsewhere, before = _elsewhere(parts, self._expected), float(self._expected.max())
        allowed = self.tolerance + self._noise * self._extremes
        differs = elsewhere > allowed or part > before * (1 + allowed)
        self._differs = self._differs + 1 if differs else 0
        if self._since >= self._due:
            return self._ask()
        if self._differs >= self.in_a_row and self._since >= self.first_interval * self._doubt:
            # What was measured since it asked, and before, is of other times.
            self._drifted = self._discard = True
            return self._ask()
        return False

    def _ask(self) -> bool:
        self.asked += 1
        self._wait = self._step
        return True

    def _measure(self, evaluations: int) -> None:
        """Ask when so many evaluations have passed."""
        self._discard = False
        self._since = self._differs = 0
        self._due = evaluations
        self._wait = self._step = min(max(evaluations // 8, 1), 8)
        self._changes.clear()
        self._last = None

    def propose(self, costs: np.ndarray, moving: float = 0.0) -> list[int] | None:
        """Return new cut points if they pay, and take them as given.

        Parameters
        ----------
        costs : array, shape (n_blocks,)
            The average seconds of each block since costs were asked for last; NaN where there
            are none.
        moving : float
            The seconds that a move takes. It must be won back in as many evaluations as there
            have been.

        Returns
        -------
        list of int, length n_ranks + 1, or None
            None: stay with `cuts`, always so if costs were not asked for just now.
        """
        if self._since < (self.ignored if self._discard else self.first_interval):
            return None  # It has not asked.
        if self._discard:
            self._measure(self.first_interval * self._doubt)
            return None
        self._learn(np.asarray(costs, dtype=float))
        if np.isnan(self._costs).all():
            self._stay()
            return None
        known = np.where(np.isnan(self._costs), np.nanmean(self._costs), self._costs)
        head = median(self._overheads) if self._overheads else 0.0
        times = self._times(known, head, self.cuts)
        now, (part, parts) = float(times.max()), _parts(times)
        if self._promise is not None:
            before, promised = self._promise
            self._doubts(part > (before + promised) / 2)
            self._promise = None
        # A rank's standard deviation relative to its time, if its time is normal. From differences
        # of neighbours, so that a drift is not taken for noise.
        self._noise = math.sqrt(math.pi) * median(self._changes or [0.0])
        cuts = balanced_cuts(known, self.n_ranks, head)
        times = self._times(known, head, cuts)
        if not self._pays(now, now - float(times.max()), moving):
            self._expected = parts
            self._stay()
            return None
        if self._before is not None and not self._lasted():
            useless = self._times(known, head, self._before).max() <= now
            self._doubts(bool(useless))
        self._calm_since = self._evaluations
        self._before, self.cuts = self.cuts, cuts
        promised, self._expected = _parts(times)
        self._promise = part, promised
        self._interval = self.first_interval * self._doubt
        self.moves += 1
        self._discard, self._since = True, 0
        self._wait = self._step = self.ignored
        return list(cuts)

    def _learn(self, costs: np.ndarray) -> None:
        """Average costs with those known, where these are still worth it."""
        costs = np.where(np.isfinite(costs) & (costs >= 0), costs, math.nan)
        measured, known = ~np.isnan(costs), ~np.isnan(self._costs)
        # Costs belong to a rank: where another one has measured before, only the new ones count.
        ranks = np.repeat(np.arange(self.n_ranks), np.diff(self.cuts))
        both = measured & known & (self._measured_by == ranks) & (not self._drifted)
        self._costs[both] = (self._costs[both] + costs[both]) / 2
        self._costs[measured & ~both] = costs[measured & ~both]
        self._measured_by[measured] = ranks[measured]
        self._drifted = False

    def _times(self, costs: np.ndarray, head: float, cuts: list[int]) -> np.ndarray:
        """Return the times of all ranks."""
        ends = np.concatenate([[0.0], np.cumsum(costs)])
        times = np.diff(ends[cuts])
        times[0] += head
        return times

    def _pays(self, now: float, gain: float, moving: float) -> bool:
        """Return whether a gain is worth a move."""
        relative = self.relative_gain * min(self._doubt, 4)
        # The slowest rank may be so only by chance, and another one be so tomorrow.
        by_chance = self._noise * (1 + self._extremes) / math.sqrt(self._since)
        return gain > max(
            max(relative, by_chance) * now, self.absolute_gain, moving / max(self._evaluations, 1)
        )

    def _doubts(self, useless: bool) -> None:
        if useless:
            self._doubt = min(2 * self._doubt, _MOST_DOUBT)

    def _lasted(self) -> bool:
        """Return whether the cut points have been good for long."""
        return self._evaluations - self._calm_since >= self.lasting * self._doubt

    def _stay(self) -> None:
        """Let the cut points be, and wait longer."""
        if self._lasted():
            self._doubt = max(self._doubt // 2, 1)
            self._calm_since = self._evaluations
        self._interval = min(2 * self._interval, self.longest_interval)
        self._measure(self._interval)


def _parts(times: np.ndarray) -> tuple[float, np.ndarray]:
    """Return which part of all time the slowest rank takes, and which each of them takes."""
    parts = times / max(float(times.sum()), 1e-30)
    return float(parts.max()), parts


def _elsewhere(parts: np.ndarray, before: np.ndarray) -> float:
    """Return which part of all time is spent on another rank than before."""
    return 0.5 * float(np.abs(parts - before).sum())
