# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of other architectures: real kernels of arm64, i386 and riscv hibernate, and their images are read."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from hibernaut import open_image
from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.other_machines import OTHER_MACHINES, OtherHibernated, hibernate_other, said_by_guest
from tests.cli.run import hibernaut, refused
from tests.lab.conftest import SWITCH

LOG = """[    1.0] Booting
hlab: kernel 6.12.1-arm64 #1 SMP Debian 6.12.1-1 (2026-03-03)
hlab: pages 2 16384
hlab: frame 0 0x1234
hlab: frame 1 0x99
[    9.9] PM: Image saving done
[   10.1] reboot: Power down
"""

ALL_MACHINES = "HIBERNAUT_OTHER_MACHINES"


def identity(index: int, page_bytes: int) -> bytes:
    """Return the content of a page of guest/other.c."""
    words = np.arange(page_bytes // 8, dtype=np.uint64) | np.uint64(index << 32)
    return (words * np.uint64(0x9E3779B97F4A7C15)).tobytes()


def test_the_console_is_the_record() -> None:
    """Kernel, pages and outcome; a guest that does not get there is an error with its last lines."""
    found = said_by_guest("arm64", LOG, Path("image"), 3.0)
    assert found == OtherHibernated(
        "arm64",
        True,
        "",
        Path("image"),
        "6.12.1-arm64",
        "#1 SMP Debian 6.12.1-1 (2026-03-03)",
        16384,
        (0x1234, 0x99),
        3.0,
    )
    crashed = said_by_guest("arm64", LOG.replace("PM: Image saving done", "Oops"), Path("image"), 3.0)
    assert not crashed.hibernated
    assert "Oops" in crashed.reason
    failed = said_by_guest("arm64", LOG + "hlab: failed /sys/power/state: No space left on device\n", Path("x"), 1.0)
    assert (failed.hibernated, failed.reason) == (False, "/sys/power/state: No space left on device")
    with pytest.raises(LabError, match="did not get ready to hibernate"):
        said_by_guest("arm64", LOG.replace("hlab: frame 1", "hlab: frame 2"), Path("image"), 3.0)


@pytest.mark.parametrize("name", OTHER_MACHINES)
def test_the_plan_of_each_machine(tmp_path: Path, name: str) -> None:
    """QEMU of that architecture, and nothing is made."""
    document = hibernaut("lab", "hibernate", tmp_path / "new", "--arch", name, "--dry-run", "--json").document
    (guest,) = document["guests"]
    assert guest["kernel"] == name
    assert OTHER_MACHINES[name].qemu in guest["command"]
    assert not (tmp_path / "new").exists()


def test_an_unknown_machine(tmp_path: Path) -> None:
    """The known ones are named."""
    line = refused("lab", "hibernate", tmp_path / "new", "--arch", "vax")
    assert "unknown machine 'vax'; expected arm64, arm64-16k, i386, riscv" in line


@pytest.mark.lab
@pytest.mark.parametrize("name", OTHER_MACHINES)
def test_the_image_of_a_real_kernel_is_read(tmp_path: Path, name: str) -> None:
    """CRC, build string, counts and each page that contains its identity; converted as its machine."""
    if os.environ.get(SWITCH) not in ("on", "required"):
        pytest.skip(f"minutes of work: {SWITCH}=on boots guests")
    if name != "arm64" and os.environ.get(ALL_MACHINES) != "1":
        pytest.skip(f"minutes of guests: {ALL_MACHINES}=1 boots all other machines")
    try:
        done = hibernate_other(OTHER_MACHINES[name], tmp_path)
    except LabUnavailable as error:
        pytest.skip(f"no laboratory: {error}")  # also where that of x86-64 is required
    assert done.hibernated, done.reason
    assert done.page_bytes == (16384 if name == "arm64-16k" else 4096)
    document = hibernaut("inspect", done.image, "--json").document
    assert (document["problems"], document["crc32"]["ok"], document["page_bytes"]) == ([], True, done.page_bytes)
    assert document["architecture"] == name.removesuffix("-16k")
    if name != "i386":  # whose info page does not name its kernel
        assert document["kernel"].endswith(f" kernel, {done.build}")
    log = (tmp_path / "kernel.log").read_text(errors="replace")
    assert f"Need to copy {document['saved_pages']} pages" in log
    assert f"({document['stored_pages']} pages copied" in log
    each = done.page_bytes // 4096
    with open_image(done.image) as image:
        for index, pfn in enumerate(done.frames):
            pages, present = image.memory().gather(range(pfn * each, (pfn + 1) * each))
            assert present.all()
            assert pages.tobytes() == identity(index, done.page_bytes), f"page {index}"
    assert "page tables are not read" in refused("map", done.image)
    core = tmp_path / "core"
    assert hibernaut("convert", done.image, core, "--to", "elf").status == 0
    (machine,) = struct.unpack_from("<H", core.read_bytes()[:64], 18)
    assert machine == {"arm64": 183, "i386": 3, "riscv": 243}[document["architecture"]]
    assert done.release.encode() in core.read_bytes()
