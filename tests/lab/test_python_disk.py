# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk with Python for guests: the packages that hibernaut needs, and the libraries of what is on it."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from hibernaut.lab.guest import python_disk
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
