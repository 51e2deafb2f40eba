"""The files of one chain, whatever moment they were left at."""

import errno
import fcntl
import os
import resource
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import pymc_mpimap as mpimap
from pymc_mpimap import InputError, MapRectWarning
from pymc_mpimap.draws import states, writer
from pymc_mpimap.draws.files import write_all
from pymc_mpimap.draws.header import Header
from pymc_mpimap.draws.log import ChainLog
from pymc_mpimap.draws.writer import ChainWriter
from tests.draws.files import overwrite, records, state_file

HEADER = Header(0, {"x": ((2,), "float64"), "n": ((), "int64")}, {"PyMC": "6"}, 0)
SETTINGS = {"step": 0.5}
STATS = "accepted"


def values(k):
    return {"x": np.array([k, k + 0.5]), "n": np.array(k)}


def opened(folder):
    log = ChainLog(folder, 0)
    return ChainWriter(log, log.n_draws, HEADER, SETTINGS)


def add(chain, k, state=None):
    # Records of different lengths, as those of a sampler with a history.
    rest = ({"x": None, "hidden": np.array(-k)}, STATS + "x" * (7 * k), None)
    chain.append(values(k), rest, {"after": k} if state is None else state, in_warmup=k < 2)


def write(folder, numbers=range(5)):
    chain = opened(folder)
    for k in numbers:
        add(chain, k)
    chain.close()


def read(folder):
    return [int(draw["values"]["n"]) for draw in ChainLog(folder, 0).draws()]


@pytest.fixture(autouse=True)
def _without_the_time_that_disks_take(monkeypatch):
    monkeypatch.setattr(os, "fdatasync", lambda _file: None)
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "draws")
    return tmp_path / "draws"


def test_draws_and_state_are_read_back(folder):
    log = ChainLog(folder, 0)
    for k, draw in enumerate(log.draws()):
        assert draw["in_warmup"] is (k < 2)
        assert draw["stats"] == STATS + "x" * (7 * k)
        assert [*draw["point"]] == ["x", "hidden"]
        np.testing.assert_array_equal(draw["point"]["x"], [k, k + 0.5])
        np.testing.assert_array_equal(draw["point"]["hidden"], -k)
        assert draw["values"]["n"].shape == ()
        assert draw["values"]["n"] == k
    assert len([*log.draws()]) == 5
    assert len([*log.draws(stop=2)]) == 2
    assert (log.header, log.settings(), log.n_draws, log.left_over) == (HEADER, SETTINGS, 5, 0)
    assert log.state() == (5, {"after": 4})
    assert log.unread() is None
    in_warmup, kept = log.values()
    assert in_warmup.tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(kept["n"], range(5))
    assert kept["x"].shape == (5, 2)


@pytest.mark.slow
def test_a_log_cut_at_any_byte_keeps_its_whole_draws(tmp_path):
    path = tmp_path / "chain-0.draws"
    write(tmp_path)
    data = path.read_bytes()
    frames = records(path)
    states_left = {p: p.read_bytes() for p in tmp_path.glob("*.state-*")}
    for cut in range(len(data) + 1):
        for state, was in states_left.items():
            overwrite(state, was)
        overwrite(path, data[:cut])
        n_whole = sum(frame.stop <= cut for frame in frames)
        if n_whole < 2:
            # A log has its name only with its headers in it: this is not how a program ends.
            with pytest.raises(InputError, match=r"chain-0\.draws"):
                ChainLog(tmp_path, 0).check_whole()
            continue
        log = ChainLog(tmp_path, 0)
        log.check_whole()
        assert log.n_draws == n_whole - 2
        assert log.left_over == cut - frames[n_whole - 1].stop
        assert read(tmp_path) == [*range(log.n_draws)]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            kept = mpimap.read_draws(tmp_path, warmup=True)
        assert kept[0]["n"].tolist() == [*range(log.n_draws)]
        assert bool(told) == (log.left_over > 0 or log.n_draws < 4)
        write(tmp_path, [9])
        assert read(tmp_path) == [*range(log.n_draws), 9]


class KilledError(Exception):
    pass


def test_every_draw_has_its_state_wherever_writing_ends(folder, monkeypatch):
    """As by a kill: a number of bytes of the state and the draw are written, and no more."""
    n_bytes, ended = 0, False
    while not ended:
        chain = opened(folder)
        before, left = ChainLog(folder, 0).n_draws, n_bytes
        killed = folder.with_name(f"killed-{n_bytes}")

        def some(file, data):
            nonlocal left
            write_all(file, data[:left])
            if left < len(data):
                shutil.copytree(folder, killed)  # noqa: B023 # called in this round alone
                raise KilledError
            left -= len(data)

        with monkeypatch.context() as patch:
            patch.setattr(writer, "write_all", some)
            patch.setattr(states, "write_all", some)
            try:
                add(chain, n_bytes % 20)
                ended = True
            except KilledError:
                pass
        chain.close()
        # A program that goes on after it has nothing half written in its way.
        assert ChainLog(folder, 0).left_over == 0
        if not ended:
            folder = killed
        found = ChainLog(folder, 0)
        found.check_whole()
        assert found.n_draws == before + ended
        assert found.state()[0] == found.n_draws
        n_bytes += 1
    assert n_bytes > 100


def test_a_state_that_was_half_written_is_not_taken(folder):
    newest = state_file(folder, 0, 5)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert ChainLog(folder, 0).state() == (4, {"after": 3})


def test_a_state_belongs_to_one_draw_of_one_chain(folder, tmp_path):
    """Not to another one of the same number, and not to a draw that is made anew."""
    write(tmp_path / "other")
    for state in (tmp_path / "other").glob("chain-0.state-*"):
        shutil.copy(state, folder)
    assert ChainLog(folder, 0).state() == (0, None)

    write(tmp_path / "remade")
    path = tmp_path / "remade" / "chain-0.draws"
    stale = state_file(tmp_path / "remade", 0, 5).read_bytes()
    os.truncate(path, records(path)[-1].start)
    write(tmp_path / "remade", [19])
    assert ChainLog(tmp_path / "remade", 0).state() == (5, {"after": 19})
    state_file(tmp_path / "remade", 0, 5).write_bytes(stale)
    assert ChainLog(tmp_path / "remade", 0).state() == (4, {"after": 3})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_what_was_synchronized_last_stays_whole_until_the_next_time(tmp_path, monkeypatch, count):
    """However many draws were made since then, of which the disk may know nothing."""
    write(tmp_path, range(count))
    path = tmp_path / "chain-0.draws"
    on_disk = path.read_bytes()
    monkeypatch.setattr(writer, "_SYNC", float("inf"))
    chain = opened(tmp_path)
    for k in range(7):
        add(chain, k)
    monkeypatch.setattr(chain, "_is_synced", True)
    chain.close()
    path.write_bytes(on_disk)
    log = ChainLog(tmp_path, 0)
    assert log.state() == (count, {"after": count - 1})
    assert log.n_made == count + 6
    with pytest.warns(MapRectWarning, match=f"missing: {count} to {count + 5}"):
        mpimap.read_draws(tmp_path)


def test_everything_is_on_the_disk_itself_in_the_end(tmp_path, monkeypatch):
    synchronized = []
    monkeypatch.setattr(os, "fdatasync", lambda file: synchronized.append(file.name))
    chain = opened(tmp_path)
    add(chain, 0)
    add(chain, 1)
    synchronized.clear()
    chain.close()
    chain.close()
    # The log has the name that it was opened by.
    names = [state_file(tmp_path, 0, 2).name, "chain-0.new"]
    assert [Path(name).name for name in synchronized] == names


def test_a_failing_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def failing(_file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer, "_SYNC", -1.0)
    chain = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match=r"Input/output error: '.*chain-0\.state-0'"):
            add(chain, 0)
    chain.close()
    assert read(tmp_path) == [0]


def test_two_writers_are_refused(folder):
    with (folder / "chain-0.draws").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is adding draws"):
            opened(folder)


def test_two_processes_that_begin_at_once(tmp_path):
    first, second = ChainLog(tmp_path, 0), ChainLog(tmp_path, 0)
    with (tmp_path / "chain-0.new").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is adding draws"):
            ChainWriter(first, 0, HEADER, SETTINGS)
    chain = ChainWriter(first, 0, HEADER, SETTINGS)
    with pytest.raises(InputError, match="another process has begun to add draws"):
        ChainWriter(second, 0, HEADER, SETTINGS)
    add(chain, 0)
    chain.close()
    assert read(tmp_path) == [0]


def test_draws_that_were_added_since_the_file_was_read_are_not_removed(folder):
    stale = ChainLog(folder, 0)
    write(folder, [5, 6])
    with pytest.raises(InputError, match=r"another process has added draws.*start this"):
        ChainWriter(stale, stale.n_draws, HEADER, SETTINGS)
    assert read(folder) == [*range(7)]


def test_without_locks_a_second_writer_is_noticed(folder, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    one, two = opened(folder), opened(folder)
    assert "has no locks" in caplog.text
    add(one, 5)
    with pytest.raises(InputError, match="another process has added or removed draws"):
        add(two, 50)
    add(one, 6)
    one.close()
    two.close()
    assert read(folder) == [*range(7)]


def test_a_file_that_is_removed_meanwhile_is_told(folder, monkeypatch):
    monkeypatch.setattr(writer, "_SYNC", -1.0)
    chain = opened(folder)
    (folder / "chain-0.draws").rename(folder / "elsewhere")
    with pytest.warns(MapRectWarning, match="was removed or replaced while draws were added"):
        add(chain, 5)
    add(chain, 6)  # said once
    chain.close()


def test_a_full_disk_is_told_with_the_path():
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OSError, match="/dev/full"),
    ):
        write_all(full, b"draw")


def test_a_disk_that_is_full_in_the_middle_of_a_draw(folder):
    """A limit of the file's size stands in for it: some bytes are written, then none."""
    path = folder / "chain-0.draws"
    before = path.read_bytes()
    chain = opened(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"chain-0\.draws"):
            add(chain, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    add(chain, 5)
    chain.close()
    assert read(folder) == [*range(6)]
    assert ChainLog(folder, 0).state() == (6, {"after": 5})


def test_variables_that_change_are_refused(folder):
    chain = opened(folder)
    for changed in (np.zeros(3), np.zeros(2, "float32")):
        with pytest.raises(InputError, match=r"variable x was of shape \(2,\) and dtype float64"):
            chain.append({"x": changed, "n": np.array(1)}, None, None, in_warmup=False)
    chain.close()
    with pytest.raises(InputError, match=r"variable s, .* is not an array of plain num"):
        Header(0, {"s": ((), "object")}, {}, 0)
    assert read(folder) == [*range(5)]


def test_values_do_not_depend_on_their_order(folder):
    chain = opened(folder)
    chain.append(dict(reversed(values(5).items())), ({}, None), None, in_warmup=False)
    chain.close()
    np.testing.assert_array_equal(mpimap.read_draws(folder)[0]["n"], [2, 3, 4, 5])


def test_reading_while_draws_are_added(folder):
    """Sees the first draws, whole, and never takes the one that is being written for damage."""
    told, seen = [], []
    ended = threading.Event()

    def reading():
        while not ended.is_set():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                seen.append(mpimap.read_draws(folder, warmup=True)[0]["n"].tolist())
            told.extend(str(w.message) for w in caught)

    thread = threading.Thread(target=reading)
    thread.start()
    try:
        chain = opened(folder)
        k = 5
        while k < 2000 or len({len(one) for one in seen}) < 10:
            add(chain, k % 100)
            k += 1
        chain.close()
    finally:
        ended.set()
        thread.join()
    expected = [*range(5), *(n % 100 for n in range(5, k))]
    assert all(one == expected[: len(one)] for one in seen)
    assert all("is not complete: it is being written" in one for one in told)
    assert not any("missing" in one for one in told)
