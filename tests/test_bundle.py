# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundle for rescue systems: where it unpacks, what it refuses, and the whole of it with a bare Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.bundling import RUNNING, bundle_maker, whole_bundle
from tests.conftest import REPOSITORY, Golden

TAG = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
STUB = b"""
import sys
from pathlib import Path
def main():
    print(*sys.argv[1:], Path(__file__).parent.parent)
    print(*sorted(path.name for path in Path(__file__).parent.glob("*.so")))
"""


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The module that makes bundles."""
    return bundle_maker()


@pytest.fixture
def bundle(maker: ModuleType, tmp_path: Path) -> Path:
    """A bundle whose program prints its arguments and its place."""
    content = {
        "hibernaut/__init__.py": b"",
        "hibernaut/cli.py": STUB,
        f"hibernaut/fast.{TAG}-x86_64-linux-gnu.so": b"",
        "hibernaut/fast.cpython-39-x86_64-linux-gnu.so": b"",
        "hibernaut/any.abi3.so": b"",
    }
    maker.write_bundle(tmp_path / "hibernaut.pyz", content, [RUNNING])
    return tmp_path / "hibernaut.pyz"


def started(bundle: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle with a Python that has no packages, in this environment alone."""
    python = getattr(sys, "_base_executable", sys.executable)
    command = [python, "-I", str(bundle), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def place_of(done: subprocess.CompletedProcess[str]) -> Path:
    """Return the folder that the program of `bundle` ran in."""
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.split("\n")[0].split(" ")[-1])


@pytest.mark.parametrize("variable", ["HIBERNAUT_BUNDLE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_it_unpacks_once_into_a_private_folder(bundle: Path, tmp_path: Path, variable: str) -> None:
    """Into the folder that the variable names; the next start uses it; compiled modules of other Pythons stay out."""
    done = started(bundle, "a b", "c", **{"HOME": "/nonexistent", variable: str(tmp_path / "place")})
    place = place_of(done)
    assert done.stdout.startswith("a b c ")
    assert done.stdout.split("\n")[1] == f"any.abi3.so fast.{TAG}-x86_64-linux-gnu.so"
    assert place.is_relative_to(tmp_path / "place")
    assert place.stat().st_mode & 0o777 == 0o700
    (place / "mark").touch()
    again = started(bundle, **{"HOME": "/nonexistent", variable: str(tmp_path / "place")})
    assert place_of(again) == place
    assert (place / "mark").exists()
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_without_a_place_it_leaves_nothing_behind(bundle: Path, tmp_path: Path) -> None:
    """A temporary folder is used and removed, if no cache can be written to."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").touch()
    home = str(tmp_path / "file")
    place = place_of(started(bundle, HOME=home, TMPDIR=str(tmp_path / "tmp")))
    assert place.is_relative_to(tmp_path / "tmp")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_new_bundle_has_a_new_place(maker: ModuleType, bundle: Path, tmp_path: Path) -> None:
    """A bundle with other content does not run what an older one unpacked; the same content gives the same bytes."""
    cache = {"HOME": str(tmp_path / "home")}
    first = place_of(started(bundle, **cache))
    content = {"hibernaut/__init__.py": b"", "hibernaut/cli.py": STUB}
    maker.write_bundle(tmp_path / "new.pyz", content, [RUNNING])
    maker.write_bundle(tmp_path / "same.pyz", content, [RUNNING])
    assert place_of(started(tmp_path / "new.pyz", **cache)) != first
    assert (tmp_path / "new.pyz").read_bytes() == (tmp_path / "same.pyz").read_bytes()
    assert (tmp_path / "new.pyz").stat().st_mode & 0o777 == 0o755


def test_another_python_is_refused(maker: ModuleType, tmp_path: Path) -> None:
    """With its version and those that the bundle is for."""
    maker.write_bundle(tmp_path / "old.pyz", {"hibernaut/__init__.py": b""}, ["3.8", "3.9"])
    done = started(tmp_path / "old.pyz", HOME=str(tmp_path))
    assert done.returncode == 2
    known = "this file has modules for CPython 3.8 and 3.9"
    assert re.fullmatch(rf"hibernaut: {known}, not for {re.escape(RUNNING)}\S*; run it with one\n", done.stderr)


def test_no_room_is_one_line(bundle: Path, tmp_path: Path) -> None:
    """Limited to files smaller than the modules: one line with the variable that helps, and nothing left behind."""
    (tmp_path / "tmp").mkdir()
    python = getattr(sys, "_base_executable", sys.executable)
    limited = f"ulimit -f 0; exec {python} -I {bundle}"
    environment = {"HOME": "/nonexistent", "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(["sh", "-c", limited], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        "hibernaut: cannot unpack: .*; set HIBERNAUT_BUNDLE_DIR to a folder with room for it\n", done.stderr
    )
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_lock_is_part_of_the_lock_for_development() -> None:
    """A rescue system runs the versions that the tests ran, with the same digests."""
    blocks = re.compile(r"^[a-z0-9].*(?:\n    --hash.*)*", re.MULTILINE)
    bundled, tested = (
        {one.split("==")[0]: set(re.findall(r"==[^ ;]+|sha256:\w+", one)) for one in blocks.findall(path.read_text())}
        for path in (REPOSITORY / "requirements/bundle.txt", REPOSITORY / "requirements/dev.txt")
    )
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][name] for name in ("lab", "disk", "mount")]
    wanted = [canonicalize_name(Requirement(one).name) for one in chain(project["dependencies"], *extras)]
    assert set(wanted) <= bundled.keys(), "make lock"
    assert {name: None for name in bundled if bundled[name] != tested.get(name)} == {}


@pytest.mark.slow
@pytest.mark.skipif(
    "HIBERNAUT_BUNDLE" not in os.environ, reason="takes wheels from a package index; HIBERNAUT_BUNDLE=1"
)
def test_the_whole_bundle_runs_with_a_bare_python(tmp_path: Path, golden: Golden) -> None:
    """A Python without packages, an empty home, no network where that can be arranged: it reads an image."""
    made = whole_bundle(tmp_path)
    for arguments in (["--version"], ["inspect", str(golden("swap-6.1-lzo.img"))], ["find", "--help"]):
        done = started(made, *arguments, HOME=str(tmp_path / "home"))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
