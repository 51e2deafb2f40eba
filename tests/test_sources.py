"""Digests of the package's sources, which change with any of them, in whatever folder."""

import shutil

import pytest

from pymc_mpimap import version
from pymc_mpimap.native import cache
from pymc_mpimap.pool import portrait


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that may be edited, with one more folder in each folder."""
    copy = tmp_path / "pymc_mpimap"
    shutil.copytree(version.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [path for path in copy.rglob("*") if path.is_dir()]:
        (folder / "deeper").mkdir()
        (folder / "deeper" / "added.py").write_text("")
    for module in (cache, portrait):
        monkeypatch.setattr(module, "PACKAGE", copy)
    return copy


def edit_each(files, digest):
    """Return the files that can be edited without the digest's noticing."""
    unnoticed = []
    for file in files:
        before = digest()
        with file.open("a") as source:
            source.write("# edited\n")
        if digest() == before:
            unnoticed.append(str(file))
    return unnoticed


@pytest.mark.parametrize("folder", ["ode", "vectormath"])
def test_old_machine_code_is_not_found_after_any_edit(package, folder):
    compiled = [*(package / folder).rglob("*.py"), *(package / "native").rglob("*.py")]
    assert edit_each(compiled, lambda: cache.stamp(folder)) == []


def test_machine_code_is_kept_when_other_folders_are_edited(package):
    before = cache.stamp("ode")
    (package / "api.py").write_text("")
    assert cache.stamp("ode") == before


@pytest.mark.slow
def test_ranks_notice_any_edited_file_of_the_package(package):
    files = list(package.rglob("*.py"))
    assert edit_each(files, portrait._digest_of_package) == []
