"""Files that are not this chain's, or not this user's."""

import logging
import os
import pickle
import shutil
import stat

import numpy as np
import pytest

import pymc_mpimap as mpimap
from pymc_mpimap import InputError, MapRectWarning
from pymc_mpimap.draws import files
from pymc_mpimap.draws.header import Header
from pymc_mpimap.draws.log import ChainLog
from pymc_mpimap.draws.record import pack
from pymc_mpimap.draws.writer import ChainWriter
from tests.draws.chains import DRAWS, Kept, N, contents, sample
from tests.draws.files import overwrite, records, state_file

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def _kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("foreign") / "draws")


@pytest.fixture
def folder(_kept, tmp_path):
    shutil.copytree(_kept.folder, tmp_path / "draws")
    return tmp_path / "draws"


def refused(folder, match):
    """Check that a folder is neither read nor gone on from, and stays as it is."""
    before = contents(folder)
    with pytest.raises(InputError, match=match):
        mpimap.read_draws(folder)
    with pytest.raises(InputError, match=match):
        sample(folder, 2 * DRAWS, chains=2)
    assert contents(folder) == before


@pytest.mark.parametrize("number", ["x", "", "01", "-1", "1.5"])
def test_names_that_are_no_chains(folder, number):
    name = f"chain-{number}.draws"
    (folder / name).write_bytes((folder / "chain-0.draws").read_bytes())
    refused(folder, rf"{name}'?.* is (no number of a chain|none of the files).*move it elsewhere")


def test_a_directory(folder):
    (folder / "chain-1.draws").mkdir()
    refused(folder, r"chain-1\.draws is a directory, .*: move it elsewhere")


def test_a_symbolic_link(folder, tmp_path):
    (folder / "chain-0.draws").rename(tmp_path / "there")
    (folder / "chain-0.draws").symlink_to(tmp_path / "there")
    refused(folder, r"chain-0\.draws is a symbolic link, .*put the file itself there")
    (folder / "chain-0.draws").unlink()
    (folder / "chain-0.draws").symlink_to(tmp_path / "nowhere")
    refused(folder, r"chain-0\.draws is a symbolic link")


def test_a_named_pipe(folder):
    os.mkfifo(folder / "chain-1.draws")
    with pytest.raises(InputError, match=r"chain-1\.draws is no regular file"):
        mpimap.read_draws(folder)
    with pytest.raises(InputError, match=r"chain-1\.draws is no regular file"):
        sample(folder, chains=2)


OLD = b"draw" + (20).to_bytes(8, "little") + bytes(4) + pickle.dumps({"variables": {}})


@pytest.mark.parametrize(
    "data", [b"", b"some text\n", bytes(5000), b"PK\3\4" + bytes(100), OLD, b"\x93MPIMAP\1"]
)
def test_files_of_other_programs(folder, data):
    (folder / "chain-1.draws").write_bytes(data)
    refused(
        folder,
        rf"chain-1\.draws has no header of a file of draws within its {len(data)} bytes: it is not "
        "from disk_trace, or from a version before 0.1.0, .*move it elsewhere",
    )


def test_a_later_format(folder, monkeypatch):
    monkeypatch.setattr("pymc_mpimap.draws.record.FORMAT", 2)
    record, _ = pack(1, 0, Header(1, {}, {}, 0).pack(), None)
    monkeypatch.undo()
    (folder / "chain-1.draws").write_bytes(record * 2)
    refused(folder, r"chain-1\.draws is of format 2, .* reads format 1: use the version")


@pytest.mark.parametrize(
    "header",
    [
        b"no JSON",
        b"[]",
        b'{"chain": 1, "run": 0, "versions": {}}',
        b'{"chain": 1, "versions": {}, "variables": {}}',
        b'{"chain": 1, "run": 0, "versions": {}, "variables": {"x": [[1], "object"]}}',
        b'{"chain": 1, "run": 0, "versions": {}, "variables": {"x": [[-1], "float64"]}}',
        b'{"chain": 1, "run": 0, "versions": {}, "variables": {"x": [[1e30], "float64"]}}',
        b"[" * 100_000,
    ],
)
def test_headers_that_are_none(folder, header):
    record, _ = pack(1, 0, header, None)
    (folder / "chain-1.draws").write_bytes(record * 2)
    refused(folder, r"chain-1\.draws is not from disk_trace: its header is none: ")


def test_draws_that_are_not_as_long_as_their_variables(folder):
    header, _ = pack(1, 0, Header(1, {"x": ((2,), "float64")}, {}, 0).pack(), None)
    (folder / "chain-1.draws").write_bytes(header * 2 + pack(1, 1, b"\0" + bytes(8), None)[0])
    refused(folder, r"draw 0, at byte \d+, has 9 bytes of values, and those .* are 17")


def test_a_chain_under_another_number(folder):
    shutil.copy(folder / "chain-0.draws", folder / "chain-1.draws")
    refused(folder, r"chain-1\.draws has the draws of chain 0: name it chain-0\.draws again")


def begin(folder, chain, rest=None, run=0):
    """Make a chain of three draws."""
    header = Header(chain, {"x": ((), "float64")}, {}, run)
    writer = ChainWriter(ChainLog(folder, chain), 0, header, rest)
    for k in range(3):
        writer.append({"x": np.array(k + 0.0)}, rest, rest, in_warmup=False)
    writer.close()


def test_a_chain_that_is_missing(tmp_path):
    begin(tmp_path, 0)
    begin(tmp_path, 2)
    with pytest.warns(MapRectWarning, match="has no chain 1, but chain 2"):
        assert [*mpimap.read_draws(tmp_path)] == [0, 2]


def test_fewer_chains_than_there_are(folder):
    sample(folder, chains=3)
    before = contents(folder)
    with pytest.raises(InputError, match=r"has draws of chain 1, 2 too, and only 1 .* at least 3"):
        sample(folder, chains=1)
    assert contents(folder) == before


def test_states_without_draws(folder):
    (folder / "chain-0.draws").unlink()
    before = contents(folder)
    with pytest.raises(InputError, match=r"chain-0\.state-\d, .*: move chain-0\.draws back; or"):
        sample(folder)
    with pytest.raises(InputError, match="holds no draws"):
        mpimap.read_draws(folder)
    assert contents(folder) == before


def test_states_of_other_programs(folder):
    path = state_file(folder, 0, N)
    path.write_text("some text")
    before = contents(folder)
    with pytest.raises(InputError, match=rf"{path.name} is not from disk_trace, .*move it"):
        sample(folder, 2 * DRAWS)
    assert contents(folder) == before
    assert len(mpimap.read_draws(folder, warmup=True)[0]["x"]) == N
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=rf"{path.name} is a directory"):
        sample(folder, 2 * DRAWS)


@pytest.mark.parametrize("data", [b"", b"\x93MPI", bytes(9)])
def test_a_log_that_was_being_begun(tmp_path, data):
    """As a kill leaves it: it is begun again."""
    (tmp_path / "chain-0.new").write_bytes(data)
    with pytest.raises(InputError, match="holds no draws"):
        mpimap.read_draws(tmp_path)
    sample(tmp_path)
    assert not (tmp_path / "chain-0.new").exists()
    assert len(mpimap.read_draws(tmp_path)[0]["x"]) == DRAWS


def test_a_file_of_another_program_where_a_log_is_begun(tmp_path):
    (tmp_path / "chain-0.new").write_text("text")
    with pytest.raises(InputError, match=r"chain-0\.new is not from disk_trace: move it elsewhere"):
        sample(tmp_path)
    assert (tmp_path / "chain-0.new").read_text() == "text"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_reading_runs_nothing_that_a_file_holds(tmp_path):
    bomb = Bomb(tmp_path / "exploded")
    folder = tmp_path / "draws"
    begin(folder, 0, bomb)
    np.testing.assert_array_equal(mpimap.read_draws(folder)[0]["x"], [0, 1, 2])
    assert not bomb.path.exists()
    ChainLog(folder, 0).settings().close()  # it does explode
    assert bomb.path.exists()


def test_reading_unpickles_nothing(folder, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    assert mpimap.read_draws(folder)[0]["x"].shape == (DRAWS, 2)


def writable(folder, name):
    path = state_file(folder, 0, N) if name == "state" else folder / name
    path.chmod(0o664)
    return path


@pytest.mark.parametrize("name", ["chain-0.draws", "state"])
def test_files_that_others_may_write_to(folder, name):
    path = writable(folder, name)
    before = contents(folder)
    with pytest.raises(InputError, match=rf"{path.name} \(mode 664\), .*: chmod go-w .*chain-\*"):
        sample(folder, 2 * DRAWS)
    assert contents(folder) == before
    assert len(mpimap.read_draws(folder, warmup=True)[0]["x"]) == N
    path.chmod(0o644)
    assert sample(folder, 2 * DRAWS).posterior.sizes["draw"] == 2 * DRAWS


def test_files_of_another_user(folder, monkeypatch):
    other = os.geteuid() + 1
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: other)
        with pytest.raises(InputError, match=r"chain-0\.draws belongs to user .*cp -r"):
            sample(folder, 2 * DRAWS)
        assert len(mpimap.read_draws(folder, warmup=True)[0]["x"]) == N
        # Where a file system makes all files somebody else's, it is told before a draw is made.
        with pytest.raises(InputError, match=r"chain-0\.new belongs to user"):
            sample(folder / "new")
    shutil.rmtree(folder / "new")
    assert contents(folder) == before


def test_own_files_can_be_gone_on_from_whatever_the_umask(tmp_path):
    umask = os.umask(0)
    try:
        sample(tmp_path)
        assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o644}
        sample(tmp_path, 2 * DRAWS)
    finally:
        os.umask(umask)


@pytest.fixture
def nothing_is_writable(monkeypatch):
    """As on a file system that is mounted read-only; root may write everywhere else."""

    def reading(path, flags, *rest):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system", str(path))
        return system_open(path, flags, *rest)

    system_open = os.open
    monkeypatch.setattr(files.os, "open", reading)


@pytest.mark.usefixtures("nothing_is_writable")
def test_where_nobody_can_write(folder, caplog):
    """Draws are read, by `pm.sample` too; only new ones cannot be added."""
    caplog.set_level(logging.INFO, "pymc")
    assert len(mpimap.read_draws(folder, warmup=True)[0]["x"]) == N
    assert sample(folder).posterior.sizes["draw"] == DRAWS
    with pytest.raises(InputError, match=r"chain-0\.draws cannot be written to: Read-only file"):
        sample(folder, 2 * DRAWS)


def test_a_complete_chain_with_a_cut_off_draw_after_it(folder):
    """It is left there: nothing is written for a chain that is read."""
    path = folder / "chain-0.draws"
    overwrite(path, path.read_bytes()[:-7])
    before = contents(folder)
    assert sample(folder, DRAWS - 1).posterior.sizes["draw"] == DRAWS - 1
    assert contents(folder) == before
    assert records(path)[-2].number == N - 1
