"""Portraits of ranks: their places, and the code and configuration that must be the same on all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import secrets
import socket
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Self

from pymc_mpimap.errors import PoolError
from pymc_mpimap.pool.settings import fixed_settings
from pymc_mpimap.version import PACKAGE, __version__

__all__ = [
    "Place",
    "Portrait",
    "check_agreement",
    "check_sources",
    "loaded_sources",
    "new_seal",
    "own_modules",
]

# What decides the bits of results, or travels pickled.
_PACKAGES = (
    "pytensor", "numpy", "scipy", "numba", "llvmlite", "cloudpickle", "pymc", "sundials4py", "jax",
    "jaxlib",
)  # fmt: skip

_NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Place:
    """The place where a rank runs.

    Attributes
    ----------
    host : str
    cores : frozenset of int
        Those that it may use.
    pid : int
        Its process, which means something within its space of processes alone.
    space : str
    """

    host: str
    cores: frozenset[int]
    pid: int
    space: str

    @classmethod
    def of(cls, host: str, cores: Iterable[int], pid: int, space: str) -> Self:
        """Return a place from what has travelled."""
        return cls(host, frozenset(cores), pid, space)


@dataclass(frozen=True)
class Portrait:
    """A rank's description of itself when the ranks meet.

    It travels as JSON: rank 0 unpickles nothing that another rank made.

    Attributes
    ----------
    place : Place
    versions : dict of str to str
        Of the processor's architecture, Python and packages.
    package : str
        A digest of this package's own source.
    script : tuple of str, optional
        The path of the script that the rank runs, and a digest of what is in it. None for a rank
        that runs no script of the user's: one that was spawned, for example.
    settings : dict of str to str
        PyTensor's configuration, as far as it cannot be changed any more.
    sources : dict of str to tuple of str
        For each loaded module of the user's own, its path and a digest of what is in it.
    """

    place: Place
    versions: dict[str, str]
    package: str
    script: tuple[str, str] | None
    settings: dict[str, str]
    sources: dict[str, tuple[str, str]]

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the portrait of this rank."""
        return cls(
            Place(socket.gethostname(), _cores(), os.getpid(), _space()),
            _versions(),
            _digest_of_package(),
            _script(),
            fixed_settings(),
            loaded_sources(),
        )

    def encode(self) -> bytes:
        """Return the portrait as bytes."""
        return json.dumps(asdict(self), default=sorted).encode()  # the cores, a set

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Return the portrait that these bytes are."""
        fields = json.loads(encoded)
        fields["place"] = Place.of(**fields["place"])
        fields["script"] = None if fields["script"] is None else tuple(fields["script"])
        fields["sources"] = {name: tuple(both) for name, both in fields["sources"].items()}
        return cls(**fields)


def _cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _space() -> str:
    """Return what names the space of processes that this one's number belongs to."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return boot + str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname()


def _versions() -> dict[str, str]:
    versions = {
        "the processor architecture": platform.machine(),
        platform.python_implementation(): platform.python_version(),
        "pymc_mpimap": __version__,
    }
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = _NOT_INSTALLED
    return versions


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _digest_of_package() -> str:
    files = sorted(PACKAGE.rglob("*.py"))
    parts = [(str(file.relative_to(PACKAGE)).encode(), file.read_bytes()) for file in files]
    return _digest(b"\0".join(part for name_and_content in parts for part in name_and_content))


def _script() -> tuple[str, str] | None:
    """Return what this process was started to run: a file's path, or ``-c``, and its digest."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-c" and "-c" in sys.orig_argv[:-1]:
        return name, _digest(sys.orig_argv[sys.orig_argv.index("-c") + 1].encode())
    path = Path(name)
    try:
        if not path.is_file() or PACKAGE.resolve() in path.resolve().parents or _installed(name):
            return None
        return str(path.resolve()), _digest(path.read_bytes())
    except OSError:
        return None


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    return tuple({f"{os.path.realpath(paths[name])}{os.sep}" for name in names})


def _installed(file: str) -> bool:
    """Return whether a file belongs to Python or to an installed package: versions are compared."""
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return True
    return os.path.realpath(file).startswith(_installed_folders())


@functools.cache
def _source(file: str) -> tuple[str, str] | None:
    # Cached: what was imported is what the file held then, or soon after.
    if not file.endswith(".py") or _installed(file):
        return None
    try:
        return file, _digest(Path(file).read_bytes())
    except OSError:
        return None


def own_modules() -> list[ModuleType]:
    """Return the loaded modules that are the user's own: neither Python's nor installed."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.split(".")[0] not in ("__main__", "__mp_main__", "pymc_mpimap")
        and _source(str(getattr(module, "__file__", None) or "")) is not None
    ]


def loaded_sources() -> dict[str, tuple[str, str]]:
    """Return the path and a digest of each loaded module of the user's own.

    Functions of these modules travel by name: each rank calls what it finds in its own file.
    """
    found = {module.__name__: _source(str(module.__file__)) for module in own_modules()}
    return {name: source for name, source in found.items() if source is not None}


def check_agreement(portraits: Mapping[int, Portrait]) -> None:
    """Refuse ranks that would not compute the same as rank 0.

    Raises
    ------
    PoolError
        It names the rank, its host, and what is different.
    """
    mine = portraits[0]
    home = f"rank 0 on {mine.place.host}"
    for rank, other in sorted(portraits.items()):
        if rank:
            who = f"rank {rank} on {other.place.host}"
            _check_versions(mine, home, other, who)
            _check_code(mine, home, other, who)
            _check_settings(mine, home, other, who)


def _check_versions(mine: Portrait, home: str, other: Portrait, who: str) -> None:
    for name in {**mine.versions, **other.versions}:
        own = mine.versions.get(name, _NOT_INSTALLED)
        its = other.versions.get(name, _NOT_INSTALLED)
        if own != its:
            raise PoolError(
                f"{who} has {name} {its}, but {home} has {own}; results would differ. Use one "
                "environment on all hosts"
            )


def _check_code(mine: Portrait, home: str, other: Portrait, who: str) -> None:
    if mine.package != other.package:
        raise PoolError(
            f"{who} and {home} both have pymc_mpimap {__version__}, but their source files "
            "differ: one of them was edited. Use one environment on all hosts"
        )
    if mine.script and other.script and mine.script[1] != other.script[1]:
        raise PoolError(
            f"{who} runs {other.script[0]}, but {home} runs {mine.script[0]}, and what is in them "
            "differs: all ranks must run the same script"
        )
    check_sources(mine.sources, other.sources, who)


def _check_settings(mine: Portrait, home: str, other: Portrait, who: str) -> None:
    for name, own in mine.settings.items():
        if other.settings[name] != own:
            raise PoolError(
                f"{who} has PyTensor's {name}={other.settings[name]!r}, but {home} has {own!r}; "
                "results would differ. It cannot be changed once PyTensor is imported: set it by "
                "the same PYTENSOR_FLAGS or .pytensorrc on all ranks"
            )


def check_sources(
    mine: Mapping[str, tuple[str, str]],
    others: Mapping[str, tuple[str, str]],
    other: str,
) -> None:
    """Refuse a module of which two ranks have loaded different versions.

    Parameters
    ----------
    mine, others : mapping
        What `loaded_sources` says on rank 0 and on the other.
    other : str
        Who the other rank is, for the message.

    Raises
    ------
    PoolError
    """
    for name in sorted(mine.keys() & others.keys()):
        (path, digest), (its_path, its_digest) = mine[name], others[name]
        if digest != its_digest:
            raise PoolError(
                f"{other} has another version of the module {name} ({its_path}) than rank 0 "
                f"({path}); results would differ. Use one copy that all hosts see"
            )


def new_seal(portrait: Portrait) -> int:
    """Return a number for this crew and no other: what rank 0 runs, and when.

    Each order carries it, so that a rank obeys the rank 0 that it met, and nobody else.
    """
    content = portrait.encode() + secrets.token_bytes(16)
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
