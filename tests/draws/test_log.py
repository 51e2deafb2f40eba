"""The files of one chain, whatever moment they were left at."""

import fcntl
import shutil
from pathlib import Path

import pytest

from pymc_mpimap import InputError
from pymc_mpimap.draws.log import ChainLog
from tests.draws.files import state_file

HEADER = {"variables": {}}
DRAWS = [{"draw": k, "text": "x" * (7 * k)} for k in range(5)]


def opened(folder):
    log = ChainLog(folder, 0)
    log.open(HEADER, log.n_draws)
    return log


def write(folder, draws=DRAWS):
    log = opened(folder)
    for draw in draws:
        log.append(draw, {"after": draw["draw"]})
    log.close()


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "draws")
    return tmp_path / "draws"


def ends(folder):
    """Return where the header and each record end."""
    found = []
    for k in range(len(DRAWS) + 1):
        write(folder / "some", DRAWS[:k])
        found.append((folder / "some" / "chain-0.draws").stat().st_size)
        shutil.rmtree(folder / "some")
    return found


def test_draws_and_state_are_read_back(folder):
    log = ChainLog(folder, 0)
    assert list(log.draws()) == DRAWS
    assert list(log.draws(2)) == DRAWS[:2]
    assert (log.header, log.n_draws, log.left_over) == (HEADER, 5, 0)
    assert log.state() == (5, {"after": 4})


def test_a_log_cut_at_any_byte_keeps_its_whole_draws(tmp_path):
    path = tmp_path / "chain-0.draws"
    where = ends(tmp_path)
    write(tmp_path)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        log = ChainLog(tmp_path, 0)
        whole = [end for end in where if end <= cut]
        assert log.n_draws == max(len(whole) - 1, 0)
        assert list(log.draws()) == DRAWS[: log.n_draws]
        assert log.left_over == cut - (whole[-1] if whole else 0)
        log.open(HEADER, log.n_draws)
        log.append(DRAWS[0], None)
        log.close()
        assert [*ChainLog(tmp_path, 0).draws()] == [*DRAWS[: log.n_draws - 1], DRAWS[0]]


class KilledError(Exception):
    pass


def test_every_draw_has_its_state_wherever_writing_ends(folder, monkeypatch):
    """As by a kill: a number of bytes of the state and the draw are written, and no more."""
    write_all = ChainLog._write
    n_bytes, ended = 0, False
    while not ended:
        log = opened(folder)
        before, left = log.n_draws, n_bytes

        def some(file, data):
            nonlocal left
            write_all(file, data[:left])
            if left < len(data):
                raise KilledError
            left -= len(data)

        monkeypatch.setattr(log, "_write", some)
        try:
            log.append({"draw": n_bytes}, {"after": n_bytes, "text": "y" * 50})
            ended = True
        except KilledError:
            pass
        log.close()
        found = ChainLog(folder, 0)
        assert found.n_draws == before + ended
        assert found.state()[0] == found.n_draws
        n_bytes += 1
    assert n_bytes > 100


def test_a_state_that_was_half_written_is_not_taken(folder):
    newest = state_file(folder, 0, 5)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert ChainLog(folder, 0).state() == (4, {"after": 3})


def test_after_a_loss_of_power_the_disk_may_end_in_zeros(folder):
    path = folder / "chain-0.draws"
    path.write_bytes(path.read_bytes() + bytes(100))
    log = ChainLog(folder, 0)
    assert (log.n_draws, log.left_over) == (5, 100)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_what_was_synchronized_last_stays_whole_until_the_next_time(tmp_path, monkeypatch, count):
    """However many draws were made since then, of which the disk may know nothing."""
    write(tmp_path, DRAWS[:count])
    path = tmp_path / "chain-0.draws"
    on_disk = path.read_bytes()
    monkeypatch.setattr("pymc_mpimap.draws.log._SYNC", float("inf"))
    log = opened(tmp_path)
    for k in range(7):
        log.append({"draw": k}, {"later": k})
    log.close()
    path.write_bytes(on_disk)
    assert ChainLog(tmp_path, 0).state() == (count, {"after": count - 1})


def test_damage_elsewhere_is_refused_with_the_way_out(folder):
    path = folder / "chain-0.draws"
    data = bytearray(path.read_bytes())
    data[-len(DRAWS[-1]["text"]) - 60] ^= 1  # in the draw before the last
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"is damaged: 3 draws are good.* truncate -s \d+ "
    ) as told:
        ChainLog(folder, 0)
    size = int(str(told.value).split("truncate -s ")[1].split()[0])
    path.write_bytes(data[:size])
    assert [*ChainLog(folder, 0).draws()] == DRAWS[:3]


def test_two_writers_are_refused(folder):
    with (folder / "chain-0.draws").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is adding draws"):
            opened(folder)


def test_a_full_disk_is_told_with_the_path():
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OSError, match="/dev/full"),
    ):
        ChainLog._write(full, b"draw")
