"""What jobs print on any rank: whole lines, marked, and there when the rank is not any more."""

import io
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pymc_mpimap.pool import output

MPIEXEC = Path(sys.executable).parent / "mpiexec"
SCRIPT = Path(__file__).parent / "scripts" / "prints.py"


def run(how):
    return subprocess.run(
        [str(word) for word in (MPIEXEC, "-n", 3, sys.executable, SCRIPT, how)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.mpi
def test_lines_of_several_ranks_are_whole_and_marked():
    result = run("prints")
    assert result.returncode == 0, result.stderr
    said = Counter(result.stdout.splitlines())
    ranks = (0, 0, 1, 1, 2, 2)  # of each job
    marks = ["", "[rank 1] ", "[rank 2] "]
    expected = Counter(["[0. 1. 2. 3. 4. 5.]", "[rank 2] never ended"])
    for job, rank in enumerate(ranks):
        expected.update(f"{marks[rank]}out {job} {k} {'x' * k}" for k in range(200))
        expected.update(f"c {job} {k}" for k in range(200))
        expected.update([f"{marks[rank]}θ", f"{marks[rank]}begun {job}"])
    assert said == expected, (said - expected, expected - said)
    errors = Counter(line for line in result.stderr.splitlines() if line[:1] in "[el")
    expected = Counter(f"logged {job}" for job in range(6))
    for job, rank in enumerate(ranks):
        expected.update(f"{marks[rank]}err {job} {k}" for k in range(200))
    assert errors == expected, (errors - expected, expected - errors)


@pytest.mark.mpi
@pytest.mark.parametrize("how", ["is killed", "crashes"])
def test_last_words(how):
    """What was printed right before a rank dies; and in a crash, where it was."""
    result = run(how)
    assert result.returncode != 0
    assert "[rank 2] the last word\n" in result.stdout
    assert "the last of C\n" in result.stdout
    assert "[rank 2] the last error\n" in result.stderr
    if how == "crashes":
        assert "Fatal Python error: Segmentation fault" in result.stderr
        assert re.search(r'prints\.py", line \d+ in job', result.stderr)


@pytest.mark.mpi
def test_where_rank_0_crashes():
    """Its jobs crash as those of others do, and so does what else it runs."""
    result = run("crashes on rank 0")
    assert result.returncode != 0
    assert "Fatal Python error: Segmentation fault" in result.stderr
    assert re.search(r'prints\.py", line \d+ in job', result.stderr)


@pytest.fixture
def pipe():
    """Return a marked stream, and a function that reads what it has passed on."""
    here, there = os.pipe()
    os.set_blocking(here, False)
    lines = output._MarkedLines("<stdout>", there, "[rank 7] ")

    def read():
        try:
            return os.read(here, 1 << 20)
        except BlockingIOError:
            return b""

    yield lines, read
    os.close(here)
    os.close(there)


def test_a_line_is_held_back_until_it_ends(pipe):
    lines, read = pipe
    stream = io.TextIOWrapper(lines, encoding="utf-8", newline="\n", write_through=True)
    stream.write("one ")
    stream.flush()
    assert read() == b""
    stream.write("line\nand\n\nmore")
    assert read() == b"[rank 7] one line\n[rank 7] and\n[rank 7] \n"
    lines.end_line()
    lines.end_line()
    assert read() == b"[rank 7] more\n"
    assert (stream.name, stream.isatty(), stream.fileno()) == ("<stdout>", False, lines.fileno())
    stream.detach()


def test_a_line_without_end_is_not_held_back_for_ever(pipe):
    lines, read = pipe
    for _ in range(2):
        lines.write(b"x" * 17_000)
    assert read() == b"[rank 7] " + 34_000 * b"x" + b"\n"


def test_what_is_in_a_pipe_is_waited_for(pipe):
    lines, read = pipe
    assert output._unread(lines.fileno()) == 0
    lines.write(b"line\n")
    assert output._unread(lines.fileno()) == len("[rank 7] line\n")
    read()
    assert output._unread(lines.fileno()) == 0
    with Path(os.devnull).open("w") as nothing:
        assert output._unread(nothing.fileno()) == 0
