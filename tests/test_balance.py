"""Cut points that follow costs, on machines that exist only here."""

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from pymc_mpimap.pool.balance import Balance, balanced_cuts, even_cuts

COSTS = st.lists(st.integers(0, 9), max_size=7) | st.lists(st.floats(0, 1e3), max_size=7)
HEADS = st.sampled_from([0.0, 1.0, 2.5, 30.0, -1.0, -4.0])


def times(costs, cuts, head=0.0):
    """Return how long each rank takes."""
    found = np.array([costs[low:high].sum() for low, high in pairwise(cuts)])
    found[0] += head
    return found


def are_valid(cuts, n_blocks, n_ranks):
    ends = len(cuts) == n_ranks + 1 and (cuts[0], cuts[-1]) == (0, n_blocks)
    return ends and (np.diff(cuts) >= 0).all() and all(type(cut) is int for cut in cuts)


def best_time(costs, n_ranks, head=0.0):
    """Return the time of the best of all partitions."""
    inner = combinations_with_replacement(range(len(costs) + 1), n_ranks - 1)
    return min(times(costs, [0, *cuts, len(costs)], head).max() for cuts in inner)


class Machine:
    """Ranks that work on blocks of given costs, with noise, and count as the package does."""

    def __init__(
        self, n_blocks, n_ranks, *, noise=0.05, uneven=0.0, speeds=None, head=0.0, seed=0, **options
    ):
        self.balance, self.uneven = Balance(n_blocks, n_ranks, **options), uneven
        self.rng, self.noise, self.head = np.random.default_rng(seed), noise, head
        self.speeds = np.ones(n_ranks) if speeds is None else np.asarray(speeds)
        self.spent, self.counted = np.zeros(n_blocks), 0
        self.evaluations, self.moved = 0, []
        self.moving = 0.0

    def true_times(self, costs):
        return times(self.took(costs), self.balance.cuts, self.head)

    def took(self, costs):
        return costs / np.repeat(self.speeds, np.diff(self.balance.cuts))

    def evaluate(self, costs):
        balance = self.balance
        self.evaluations += 1
        ranks = np.exp(self.uneven * self.rng.standard_normal(balance.n_ranks))
        took = self.took(costs) * np.exp(self.noise * self.rng.standard_normal(len(costs)))
        took *= np.repeat(ranks, np.diff(balance.cuts))
        if self.evaluations == 1:
            took = took + 0.5  # compiles
        self.spent += took
        self.counted += 1
        if balance.wants_costs(times(took, balance.cuts).tolist(), self.head):
            new = balance.propose(self.spent / self.counted, self.moving)
            self.spent[:], self.counted = 0, 0
            if new is not None:
                assert are_valid(new, len(costs), balance.n_ranks)
                assert new == balance.cuts
                self.moved.append(self.evaluations)

    def run(self, costs, evaluations):
        for _ in range(evaluations):
            self.evaluate(costs)
        return self

    def efficiency(self, costs):
        """Return the time of the best contiguous partition, relative to that of this one."""
        best = balanced_cuts(costs, self.balance.n_ranks, self.head)
        return times(costs, best, self.head).max() / self.true_times(costs).max()


def lognormal(seed, n_blocks=64):
    return 1e-3 * np.random.default_rng(seed).lognormal(0, 1.5, n_blocks)


@settings(max_examples=200)
@given(COSTS, st.integers(1, 5), HEADS)
def test_no_partition_is_faster(costs, n_ranks, head):
    costs = np.array(costs, dtype=float)
    cuts = balanced_cuts(costs, n_ranks, head)
    assert are_valid(cuts, len(costs), n_ranks)
    if costs.any():
        found, best = times(costs, cuts, head).max(), best_time(costs, n_ranks, head)
        assert found <= best + 1e-12 * (costs.sum() + abs(head))
    else:
        assert cuts == even_cuts(len(costs), n_ranks)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60), st.integers(2, 9))
@example([1.0, 1.0, 100.0, 1.0, 1.0, 1.0], 4)
def test_no_rank_is_idle_while_another_has_several_blocks(costs, n_ranks):
    n_blocks = np.diff(balanced_cuts(np.array(costs), n_ranks))
    idle = [rank for rank in range(1, n_ranks) if n_blocks[rank] == 0]
    assert not idle or n_blocks.max() == 1


@given(st.integers(0, 60), st.integers(1, 9))
def test_equal_costs_are_cut_as_evenly_as_without_costs(n_blocks, n_ranks):
    cuts = balanced_cuts(np.full(n_blocks, 0.7), n_ranks)
    assert np.diff(cuts).max() == np.diff(even_cuts(n_blocks, n_ranks)).max()
    assert np.diff(cuts)[0] == np.diff(even_cuts(n_blocks, n_ranks))[0]


@given(st.integers(2, 6), st.integers(0, 3), st.integers(0, 99))
def test_rank_0_gets_less_the_more_else_it_does(n_ranks, tenths, seed):
    costs = lognormal(seed)
    head = tenths / 10 * costs.sum()
    alone = balanced_cuts(costs, n_ranks)[1]
    less = balanced_cuts(costs, n_ranks, head)[1]
    most = balanced_cuts(costs, n_ranks, costs.sum())[1]
    assert alone >= less >= most == 0
    assert balanced_cuts(costs, n_ranks, -head)[1] >= alone


def test_rank_0_gets_less_where_another_rank_is_the_slowest_too():
    costs = np.array([1.0] * 12 + [20.0])
    assert balanced_cuts(costs, 3)[1] == 10
    assert balanced_cuts(costs, 3, head_start=4.0)[1] == 8


def test_many_blocks_on_many_ranks():
    costs = lognormal(0, 4096)
    cuts = balanced_cuts(costs, 4096)
    assert are_valid(cuts, 4096, 4096)
    assert times(costs, cuts).max() == pytest.approx(costs.max(), rel=1e-12)


@pytest.mark.parametrize("n_ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("order", ["random", "rising", "falling"])
def test_unequal_costs_are_balanced_within_50_evaluations(n_ranks, order):
    for seed in range(10):
        costs = lognormal(seed)
        if order != "random":
            costs = np.sort(costs)[:: 1 if order == "rising" else -1]
        machine = Machine(64, n_ranks, seed=seed)
        assert machine.run(costs, 50).efficiency(costs) >= 0.95
        assert len(machine.moved) <= 3


@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_no_oscillation(n_ranks):
    """Constant costs: after the first, moves are rare, however noisy the measurements are."""
    for seed in range(3):
        costs = lognormal(seed)
        assert len(Machine(64, n_ranks, seed=seed).run(costs, 2000).moved) <= 3
        assert len(Machine(64, n_ranks, seed=seed, noise=0.5).run(costs, 2000).moved) <= 8


@pytest.mark.parametrize("n_ranks", [4, 16])
def test_ranks_that_are_disturbed_by_turns(n_ranks):
    """Some rank is slower than the others at each evaluation, but never the same one."""
    moves = [
        len(Machine(128, n_ranks, uneven=0.2, seed=seed).run(np.full(128, 1e-3), 2000).moved)
        for seed in range(3)
    ]
    assert sum(moves) <= 4


@pytest.mark.parametrize("n_ranks", [2, 3, 4, 16])
def test_equal_costs_never_move(n_ranks):
    machine = Machine(96, n_ranks).run(np.full(96, 1e-3), 2000)
    assert machine.moved == []
    assert machine.balance.cuts == even_cuts(96, n_ranks)
    assert machine.balance.asked < 30  # that it costs little to be sure


@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_costs_that_drift_are_followed(n_ranks):
    """Over 1,000 evaluations, the costs become altogether others."""
    first, last = lognormal(5), lognormal(6)
    machine, seen = Machine(64, n_ranks), []
    for evaluation in range(1200):
        part = min(evaluation / 1000, 1)
        costs = first ** (1 - part) * last**part
        machine.evaluate(costs)
        seen.append(machine.efficiency(costs))
    assert np.mean(seen[50:]) >= 0.9
    assert seen[-1] >= 0.95
    assert len(machine.moved) <= 20


@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_a_sudden_change_is_seen_soon(n_ranks):
    first, last = lognormal(5), lognormal(6)
    machine = Machine(64, n_ranks).run(first, 700)
    assert machine.efficiency(last) < 0.7
    assert machine.run(last, 60).efficiency(last) >= 0.95
    assert len(machine.moved) == 2  # What the costs were before does not make it hesitate.


def test_changes_to_and_fro_are_not_followed_for_ever():
    """They come too soon for a move to pay, so that the time between moves grows."""
    first, last = lognormal(5), lognormal(6)
    machine = Machine(64, 4)
    for evaluation in range(4000):
        machine.evaluate(last if evaluation // 25 % 2 else first)
    assert len([when for when in machine.moved if when > 2000]) <= 6
    assert machine.balance.moves == len(machine.moved) <= 30


@pytest.mark.parametrize("n_ranks", [2, 4])
@pytest.mark.parametrize("speed", [0.25, 0.5, 2.0])
def test_a_rank_of_another_speed(n_ranks, speed):
    speeds = np.ones(n_ranks)
    speeds[1] = speed
    costs = np.full(256, 1e-3)
    machine = Machine(256, n_ranks, speeds=speeds).run(costs, 50)
    ideal = costs.sum() / speeds.sum()
    assert ideal / machine.true_times(costs).max() >= 0.94
    assert len(machine.run(costs, 1000).moved) <= 5


def test_rank_0_is_spared_what_else_it_does():
    costs = np.full(100, 1e-3)
    machine = Machine(100, 2, head=0.02).run(costs, 50)
    assert abs(machine.balance.cuts[1] - 40) <= 1


def test_a_move_must_be_worth_its_price():
    costs = lognormal(3)
    machine = Machine(64, 2)
    machine.moving = 50 * costs.sum()
    assert machine.run(costs, 50).moved == []
    assert len(machine.run(costs, 1000).moved) == 1
    tiny = Machine(64, 2, absolute_gain=costs.sum()).run(costs, 200)
    assert tiny.moved == []


@pytest.mark.parametrize(("n_blocks", "n_ranks"), [(0, 1), (0, 3), (1, 3), (64, 1)])
def test_where_there_is_nothing_to_balance_nothing_is_asked(n_blocks, n_ranks):
    machine = Machine(n_blocks, n_ranks).run(np.full(n_blocks, 1e-3), 200)
    assert machine.balance.propose(np.ones(n_blocks)) is None
    machine.run(np.full(n_blocks, 1e-3), 20)
    assert machine.balance.asked == 0
    assert machine.balance.cuts == even_cuts(n_blocks, n_ranks)


def test_more_ranks_than_blocks():
    """Rank 0, which begins with nothing, takes none of two equal ones; of unequal runs, one."""
    assert Machine(2, 5).run(np.ones(2), 100).moved == []
    costs = np.array([1.0, 1.0, 1.0, 9.0])
    machine = Machine(4, 6).run(costs, 100)
    assert machine.true_times(costs).max() == 9


def test_blocks_without_measurements():
    costs = np.array([8.0, np.nan, 1.0, 1.0, np.nan, 1.0, np.inf, -1.0])
    balance = Balance(8, 2)
    for _ in range(6):
        if balance.wants_costs([13.5, 7.0], 0.0):
            moved = balance.propose(costs)
    # Blocks of unknown cost count as much as others do on average, 11 / 4.
    assert moved == [0, 2, 8]
    nothing = Balance(8, 2)
    for _ in range(100):
        if nothing.wants_costs([13.5, 7.0], 0.0):
            assert nothing.propose(np.full(8, np.nan)) is None
    assert nothing.asked > 3


def test_what_is_not_answered_is_asked_again():
    balance = Balance(4, 2)
    times, costs = [4e-3, 2e-3], np.array([3e-3, 1e-3, 1e-3, 1e-3])
    assert [balance.wants_costs(times, 0.0) for _ in range(6)] == [False, True] * 3
    assert balance.propose(costs) is None  # to begin anew
    assert [balance.wants_costs(times, 0.0) for _ in range(6)] == [False] * 3 + [True] * 3
    assert balance.propose(costs) == [0, 1, 4]


def test_costs_that_were_not_asked_for_change_nothing():
    """They are of too short a time."""
    one, two = Balance(4, 2), Balance(4, 2)
    costs = np.array([3e-3, 1e-3, 1e-3, 1e-3])
    for _ in range(40):
        wanted = one.wants_costs([4e-3, 2e-3], 0.0)
        assert two.wants_costs([4e-3, 2e-3], 0.0) == wanted
        if wanted:
            assert one.propose(costs) == two.propose(costs)
            assert one.propose(costs[::-1]) is None
    assert one.cuts == two.cuts == [0, 1, 4]


def test_what_compiled_is_not_taken_for_costs():
    balance = Balance(4, 2)
    answers = []
    for evaluation in range(1, 7):
        slow = 100.0 if evaluation == 1 else 0.0
        if balance.wants_costs([2e-3 + slow, 2e-3], 0.0):
            costs = np.array([1e-3 + slow, 1e-3, 1e-3, 1e-3])
            answers.append((evaluation, balance.propose(costs)))
    assert answers == [(2, None), (6, None)]


@settings(max_examples=60)
@given(st.integers(0, 9), st.integers(1, 5), st.randoms(use_true_random=False))
def test_whatever_is_measured_the_cuts_are_valid(n_blocks, n_ranks, random):
    strange = [0.0, 1e-9, 1.0, 3.0, 1e6, float("nan"), float("inf"), -1.0]
    balance = Balance(n_blocks, n_ranks, longest_interval=8)
    for _ in range(150):
        busy = [random.choice(strange[:5]) for _ in range(n_ranks)]
        if balance.wants_costs(busy, random.choice([0.0, 1.0, -1e-6])):
            old = balance.cuts
            new = balance.propose(np.array([random.choice(strange) for _ in range(n_blocks)]))
            assert balance.cuts == (old if new is None else new)
            assert new != old
            assert are_valid(balance.cuts, n_blocks, n_ranks)


def test_most_calls_only_count(monkeypatch):
    """In calm times the evaluation's own times are looked at once in eight."""
    balance, looks = Balance(64, 2), []
    look = Balance._look
    monkeypatch.setattr(Balance, "_look", lambda *args: looks.append(1) or look(*args))
    for _ in range(2000):
        if balance.wants_costs([1.0, 1.0], 0.0):
            balance.propose(np.ones(64))
    assert len(looks) < 2000 / 6
