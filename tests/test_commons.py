"""Memory in common between ranks of one host: here threads, and a stand-in for a communicator."""

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pymc_mpimap.pool import commons
from pymc_mpimap.pool.commons import Common, Commons, array_at, neighbours
from pymc_mpimap.pool.protocol import LARGE
from tests.helpers import on_one_host


def test_a_part_is_found_where_it_is():
    common = Common(np.float64, (4, 3))
    common.array[...] = np.arange(12.0).reshape(4, 3)
    found = array_at(common.place(7, common.array[1:3]))
    assert (found == common.array[1:3]).all()
    found[...] = -1.0
    common.array[0] = 5.0
    assert common.array.tolist() == [[5.0] * 3, [-1.0] * 3, [-1.0] * 3, [9.0, 10.0, 11.0]]


def test_arrays_outlive_the_path():
    """What was found stays; the path leads nowhere, and where Python can, no file is left open."""
    files = Path("/proc/self/fd")
    open_before = {file.name for file in files.iterdir()}
    common = Common(np.float64, (3,))
    place = common.place(0, common.array)
    own, found = common.array, array_at(place)
    del common
    gc.collect()
    if sys.version_info >= (3, 13):
        assert {file.name for file in files.iterdir()} == open_before
    own[:] = 2.0
    assert found.tolist() == [2.0] * 3
    with pytest.raises(FileNotFoundError):
        array_at(place)


def test_large_arrays_alone_are_in_common():
    commons = Commons()
    small, large = np.ones(LARGE // 8 - 1), np.arange(2.0 * LARGE // 8).reshape(2, -1)
    held = [commons.hold(i, value) for i, value in enumerate([small, large])]
    assert [(a == b).all() for a, b in zip(held, [small, large], strict=True)] == [True, True]
    # Of two workers, one has a part that is large enough, the other has not.
    (place,) = commons.inputs([held[0], held[1][:1]])
    assert (place.number, array_at(place).tolist()) == (1, large[:1].tolist())
    assert commons.inputs([held[0], held[1][:0]]) == ()
    arrays, (place,) = commons.answer((("float64", (3,)), ("float64", (LARGE,))))
    array_at(place)[5] = 8.0
    assert arrays[1][5] == 8.0


def test_neighbours_are_those_of_rank_0s_host():
    def meet(ranks):
        return on_one_host(ranks, neighbours)

    assert meet([0, 1, 3]) == {r: frozenset({1, 3}) for r in (0, 1, 3)}
    assert meet([2, 4]) == {r: frozenset() for r in (2, 4)}
    assert meet([0]) == {0: frozenset()}


def test_who_finds_something_else_is_no_neighbour(monkeypatch):
    """In another container the same path may be another process's."""
    other = Common(np.uint8, (32,))
    path = other.place(0, other.array).path
    monkeypatch.setattr(commons, "array_at", lambda place: array_at(replace(place, path=path)))
    assert on_one_host([0, 1], neighbours) == {0: frozenset(), 1: frozenset()}


def test_systems_without_such_memory(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    assert on_one_host([0, 1], neighbours) == {0: frozenset(), 1: frozenset()}
    value = np.ones(LARGE)
    held = Commons()
    assert (held.hold(0, value) == value).all()
    assert held.inputs([value]) == ()
    assert held.answer((("float64", (LARGE,)),)) == ({}, ())
