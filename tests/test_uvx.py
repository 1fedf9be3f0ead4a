# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel without installing it, by uvx: with the dependencies alone, and no extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.declared import commands

REPOSITORY = Path(__file__).resolve().parent.parent
ALL_HELPS = """
import contextlib, io, sys
from hibernaut.cli import main
for words in sys.argv[1:]:
    sys.argv = ["hibernaut", *words.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as end:
            assert end.code == 0, words
    assert "Usage: hibernaut" in out.getvalue(), words
print("helps", *sorted(name for name in ("drgn", "capstone", "dissect", "mfusepy") if name in sys.modules))
"""
"""A program that asks for the help of each command, and prints the packages of extras that are loaded then."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "HIBERNAUT_SLOW" not in os.environ, reason="takes wheels from a package index; HIBERNAUT_SLOW=1"
    ),
]


def uv(*arguments: str) -> str:
    """Run uv outside of any project or environment, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [sys.executable, "-m", "uv", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600).stdout


def test_uvx_runs_the_wheel(tmp_path: Path) -> None:
    """`uvx --from WHEEL hibernaut`, and the help of every command, without the packages of extras."""
    uv("build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", str(tmp_path), str(REPOSITORY))
    (wheel,) = map(str, tmp_path.glob("*.whl"))
    python = ["--quiet", "--no-config", "--python", sys.executable]
    assert uv("tool", "run", *python, "--from", wheel, "hibernaut", "--version").startswith("hibernaut ")
    names = ["", "lab", *(words for words, _ in commands())]
    assert uv("run", *python, "--no-project", "--isolated", "--with", wheel, "python", "-c", ALL_HELPS, *names) == (
        "helps\n"
    )
