"""Several hosts on one machine, for what differs between ranks of one host and of several.

Each is a set of Linux namespaces: a network with an address of its own, a host name, processes that
see and signal each other alone, shared memory and a table of hosts. A bridge in a further namespace
is the switch between them, so that the machine's own network is left alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.launchers import Launcher

__all__ = ["Hosts"]

# How each launcher is told to use other hosts: what it takes for ssh, and then the list of them.
_OPTIONS = {
    "mpich": ("-launcher", "rsh", "-launcher-exec", "{rsh}", "-hosts"),
    "openmpi": ("--prtemca", "plm_ssh_agent", "{rsh}", "--map-by", "slot", "--host"),
}

# So that messages cross the network, as they might not on one machine.
_VARIABLES = {
    "mpich": {"UCX_TLS": "tcp"},
    "openmpi": {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"},
}

# What becomes the first process of a host: all others end with it, and it ends with the tests.
_START = """\
echo "$2" > /proc/sys/kernel/hostname
mount --bind "$1/table" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
exec "$3" -I "$4" serve "$1" "$2"
"""
_REMOTE = Path(__file__).parent / "scripts" / "remote.py"


class Hosts:
    """A context in which there are such hosts; all that runs on them ends with it.

    Parameters
    ----------
    n : int

    Attributes
    ----------
    names : list of str

    Raises
    ------
    RuntimeError
        On entering, if hosts cannot be made here: why.
    """

    def __init__(self, n: int = 3):
        self.names = [f"h{i}" for i in range(n)]
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise RuntimeError("only root can make namespaces: run these tests as root")
        for program, package in (("ip", "iproute2"), ("unshare", "util-linux")):
            if shutil.which(program) is None:
                raise RuntimeError(f"{program} is missing: apt-get install {package}")
        self._folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        try:
            self._make()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _make(self) -> None:
        lines = [f"{_address(i)} {name}\n" for i, name in enumerate(self.names)]
        table = "127.0.0.1 localhost\n" + "".join(lines)
        (self._folder / "table").write_text(table, encoding="ascii")
        switch = self._start("switch")
        pids = [self._start(name) for name in self.names]
        _ip(switch, "link add bridge type bridge")
        _ip(switch, "link set bridge up")
        for i, pid in enumerate(pids):
            _ip(pid, f"link add eth0 type veth peer name port{i} netns {switch}")
            _ip(switch, f"link set port{i} master bridge up")
            _ip(pid, f"addr add {_address(i)}/24 dev eth0")
            _ip(pid, "link set eth0 up")
        self._pids = dict(zip(self.names, pids, strict=True))
        self._rsh = self._folder / "rsh"
        run = shlex.join([sys.executable, "-I", str(_REMOTE), "run", str(self._folder)])
        self._rsh.write_text(f'#!/bin/sh\nexec {run} "$@"\n', encoding="utf-8")
        self._rsh.chmod(0o755)

    def _start(self, name: str) -> int:
        """Start a host; return the process id of its first process."""
        spaces = ("--net", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child")
        arguments = (self._folder, name, sys.executable, _REMOTE)
        process = subprocess.Popen(
            ["unshare", *spaces, "sh", "-ec", _START, "sh", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != "ready\n":
            said = process.stderr.read().strip()
            raise RuntimeError(f"the host {name} could not be made: {said}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return int(children.split()[0])

    def _end(self) -> None:
        for process in self._running:
            # Its end of the pipe ends the host's first process, and with it all others there.
            _, said = process.communicate()
            sys.stderr.write(said)
        shutil.rmtree(self._folder)

    def command(
        self, launcher: Launcher, ranks: int, *arguments: object, options: Sequence[str] = ()
    ) -> list[str]:
        """Return the command line that runs ``python *arguments`` on so many ranks of each host.

        mpiexec runs on the first of them.
        """
        where = ",".join(f"{name}:{ranks}" for name in self.names)
        chosen = [option.format(rsh=self._rsh) for option in _OPTIONS[launcher.name]]
        command = launcher.command(
            ranks * len(self.names), *arguments, options=(*chosen, where, *options)
        )
        return [str(self._rsh), self.names[0], shlex.join(command)]

    def environment(
        self, launcher: Launcher, base: Mapping[str, str] = os.environ
    ) -> dict[str, str]:
        """Return the environment to start it in."""
        # Where launchers put files under the host's name: in a folder that is the host's own.
        return launcher.environment({**base, **_VARIABLES[launcher.name], "TMPDIR": "/dev/shm"})

    def cut_off(self, name: str) -> None:
        """Take down the link of a host: what it sends and what is sent to it is lost."""
        _ip(self._pids[name], "link set eth0 down")
        (self._folder / f"{name} is cut off").touch()

    def has(self, name: str, pid: int) -> bool:
        """Whether a process runs on a host."""
        spaces = [Path(f"/proc/{which}/ns/net") for which in (pid, self._pids[name])]
        try:
            return spaces[0].readlink() == spaces[1].readlink()
        except FileNotFoundError:
            return False


def _address(i: int) -> str:
    return f"10.77.0.{i + 1}"


def _ip(pid: int, arguments: str) -> None:
    """Run ``ip`` in the network of a process."""
    command = ["nsenter", "--target", str(pid), "--net", "ip", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {arguments}: {done.stderr.strip()}")
