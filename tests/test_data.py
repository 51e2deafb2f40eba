"""Held data: what the owner of some jobs gets of them, and when two are equal."""

import pickle

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pymc_mpimap import local
from pymc_mpimap.data import ObjectData, PackedData, SharedData, StackedData
from pymc_mpimap.local_data import LocalData

N = 7
SHAPES = np.array([[2, 1], [0, 3], [1, 1], [2, 2], [0, 0], [3, 1], [1, 4]])
FLAT = np.arange(float(SHAPES.prod(axis=1).sum()))
MAKE = {
    "shared": lambda: SharedData(np.arange(3.0)),
    "stacked": lambda: StackedData(np.arange(2.0 * N).reshape(N, 2)),
    "packed": lambda: PackedData(FLAT, SHAPES),
    "objects": lambda: ObjectData([{"job": j} for j in range(N)]),
    "local": lambda: LocalData(local(np.arange)),
}
each_kind = pytest.mark.parametrize("kind", MAKE)


def same(one, other):
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


@each_kind
@given(st.lists(st.integers(0, N), min_size=4, max_size=4).map(sorted))
def test_owner_has_the_same_blocks(kind, cuts):
    """Whatever is owned, and owned again after the balance has moved, and sent in between."""
    data = MAKE[kind]()
    outer_first, first, last, outer_last = cuts
    owned = data.owned(outer_first, outer_last)
    travelled = owned if kind == "local" else pickle.loads(pickle.dumps(owned))
    for part in (owned, travelled, owned.owned(first, last)):
        assert same(part.block(first, last), data.block(first, last))
        assert part == data
        assert hash(part) == hash(data)


def test_owner_has_no_more_than_is_needed():
    stacked, packed = MAKE["stacked"]().owned(2, 4), MAKE["packed"]().owned(2, 4)
    assert stacked.values.shape == (2, 2)
    assert packed.flat.shape == (1 + 4,)
    assert len(MAKE["objects"]().owned(2, 4).items) == 2


@each_kind
def test_equality_is_by_content(kind):
    others = [make() for other, make in MAKE.items() if other != kind]
    assert all(MAKE[kind]() != other for other in others)
    if kind != "local":
        assert MAKE[kind]() == MAKE[kind]()
        assert len({MAKE[kind](), MAKE[kind]()}) == 1


@pytest.mark.parametrize("make", [SharedData, StackedData])
def test_same_bytes_of_another_shape_or_type_are_other_data(make):
    zeros = make(np.zeros((2, 3)))
    assert zeros == make(np.zeros((2, 3)))
    assert zeros != make(np.zeros((3, 2)))
    assert zeros != make(np.zeros((2, 3), dtype=np.int64))
    assert zeros != make(-np.zeros((2, 3)))  # another sign: another bit


def test_same_values_divided_otherwise_are_other_data():
    assert PackedData(np.ones(3), np.array([[1], [2]])) != PackedData(
        np.ones(3), np.array([[2], [1]])
    )


@pytest.mark.parametrize("kind", ["shared", "stacked", "packed"])
def test_data_are_read_only(kind):
    """Also when they have moved: to numba, arrays that can be written to are of another type."""
    data = MAKE[kind]()
    travelled = pickle.loads(pickle.dumps(data.owned(2, 4), protocol=5))
    moved = travelled.moved(1, 5, [data.owned(1, 2), data.owned(4, 5)])
    for held in (data, travelled, moved):
        with pytest.raises(ValueError, match="read-only"):
            held.block(2, 4)[0] = 1.0


def test_what_nobody_can_write_to_is_not_copied(tmp_path):
    values = np.arange(6.0).reshape(3, 2).copy()
    assert not np.shares_memory(StackedData(values).values, values)
    view = values[:]
    view.flags.writeable = False
    assert not np.shares_memory(StackedData(view).values, values)
    values.flags.writeable = False
    assert np.shares_memory(StackedData(values).values, values)
    np.save(tmp_path / "values.npy", values)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    held = StackedData(mapped)
    assert np.shares_memory(held.values, mapped)
    assert held == StackedData(values)
    copied = np.load(tmp_path / "values.npy", mmap_mode="c")
    assert not np.shares_memory(StackedData(copied).values, copied)
