"""Damaged files of draws: what is whole is read, what is not is told, and nothing is written."""

import re
import subprocess

import numpy as np
import pytest

import pymc_mpimap as mpimap
from pymc_mpimap import InputError, MapRectWarning
from pymc_mpimap.draws.record import Frame, pack
from tests.draws.chains import DRAWS, Kept, N, contents, sample
from tests.draws.files import overwrite, records, state_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def _kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("damaged") / "draws")


@pytest.fixture
def kept(_kept):
    _kept.restore()
    return _kept


def bits(start, stop):
    return [(at, 1 << bit) for at in range(start, stop) for bit in range(8)]


def assert_told(kept, damaged, n_missing):
    """Check that a damaged log is refused, read as far as it is whole, and left as it is."""
    overwrite(kept.path, damaged)
    with pytest.raises(InputError, match=r"chain-0\.draws is damaged: .*bytes? \d+"):
        kept.go_on()
    values, told = kept.read()
    assert contents(kept.folder) == kept.files | {kept.path: damaged}
    assert re.search(r"chain-0\.draws: .*bytes? \d+", told), told
    # Those that are there are the chain's, in its order.
    where = [k for k in range(N) if (kept.values[k] == values).all(axis=1).any()]
    np.testing.assert_array_equal(values, kept.values[where])
    assert len(values) == N - n_missing
    missing = sorted({*range(N)} - {*where})
    if missing:
        assert f"of {N} draws" in told
        assert re.search(rf"missing: .*\b{missing[0]}\b", told), told
    return told


def test_a_kept_chain_is_whole(kept):
    kept.go_on()
    assert contents(kept.folder) == kept.files
    values, told = kept.read()
    assert (len(values), told) == (N, "")
    # Draws of the model differ, so that each can be told by its values.
    assert len(np.unique(kept.values, axis=0)) == N


def test_every_bit_of_the_first_kilobyte(kept):
    for at, bit in bits(0, 1024):
        damaged = bytearray(kept.data)
        damaged[at] ^= bit
        assert_told(kept, bytes(damaged), 0)


@pytest.mark.parametrize("k", [1, 5, N - 1])
def test_every_bit_of_a_draws_framing(kept, k):
    for at, bit in bits(kept.start(k), kept.start(k) + 64):
        damaged = bytearray(kept.data)
        damaged[at] ^= bit
        told = assert_told(kept, bytes(damaged), 1)
        assert str(kept.start(k)) in told


def test_every_bit_of_the_last_draw(kept):
    for at, bit in bits(kept.start(N - 1), len(kept.data)):
        damaged = bytearray(kept.data)
        damaged[at] ^= bit
        assert_told(kept, bytes(damaged), 1)


def join(kept, *draws):
    return b"".join([kept.data[: kept.start(3)], *draws, kept.data[kept.ends[6] :]])


@pytest.mark.parametrize(
    ("order", "n_missing", "what"),
    [
        ([3, 4, 6], 1, "draw 6 stands where draw 5 was to be"),
        ([4, 5, 6], 1, "draw 4 stands where draw 3 was to be"),
        ([3, 5, 4, 6], 0, "draw 5 stands where draw 4 was to be"),
        ([3, 4, 4, 5, 6], 0, "draw 4 is there once more"),
        ([3, 4, 5, 4, 6], 0, "draw 4 is there once more"),
        ([6, 3, 4, 5], 0, "draw 6 stands where draw 3 was to be"),
        ([], 4, "draw 7 stands where draw 3 was to be"),
    ],
)
def test_exchanged_missing_and_repeated_draws(kept, order, n_missing, what):
    told = assert_told(kept, join(kept, *map(kept.draw, order)), n_missing)
    assert what in told


def test_draws_of_another_chain(kept, tmp_path):
    other = Kept(tmp_path / "draws")
    told = assert_told(kept, join(kept, kept.draw(3), other.draw(4), *map(kept.draw, (5, 6))), 1)
    assert "draw 4 of another chain" in told
    # A first record of another file does not make all others strangers.
    size = records(other.path)[0].stop
    told = assert_told(kept, other.data[:size] + kept.data[records(kept.path)[0].stop :], 0)
    assert "header of another chain" in told


def test_a_draw_of_another_format(kept, monkeypatch):
    frame = records(kept.path)[2 + 4]
    monkeypatch.setattr("pymc_mpimap.draws.record.FORMAT", 2)
    other, _ = pack(frame.identity, frame.number, kept.data[frame.plain], None)
    told = assert_told(kept, join(kept, kept.draw(3), other, *map(kept.draw, (5, 6))), 1)
    assert "draw 4 of another format" in told


@pytest.mark.parametrize("n", [1, 30, 60, 500])
@pytest.mark.parametrize("where", [1, 70])
@pytest.mark.parametrize("kind", ["removed", "added", "zeros"])
def test_bytes_are_removed_added_or_lost_in_the_middle(kept, kind, where, n):
    at = kept.start(4) + where
    rest = {"removed": b"", "added": b"\x93MPIMAP" + bytes(n) + kept.data[at : at + n]}
    damaged = kept.data[:at] + rest.get(kind, bytes(n)) + kept.data[at + n :]
    n_hit = 1 if kind == "added" else sum(kept.start(k) < at + n for k in range(4, N))
    assert_told(kept, damaged, n_hit)


@pytest.mark.parametrize("rest", [b"\0" * 30 + b"x", b"text\n", b"\x93MPIMAP\1" + b"x" * 30])
def test_what_follows_the_last_draw_and_is_none_stays(kept, rest):
    told = assert_told(kept, kept.data + rest, 0)
    assert f"no record can be read (bytes {len(kept.data)} to {len(kept.data + rest)})" in told


def test_a_cut_off_record_that_is_not_the_next_draw_is_damage(kept):
    before = kept.data[: kept.start(N - 2)]
    # Of the last draw but one, some bytes are missing, and the last one is cut off.
    draw = kept.draw(N - 2)
    assert_told(kept, before + draw[:60] + draw[180:] + kept.draw(N - 1)[:60], 2)
    # A draw is missing.
    for n in (30, 100):
        told = assert_told(kept, before + kept.draw(N - 1)[:n], 2)
        assert str(len(before)) in told


def test_many_faults_are_told_in_short(kept):
    damaged = bytearray(kept.data)
    for k in range(1, N, 2):
        damaged[kept.ends[k] - 1] ^= 8
    told = assert_told(kept, bytes(damaged), N // 2)
    assert "draw 5 does not have its checksum" in told
    assert "and 3 more faults" in told
    assert "6 are missing: 1, 3, 5, 7, 9 and others" in told


def ends_in_zeros(kept, start, size):
    return kept.data[:start] + bytes(size - start)


def test_a_loss_of_power_leaves_zeros_for_the_draws_that_were_not_on_disk(kept):
    """From the end of a draw, or from a block of the disk, and to the end of the file."""
    size = len(kept.data)
    blocks = range(-(-kept.start(1) // 512) * 512, size, 512)
    assert len(blocks) > 1
    for at in [*(kept.start(k) for k in range(N - 3, N)), *blocks]:
        for to in (size, size + 3000):
            n_whole = sum(end <= at for end in kept.ends)
            kept.restore()
            overwrite(kept.path, ends_in_zeros(kept, at, to))
            values, told = kept.read()
            np.testing.assert_array_equal(values, kept.values[:n_whole])
            assert f"draw {n_whole}, from byte" in told
            assert ("is missing" in told or "are missing" in told) == (n_whole < N - 1)
            kept.restore()
            # A state that was on the disk before, as there always is; here, that of the first draw.
            overwrite(kept.path, ends_in_zeros(kept, at, to))
            kept.go_on()


def test_zeros_that_no_loss_of_power_leaves_are_damage(kept):
    """Within a block of the disk."""
    for start in (len(kept.data) - 3, kept.start(N - 1) + 10):
        assert_told(kept, ends_in_zeros(kept, start, len(kept.data)), 1)
    start = kept.start(N - 2) + 10
    assert_told(kept, ends_in_zeros(kept, start, kept.ends[N - 2]) + kept.draw(N - 1), 1)


def test_a_copy_that_is_not_complete(kept):
    """It ends as by a kill; what was made after that is told by the sampler's state."""
    overwrite(kept.path, kept.data[: kept.start(4)])
    with pytest.warns(MapRectWarning, match=f"of {N - 1} draws.*7 are missing: 4 to {N - 2}"):
        values = mpimap.read_draws(kept.folder, warmup=True)[0]["x"]
    np.testing.assert_array_equal(values, kept.values[:4])
    for path in kept.folder.glob("*.state-*"):
        if path != state_file(kept.folder, 0, N):
            path.unlink()
    before = contents(kept.folder)
    with pytest.raises(InputError, match="no state of the sampler beside it is whole and of one"):
        kept.go_on()
    assert contents(kept.folder) == before


def command(told):
    return re.search(r"(?:truncate|dd) .*$", str(told.value))[0]


def test_a_damaged_last_draw_is_cut_off_as_the_error_says(kept):
    damaged = bytearray(kept.data)
    damaged[kept.start(N - 1) + 60] ^= 1
    overwrite(kept.path, damaged)
    with pytest.raises(InputError, match=r"The 11 draws before are whole.*truncate -s \d+") as told:
        sample(kept.folder)
    subprocess.run(command(told), shell=True, check=True, timeout=10)
    again = sample(kept.folder)
    np.testing.assert_array_equal(again.posterior["x"][0], kept.values[N - DRAWS :])
    assert kept.read()[1] == ""


@pytest.mark.parametrize("copy_of_header", [0, 1])
def test_a_damaged_header_is_put_back_as_the_error_says(kept, copy_of_header):
    damaged = bytearray(kept.data)
    damaged[records(kept.path)[copy_of_header].start + 20] ^= 1
    overwrite(kept.path, damaged)
    with pytest.raises(InputError, match="the header is there twice, and one is whole") as told:
        sample(kept.folder)
    subprocess.run(command(told), shell=True, check=True, timeout=10, capture_output=True)
    assert kept.path.read_bytes() == kept.data
    kept.go_on()


def test_no_draw_is_given_up_for_a_damaged_one_before_it(kept):
    damaged = bytearray(kept.data)
    damaged[kept.start(4) + 60] ^= 1
    overwrite(kept.path, damaged)
    with pytest.raises(
        InputError, match=r"read_draws reads the 11 draws that are whole\. To go on"
    ):
        sample(kept.folder)
    assert kept.path.read_bytes() == damaged


def test_without_any_header(kept):
    damaged = bytearray(kept.data)
    for frame in records(kept.path)[:2]:
        damaged[frame.start + 20] ^= 1
    overwrite(kept.path, damaged)
    for use in (kept.read, kept.go_on):
        with pytest.raises(InputError, match=r"chain-0\.draws has no header of a file of draws"):
            use()
    assert kept.path.read_bytes() == damaged


def test_a_damaged_state_is_not_gone_on_from(kept):
    path = state_file(kept.folder, 0, N)
    was = path.read_bytes()[: Frame.at(path.read_bytes(), 0).stop]
    states = {p: p.read_bytes() for p in kept.folder.glob("*.state-*") if p != path}
    for state in states:
        overwrite(state, b"")
    for at in range(0, len(was), 7):
        overwrite(path, was[:at] + bytes([was[at] ^ 16]) + was[at + 1 :])
        with pytest.raises(InputError, match="state"):
            kept.go_on()
    assert kept.path.read_bytes() == kept.data
