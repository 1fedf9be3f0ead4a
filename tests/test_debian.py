# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian source package: its files agree with the project; built, and accepted by lintian, where the tools are."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
DEBIAN = REPOSITORY / "packages/debian"
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
TOOLS = ("dh", "dpkg-buildpackage", "git", "lintian", "pybuild")
HATCHLING = Version("1.26")
"""The first hatchling that reads the licence of pyproject.toml; Debian 13 has a newer one."""


def reason_to_skip() -> str:
    """Return why the package cannot be built here; empty if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    code = "from importlib.metadata import version; print(version('hatchling'))"
    done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode or Version(done.stdout.strip()) < HATCHLING:
        return f"python3-hatchling {HATCHLING} or newer is not installed"
    return ""


def test_the_version_is_that_of_the_project() -> None:
    """The changelog's newest entry is a Debian revision of it."""
    found = re.match(r"hibernaut \((.*)-\d+\) ", (DEBIAN / "changelog").read_text())
    assert found
    assert found[1] == PROJECT["version"]


def test_every_dependency_is_a_package_or_left_out() -> None:
    """Each is named in py3dist-overrides; those with a package of Debian are in Depends."""
    overrides = dict(([*line.split(), ""])[:2] for line in (DEBIAN / "py3dist-overrides").read_text().splitlines())
    assert set(overrides) == {Requirement(text).name for text in PROJECT["dependencies"]}
    control = (DEBIAN / "control").read_text()
    depends = re.findall(
        r"^ (python3-\S+?),?(?: |$)", control.split("Depends:")[-1].split("Suggests:")[0], re.MULTILINE
    )
    assert set(filter(None, overrides.values())) <= {name.rstrip(",") for name in depends}


def test_the_licence_is_that_of_the_project() -> None:
    """GPL, version 2 or later, for all files."""
    assert PROJECT["license"] == "GPL-2.0-or-later"
    assert re.findall(r"^Files: (.*)\n(?:.*\n)*?License: (.*)$", (DEBIAN / "copyright").read_text(), re.MULTILINE) == [
        ("*", "GPL-2+")
    ]


@pytest.mark.slow
@pytest.mark.skipif("reason_to_skip()", reason="tools of Debian 13 are not installed")
def test_it_is_built_and_lintian_accepts_it(tmp_path: Path) -> None:
    """No error and no warning; manual pages and completions are in it."""
    version = PROJECT["version"]
    tree = tmp_path / f"hibernaut-{version}"
    archive = tmp_path / f"hibernaut_{version}.orig.tar.gz"
    prefix = f"--prefix={tree.name}/"
    subprocess.run(["git", "archive", prefix, f"--output={archive}", "HEAD"], cwd=REPOSITORY, check=True)
    subprocess.run(["tar", "-xf", archive], cwd=tmp_path, check=True)
    shutil.copytree(DEBIAN, tree / "debian")
    build = ["nice", "-n", "10", "dpkg-buildpackage", "-us", "-uc", "-d"]
    subprocess.run(build, cwd=tree, check=True, timeout=600, capture_output=True)
    (package,) = tmp_path.glob("*.deb")
    subprocess.run(["nice", "-n", "10", "lintian", "--fail-on", "error,warning", package], check=True, timeout=600)
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    for path in ("man/man1/hibernaut-inspect.1.gz", "bash-completion/completions/hibernaut", "bin/hibernaut"):
        assert path in listed
