"""The schedule, tried in every order of answers, deaths, hangs, interruptions and shutdowns.

The ranks are simulated: each has a queue of what it was asked, and one of its answers.
"""

from collections import deque

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pymc_mpimap.pool.loss import Loss
from pymc_mpimap.pool.schedule import Schedule, Step

WORKERS = 4
RANK = st.integers(1, WORKERS)


class Worker:
    """A rank: obeys in order, unless it is dead or hangs."""

    def __init__(self):
        self.asked, self.answers = deque(), deque()
        self.dead = self.hangs = False

    @property
    def works(self):
        return not (self.dead or self.hangs)


class Ranks(RuleBasedStateMachine):
    """What the controller does, against simulated ranks; each rule is one event."""

    goes_on = True

    def __init__(self):
        super().__init__()
        self.schedule = Schedule(range(1, WORKERS + 1), goes_on=self.goes_on)
        self.workers = {rank: Worker() for rank in range(1, WORKERS + 1)}
        self.begin_anew(None)
        self.stopped = False

    def begin_anew(self, kind):
        """Note what is waited for: an evaluation, a sign of life, or nothing."""
        self.kind, self.asked, self.heard, self.lost_meanwhile = kind, set(), set(), False

    def ask(self, kind, ranks):
        before = self.schedule.evaluation
        number = self.schedule.begin(ranks)
        assert number > before
        self.begin_anew(kind)
        self.asked = set(ranks)
        for rank in ranks:
            self.workers[rank].asked.append(number)

    @precondition(lambda self: self.kind is None)
    @rule(some=st.sets(RANK))
    def proceed(self, some):
        """The user wants an evaluation, of which some of the ranks have a part."""
        calm = self.schedule.next()
        if calm is Step.END:
            assert self.stopped or (self.schedule.losses and not self.goes_on)
        elif calm is Step.QUIET:
            self.ask("life", self.schedule.staff)
        else:
            # Nobody is at anything: else an answer could be taken for another's.
            there = [self.workers[rank] for rank in self.schedule.staff]
            assert not any(worker.asked for worker in there if worker.works)
            self.ask("evaluation", [rank for rank in self.schedule.staff if rank in some])

    @rule(rank=RANK)
    def work(self, rank):
        worker = self.workers[rank]
        if worker.works and worker.asked:
            worker.answers.append(worker.asked.popleft())

    @precondition(lambda self: self.kind is not None)
    @rule(rank=RANK)
    def hear(self, rank):
        worker = self.workers[rank]
        if rank in self.schedule.owing and worker.answers:
            number = worker.answers.popleft()
            counts = self.schedule.answered(rank, number)
            assert counts == (number == self.schedule.evaluation)
            if counts:
                self.heard.add(rank)

    @rule(rank=RANK)
    def die(self, rank):
        self.workers[rank].dead = True
        self.workers[rank].asked.clear()

    @rule(rank=RANK)
    def hang(self, rank):
        self.workers[rank].hangs = True

    @rule(rank=RANK)
    def come_back(self, rank):
        """One that hung goes on, whether it was given up or not."""
        self.workers[rank].hangs = False

    @rule(rank=RANK)
    def notice(self, rank):
        """MPI says that a rank is dead, or a time limit that it hangs."""
        worker = self.workers[rank]
        if rank in self.schedule.staff and not worker.works:
            self.schedule.lost(Loss(rank, "is gone", silent=not worker.dead))
            self.lost_meanwhile = True
            assert rank not in self.schedule.staff
            assert rank not in self.schedule.owing

    @rule(rank=RANK)
    def replace(self, rank):
        if rank not in self.schedule.staff and self.kind is None:
            self.workers[rank] = Worker()
            self.schedule.replaced(rank)

    @precondition(lambda self: self.kind is not None and not self.schedule.owing)
    @rule()
    def finish(self):
        step = self.schedule.over()
        if self.schedule.losses and not self.goes_on:
            assert step is Step.END
        elif self.lost_meanwhile:
            assert step is Step.AGAIN
        else:
            assert step is Step.RETURN
            assert self.heard == self.asked
        self.begin_anew(None)

    @precondition(lambda self: self.kind is not None)
    @rule()
    def interrupt(self):
        """Ctrl-C, or an exception of another kind: what was asked is not waited for any more."""
        self.begin_anew(None)
        assert self.schedule.next() is not Step.SEND

    @precondition(lambda self: self.kind is None)
    @rule()
    def stop(self):
        self.schedule.stop()
        self.stopped = True
        assert self.schedule.next() is Step.END

    @invariant()
    def is_valid(self):
        self.schedule.validate()

    @invariant()
    def the_staff_is_who_was_not_lost(self):
        assert set(self.schedule.staff) <= set(self.workers)
        assert self.schedule.owing <= set(self.schedule.staff)

    def teardown(self):
        """From wherever it is, it comes to an end: nobody waits for ever."""
        for _ in range(3 * WORKERS):
            if self.kind is None:
                if self.schedule.next() in {Step.SEND, Step.END}:
                    return
                self.proceed(set())
            while self.schedule.owing:
                for rank in sorted(self.schedule.owing):
                    self.notice(rank)
                    self.work(rank)
                    self.hear(rank)
                self.is_valid()
            self.finish()
        raise AssertionError(f"no end: {self.schedule.story()}")


class RanksOfWhichNoneMayBeLost(Ranks):
    goes_on = False


TestRanks = Ranks.TestCase
TestRanksOfWhichNoneMayBeLost = RanksOfWhichNoneMayBeLost.TestCase
MANY = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestRanks.settings = TestRanksOfWhichNoneMayBeLost.settings = MANY


def test_the_story_tells_what_happened():
    schedule = Schedule([1, 2])
    number = schedule.begin([1, 2])
    schedule.answered(1, number)
    schedule.lost(Loss(2, "died"))
    assert schedule.story() == [("asked", 1, 1, 2), ("answered", 1, 1), ("lost", 2, "died")]


def test_what_still_owes_an_answer_is_not_over():
    schedule = Schedule([1])
    schedule.begin([1])
    with pytest.raises(AssertionError, match="have not answered"):
        schedule.over()
