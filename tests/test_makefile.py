# SPDX-License-Identifier: GPL-2.0-or-later
"""The Makefile's markers: what was interrupted is made again, and a marker comes after all that it stands for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MAKE = shutil.which("make") or ""
PYTHON = """#!/bin/sh
echo "python $*" >>"{folder}/told"
case "$*" in
*"-m venv --clear"*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
*"-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
*-m\\ pip*) [ ! -e "{folder}/offline" ] ;;
esac
"""
SYNC = """#!/bin/sh
echo "sync $* $(ls "{folder}/.venv" | tr '\\n' ' ')" >>"{folder}/told"
"""
pytestmark = pytest.mark.skipif(not MAKE, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose python and sync only tell what they were asked for."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(REPOSITORY / "requirements", tmp_path / "requirements")
    (tmp_path / "programs").mkdir()
    for name, text in {"python3": PYTHON, "sync": SYNC}.items():
        (tmp_path / "programs" / name).write_text(text.format(folder=tmp_path))
        (tmp_path / "programs" / name).chmod(0o755)
    return tmp_path


def make(checkout: Path, target: str) -> tuple[int, list[str]]:
    """Run make; return its status, and what its programs were asked for."""
    told = checkout / "told"
    told.unlink(missing_ok=True)
    # Of a make that runs the tests, `make test-wheel PYTHON=...`, nothing is passed on.
    passed_on = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"}
    done = subprocess.run(
        [MAKE, "-s", target],
        cwd=checkout,
        env={**passed_on, "PATH": f"{checkout / 'programs'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, told.read_text().splitlines() if told.exists() else []


@pytest.mark.parametrize("marker", ["ready", "ready-dev", "ready-fuzz"])
def test_a_marker_is_made_after_all_that_it_stands_for_is_synced(checkout: Path, marker: str) -> None:
    """The file system is synced when the last program has ended, without the marker; then nothing is made again."""
    status, told = make(checkout, f".venv/{marker}")
    assert status == 0, told
    assert (checkout / ".venv" / marker).exists()
    assert told[-1].startswith("sync -f .venv")
    assert marker not in told[-1].split()
    syncs = [line.split()[3:] for line in told if line.startswith("sync")]
    assert "made" not in syncs[0]
    assert make(checkout, f".venv/{marker}") == (0, [])


def test_an_environment_that_was_interrupted_is_made_from_nothing(checkout: Path) -> None:
    """It has its python already when pip fails: it is not taken for whole."""
    (checkout / "offline").touch()
    assert make(checkout, ".venv/ready-dev")[0] != 0
    assert (checkout / ".venv/bin/python").exists()
    (checkout / ".venv/half").touch()
    (checkout / "offline").unlink()
    status, told = make(checkout, ".venv/ready-dev")
    assert status == 0
    assert told[0] == "python -m venv --clear .venv"
    assert not (checkout / ".venv/half").exists()


def test_an_environment_of_an_older_makefile_is_made_anew(checkout: Path) -> None:
    """In one call: it has a marker of its packages and none of its own."""
    make(checkout, ".venv/ready-dev")
    (checkout / ".venv/made").unlink()
    status, told = make(checkout, ".venv/ready-dev")
    assert status == 0
    assert told[0] == "python -m venv --clear .venv"
    assert (checkout / ".venv/ready-dev").exists()


def test_every_marker_is_made_by_the_same_rule() -> None:
    """No rule touches its target by itself; no lock is written in its place."""
    text = (REPOSITORY / "Makefile").read_text()
    assert text.count("touch $@") == 1
    assert re.findall(r"^\t\$\(mark\)$", text, re.MULTILINE) == ["\t$(mark)"] * 4
    assert re.findall(r"--output-file (\S+)", text) == ["build/lock.txt"]
