# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk with Python for guests: the packages that hibernaut needs, and the libraries of what is on it."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from hibernaut.lab.guest import python_disk
from hibernaut.swsusp.system_codecs import Liblz4, Liblzo2
from tests.conftest import REPOSITORY


def test_the_packages_are_those_of_the_project() -> None:
    """`PACKAGES` names the dependencies of pyproject.toml; what these need in turn comes along."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {need.split(">")[0] for need in project["dependencies"]}
    assert set(python_disk.PACKAGES) == names
    assert names < python_disk._closure()


@pytest.mark.skipif(shutil.which("ldd") is None, reason="ldd is not installed")
def test_the_libraries_of_a_program(tmp_path: Path) -> None:
    """A program needs the C library and the dynamic linker."""
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/sh", tmp_path / "bin/sh")
    names = {library.name for library in python_disk._libraries(tmp_path)}
    assert "libc.so.6" in names
    assert any(name.startswith("ld-linux") for name in names)


def test_the_systems_compressors_come_along() -> None:
    """Each that is loaded here, by the name that it is loaded by: the guest has no cache of names."""
    names = [library.name for library in python_disk._codec_libraries()]
    assert names == [name for name, made in (("liblzo2.so.2", Liblzo2), ("liblz4.so.1", Liblz4)) if loads(made)]


def loads(made: Callable[[], object]) -> bool:
    """Return whether a library is installed."""
    try:
        made()
    except ImportError:
        return False
    return True
