# SPDX-License-Identifier: GPL-2.0-or-later
"""Volatility's command on images, in place. Witness: drgn's list of the processes of the same images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hibernaut
from hibernaut.kernel.kernel import Kernel
from hibernaut.sources import open_memory
from hibernaut.volatility.image_source import plugins_folder
from tests.conftest import Golden
from tests.swsusp import naive

pytest.importorskip("volatility3", reason="volatility3 is not installed: pip install '.[volatility]'")

Run = Callable[..., subprocess.CompletedProcess[str]]
START = "import sys; from volatility3.cli import main; sys.argv[0] = 'vol'; main()"


@pytest.fixture
def vol(tmp_path: Path) -> Run:
    """Volatility's command, with a cache of its own."""

    def run(image: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(hibernaut.__file__).parent.parent),
            "HOME": str(tmp_path),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            **more,
        }
        command = (sys.executable, "-c", START, "-q", "-p", str(plugins_folder()), "-r", "json", "-f", str(image))
        return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)

    return run


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("image", ["swap-6.1-lzo.img", pytest.param("swap-6.12-lz4.img", marks=pytest.mark.slow)])
def test_processes_are_those_that_drgn_lists(golden: Golden, vol: Run, tmp_path: Path, image: str) -> None:
    """`linux.pslist`, with symbols out of the image; a second run finds them in the cache, which is private."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    from drgn.helpers.linux.pid import for_each_task

    with open_memory(golden(image)) as source:
        tasks = for_each_task(Kernel.of(source).drgn())
        expected = sorted((task.pid.value_(), task.comm.string_().decode()) for task in tasks)
    found = rows(vol(golden(image), "linux.pslist"))
    assert sorted((row["TID"], row["COMM"]) for row in found) == expected
    (made,) = (tmp_path / "cache" / "volatility3" / "symbols" / "hibernaut").iterdir()
    assert made.stat().st_mode & 0o077 == 0
    if image == "swap-6.1-lzo.img":  # once is enough: the second run finds the symbols
        before = made.stat().st_mtime_ns
        vol(golden(image), "linux.pslist")
        assert made.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_scan_of_physical_memory_goes_through(golden: Golden, vol: Run) -> None:
    """`linux.psscan` finds every process of `linux.pslist`, though frames beside them are absent."""
    image = golden("swap-6.1-lzo.img")
    listed = {row["PID"] for row in rows(vol(image, "linux.pslist"))}
    assert listed <= {row["PID"] for row in rows(vol(image, "linux.psscan"))}


def test_a_damaged_image_or_a_wrong_option_is_reported(tmp_path: Path, vol: Run) -> None:
    """One line on standard error, and Volatility's own message."""
    image = tmp_path / "swap.img"
    image.write_bytes(naive.build({5: bytes(4096)}, naive.Layout()))
    done = vol(image, "linux.pslist")
    assert done.returncode == 1
    assert "hibernaut: " in done.stderr
    done = vol(image, "linux.pslist", HIBERNAUT_SOURCE_OPTIONS="ofset=1")
    assert "hibernaut: HIBERNAUT_SOURCE_OPTIONS: 'ofset=1' is not an option" in done.stderr
