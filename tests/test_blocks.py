"""Blocks, the tree of their sums, and which rank works on which: pure functions."""

from itertools import pairwise

import numpy as np
from hypothesis import given, strategies as st

from pymc_mpimap.blocks import Blocks, additions, subtrees
from pymc_mpimap.pool.balance import even_cuts
from pymc_mpimap.pool.levels import Levels

counts = st.integers(1, 200)


@st.composite
def cut_blocks(draw):
    """Return a number of blocks and any cut points of contiguous runs of them."""
    count = draw(counts)
    inner = draw(st.lists(st.integers(0, count), max_size=8))
    return count, [0, *sorted(inner), count]


def added(node, nodes, sums):
    """Return the sum of a subtree from those of some subtrees that make it up."""
    stack = []
    for value, count in zip(sums, additions(node, nodes), strict=True):
        stack.append(value)
        for _ in range(count):
            right = stack.pop()
            stack[-1] = stack[-1] + right
    (total,) = stack
    return total


def sum_of_blocks(node, values):
    low, high = node
    return added(node, [(block, block + 1) for block in range(low, high)], values[low:high])


def sum_of_runs(values, cuts):
    """Return the sum of what ranks would send: for each run of blocks the sums of its subtrees."""
    nodes = [node for low, high in pairwise(cuts) for node in subtrees(len(values), low, high)]
    assert len(set(nodes)) == len(nodes)
    return added((0, len(values)), nodes, [sum_of_blocks(node, values) for node in nodes])


@given(cut_blocks(), st.integers(0, 2**32 - 1))
def test_any_cut_gives_the_same_bits(cut, seed):
    count, cuts = cut
    random = np.random.default_rng(seed)
    # Of very different size and sign: any other order of summation would show.
    values = random.normal(size=(count, 3)) * 10.0 ** random.integers(-12, 12, size=(count, 3))
    whole = sum_of_blocks((0, count), values)
    together = sum_of_runs(values, cuts)
    assert whole.tobytes() == together.tobytes()


@given(cut_blocks(), st.integers(0, 2**32 - 1), st.sampled_from([(), (3,)]))
def test_adding_level_by_level_gives_the_same_bits(cut, seed, core):
    count, cuts = cut
    random = np.random.default_rng(seed)
    shape = (count, *core)
    values = random.normal(size=shape) * 10.0 ** random.integers(-12, 12, size=shape)
    for low, high in pairwise(cuts):
        nodes = list(subtrees(count, low, high))
        output = np.full((len(nodes), *core), np.nan)
        levels = Levels(low, high, nodes, output)
        for _ in range(2):  # Nothing is used up.
            levels.blocks[...] = values[low:high]
            levels.add_up()
        expected = [sum_of_blocks(node, values) for node in nodes]
        assert output.tobytes() == np.array(expected).tobytes()


@given(cut_blocks())
def test_every_block_is_in_exactly_one_subtree(cut):
    count, cuts = cut
    for low, high in pairwise(cuts):
        covered = [b for node in subtrees(count, low, high) for b in range(*node)]
        assert covered == list(range(low, high))


@given(cut_blocks())
def test_sum_counts_every_block_once(cut):
    count, cuts = cut
    values = [np.array([1 << block], dtype=object) for block in range(count)]
    assert sum_of_runs(values, cuts)[0] == (1 << count) - 1


@given(cut_blocks())
def test_few_subtrees_make_up_a_run(cut):
    count, cuts = cut
    for low, high in pairwise(cuts):
        assert len(list(subtrees(count, low, high))) <= max(2 * count.bit_length(), 1)


def test_the_whole_is_one_subtree_and_nothing_is_none():
    for count in range(1, 40):
        assert list(subtrees(count, 0, count)) == [(0, count)]
        assert list(subtrees(count, count // 2, count // 2)) == []


def test_the_tree_does_not_follow_the_ranks():
    """Three equal runs of six blocks are no three nodes of its binary tree."""
    assert list(subtrees(6, 0, 2)) == [(0, 2)]
    assert list(subtrees(6, 2, 4)) == [(2, 4)]
    assert list(subtrees(6, 4, 6)) == [(4, 6)]
    assert list(subtrees(6, 0, 3)) == [(0, 2), (2, 3)]
    assert list(subtrees(6, 3, 6)) == [(3, 4), (4, 6)]


@given(st.integers(0, 500), st.integers(1, 50))
def test_blocks_hold_every_job_once(n_jobs, grain_size):
    blocks = Blocks(n_jobs, grain_size)
    firsts = [blocks.first_job(block) for block in range(blocks.count + 1)]
    assert firsts[0] == 0
    assert firsts[-1] == n_jobs
    sizes = np.diff(firsts)
    assert (sizes[:-1] == grain_size).all()
    assert n_jobs == 0 or 1 <= sizes[-1] <= grain_size
    assert blocks.count == int(np.ceil(n_jobs / grain_size))


@given(st.integers(0, 300), st.integers(1, 64))
def test_even_cuts(n_blocks, n_ranks):
    cuts = even_cuts(n_blocks, n_ranks)
    sizes = np.diff(cuts)
    assert (len(cuts), cuts[0], cuts[-1]) == (n_ranks + 1, 0, n_blocks)
    assert (sizes >= 0).all()
    assert sizes.max() - sizes.min() <= 1
    assert sizes[0] == sizes.min()  # rank 0 has the chain to run
