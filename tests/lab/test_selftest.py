# SPDX-License-Identifier: GPL-2.0-or-later
"""The self-test for a kernel tree: its files, and its report in guests with and without the cure."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hibernaut.errors import LabError
from hibernaut.lab.guest.region import REGION_MODULE
from hibernaut.lab.guest.selftest_files import SELFTEST_SCRIPT
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.variants import variant_named
from tests.cli.run import hibernaut, refused


def test_the_files_of_the_self_test(tmp_path: Path) -> None:
    """A script that can run, the module, and what `make` needs; nothing is overwritten."""
    folder = tmp_path / "selftest"
    document = hibernaut("lab", "kselftest", folder, "--json").document
    names = [
        "Kbuild",
        "Makefile",
        "hibernate_direct_map.sh",
        "hlab_hold.h",
        "hlab_region.c",
        "hlab_thread.h",
        "hlab_trace.h",
    ]
    assert sorted(os.listdir(folder)) == names
    assert sorted(document["files"]) == sorted(str(path) for path in folder.iterdir())
    assert os.access(folder / "hibernate_direct_map.sh", os.X_OK)
    (folder / "Kbuild").unlink()
    assert "File exists" in refused("lab", "kselftest", folder)
    assert not (folder / "Kbuild").exists()


def test_it_skips_where_it_cannot_run(tmp_path: Path) -> None:
    """Here: no module, or no hibernation, or swap is in use; the exit status is that of a skipped test."""
    told = subprocess.run(["sh", SELFTEST_SCRIPT, tmp_path / "no.ko"], capture_output=True, text=True, check=False)
    assert told.returncode == 4
    assert re.fullmatch(r"TAP version 13\n1\.\.0 # SKIP .+\n", told.stdout)


def run_in_guest(lab: Lab, folder: Path) -> tuple[int | None, list[str]]:
    """Run the self-test in a guest; return its exit status, None if the guest crashed, and what it printed."""
    with lab.boot(variant_named("none"), folder, [], with_module=True, files=[SELFTEST_SCRIPT]) as guest:
        command = f"cd /modules && sh ./{SELFTEST_SCRIPT.name} ./{REGION_MODULE} | tee /dev/ttyS0"
        try:
            reply = guest.port.ask(f"set -o pipefail; {command}", 120)
        except LabError:
            return None, guest.qemu.console().splitlines()
        return reply.status, list(reply.lines)


def test_a_kernel_without_the_cure_fails_it(lab_built: Callable[[str], Lab], tmp_path: Path) -> None:
    """It takes RW from a page, splits two blocks, and crashes where there is no entry."""
    status, printed = run_in_guest(lab_built("stock"), tmp_path)
    assert status is None
    text = "\n".join(printed)
    assert re.search(r"not ok 1 4k:below # .*its owner faults when it writes", text)
    assert re.search(r"not ok 2 2m:below # allocations in the copy: 1", text)
    assert re.search(r"not ok 3 2m:above # allocations in the copy: 1", text)
    assert "# none:below: the machine may crash now" in text
    assert "BUG: unable to handle page fault" in text


def test_a_kernel_with_the_cure_passes_it(lab_built: Callable[[str], Lab], tmp_path: Path) -> None:
    """All five, with allocations counted."""
    status, printed = run_in_guest(lab_built("fixmap"), tmp_path)
    assert status == 0, printed
    assert [line.split()[0] for line in printed if "ok" in line.split()[:2]] == ["ok"] * 5
    assert any("allocations counted" in line for line in printed)
    assert printed[-1] == "# Totals: pass:5 fail:0 xfail:0 xpass:0 skip:0 error:0"


@pytest.mark.parametrize("cure", ["slot-never-cleared", "no-flush"])
def test_defects_that_it_cannot_see(lab_built: Callable[[str], Lab], tmp_path: Path, cure: str) -> None:
    """Wrong data in the image, and a slot that stays mapped: these take `lab judge`."""
    status, printed = run_in_guest(lab_built(cure), tmp_path)
    assert status == 0, printed
