"""Whole programs on MPI ranks, as tests start them, watch them and see them end."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pymc_mpimap.pool import spawned
from tests.hosts import Hosts
from tests.launchers import MPICH, Launcher

__all__ = ["SCRIPTS", "Started", "run", "send", "words"]

SCRIPTS = Path(__file__).parent / "scripts"
END = 2.0
"""Seconds within which all of a program's processes must be gone once it has ended."""


def words(script: str, *arguments: str, module: bool = False) -> list[object]:
    """Return what python is given to run one of the tests' scripts."""
    return [*(["-m", "pymc_mpimap"] if module else []), SCRIPTS / script, *arguments]


def run(
    ranks: int,
    script: str,
    *arguments: str,
    launcher: Launcher = MPICH,
    module: bool = False,
    env: Mapping[str, str] = os.environ,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end on so many ranks; on 0, without mpiexec."""
    given = words(script, *arguments, module=module)
    return subprocess.run(
        launcher.command(ranks, *given) if ranks else [sys.executable, *map(str, given)],
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
        env=launcher.environment(env, ranks),
        check=False,
    )


def send(number: int, pids: Iterable[int]) -> None:
    """Send processes a signal; some may have ended meanwhile."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


_NUMBERS = (b"PMI_RANK", b"OMPI_COMM_WORLD_RANK")
"""The variables in which launchers tell a process its rank."""

_numbers = itertools.count()


class Started:
    """A program that has come so far as to print ``READY``.

    Parameters
    ----------
    script : str
        One of the tests' scripts.
    *arguments : str
    ranks : int
        On each host, where there are several.
    launcher : Launcher
    hosts : Hosts, optional
    options : sequence of str
        More that mpiexec is given.
    env : mapping

    Attributes
    ----------
    process : subprocess.Popen
        What was started: mpiexec. It leads a process group of its own, all ranks included that the
        launcher leaves in it.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        ranks: int = 3,
        launcher: Launcher = MPICH,
        hosts: Hosts | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] = os.environ,
    ):
        # Its processes inherit this mark, and are found by it.
        name, mark = "TEST_PROGRAMS_MARK", f"{os.getpid()} {next(_numbers)}"
        self._mark = f"{name}={mark}".encode()
        self._script, self._spawns = script.encode(), launcher.spawns
        self._lines: list[str] = []
        self._read = threading.Condition()
        self._ended = False
        given = words(script, *arguments)
        env = {**env, name: mark}
        if hosts is None:
            command = launcher.command(ranks, *given, options=options)
            env = launcher.environment(env, ranks)
        else:
            command = hosts.command(launcher, ranks, *given, options=options)
            env = hosts.environment(launcher, env)
        # Whoever started the tests, nohup or a shell's background, may have had them ignored.
        signals = (signal.SIGHUP, signal.SIGINT)
        ignored = [each for each in signals if signal.getsignal(each) is signal.SIG_IGN]
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            start_new_session=True,
        )
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        self._reader = threading.Thread(target=self._read_all, daemon=True)
        self._reader.start()
        try:
            self.said("READY")
        except BaseException:
            self.kill()
            raise

    def _read_all(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._read:
                self._lines.append(line)
                self._read.notify_all()
        with self._read:
            self._ended = True
            self._read.notify_all()

    @property
    def output(self) -> str:
        """What was printed so far, by all ranks, errors included."""
        return "".join(self._lines)

    def said(self, pattern: str, timeout: float = 120.0) -> re.Match[str]:
        """Wait until something was printed; return where it matches."""
        with self._read:
            self._read.wait_for(lambda: self._ended or re.search(pattern, self.output), timeout)
            found = re.search(pattern, self.output)
        assert found, f"{pattern} was not printed, but: {self.output}"
        return found

    def processes(self) -> list[int]:
        """Return the process ids of all that still runs, the launcher's own included."""
        return [pid for pid, *_ in self._found()]

    def ranks(self) -> dict[int, int]:
        """Return the process ids of all ranks that still run, by the ranks' numbers.

        Of those that rank 0 has started the numbers are not known: they are counted.
        """
        ranks = {}
        for pid, command, environment in self._found():
            if self._spawns and self._script in command:
                ranks[0] = pid
            elif self._spawns and spawned.__file__.encode() in command:
                ranks[1 + len(ranks.keys() - {0})] = pid
            for name in () if self._spawns else _NUMBERS:
                if self._script in command and name in environment:
                    ranks[int(environment[name])] = pid
        return ranks

    def workers(self) -> list[int]:
        """Return the process ids of all ranks that still run, but that of rank 0."""
        return [pid for rank, pid in self.ranks().items() if rank > 0]

    def _found(self) -> list[tuple[int, bytes, dict[bytes, bytes]]]:
        """Return all processes: number, command if it is Python's, environment at the start."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # What has ended, and is only not waited for yet, has no environment.
                entries = (folder / "environ").read_bytes().split(b"\0")
                if self._mark not in entries:
                    continue
                python = "python" in (folder / "exe").readlink().name
                command = (folder / "cmdline").read_bytes() if python else b""
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            environment = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
            found.append((int(folder.name), command, environment))
        return sorted(found)

    def end(self, timeout: float = 60.0, straggling: float = END) -> tuple[int, str]:
        """Wait for the program and all its processes; return exit status and output.

        Parameters
        ----------
        timeout : float
            Seconds that it may take.
        straggling : float
            Seconds within which all of its processes must be gone after that.
        """
        try:
            self.process.wait(timeout)
            left = self.left(straggling)
            assert not left, f"processes were left running: {left}\n{self.output}"
        finally:
            self.kill()
        return self.process.returncode, self.output

    def left(self, seconds: float) -> list[int]:
        """Wait until all processes are gone; return those that are not by then."""
        deadline = time.monotonic() + seconds
        while (pids := self.processes()) and (wait := deadline - time.monotonic()) > 0:
            try:
                descriptor = os.pidfd_open(pids[0])
            except ProcessLookupError:
                continue
            select.select([descriptor], [], [], wait)
            os.close(descriptor)
        return pids

    def kill(self) -> None:
        """End all that still runs."""
        send(signal.SIGKILL, self.processes())
        self.process.kill()
        self.process.wait(60)
        self._reader.join(60)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
