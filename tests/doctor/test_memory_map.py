# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory map of a log, of /sys/firmware/memmap and of the kernel's own table: the same entries and checksum."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hibernaut.doctor.evidence import RootFolder
from hibernaut.doctor.memory_map import (
    MapRange,
    differences,
    map_in_log,
    map_of_folder,
    map_of_table,
    ram_bytes,
    side_by_side,
    sums_of,
)
from tests.doctor.machines import LINES, guest, root_folder

STORED_CRC = 0x126DE29B
"""`e820_checksum` in the images that these three guests wrote, each by its own kernel."""


@pytest.mark.parametrize("kernel", LINES)
def test_the_log_has_the_checksum_of_the_kernel(tmp_path: Path, kernel: str) -> None:
    """The lines BIOS-e820 and the folder give the CRC that real kernels stored, also in the words of 7.3."""
    log = map_in_log([line.partition("] ")[2] for line in guest(kernel)["log"].splitlines()], "log")
    folder = map_of_folder(RootFolder(root_folder(tmp_path, line=kernel)))
    assert log.value == folder.value is not None
    assert sums_of(log.value or ()).crc32 == STORED_CRC


def test_an_extended_map_replaces_the_first() -> None:
    """A kernel that adds entries of its boot loader prints the table of the checksum again; that of setup_data not."""
    lines = [
        "BIOS-e820: [mem 0x0000000000001000-0x0000000000001fff] usable",
        "extended physical RAM map:",
        "extended: [mem 0x0000000000001000-0x0000000000002fff] usable",
        "extended physical RAM map:",
        "reserve setup_data: [mem 0x0000000000001000-0x0000000000001fff] reserved",
    ]
    assert map_in_log(lines, "log").value == (MapRange(0x1000, 0x3000, 1),)
    assert map_in_log([lines[0], *lines[3:]], "log").value == (MapRange(0x1000, 0x2000, 1),)


@pytest.mark.parametrize(
    ("words", "kind"),
    [("usable", 1), ("reserved", 2), ("ACPI data", 3), ("ACPI NVS", 4), ("unusable", 5), ("persistent (type 7)", 7),
     ("persistent RAM (type 12)", 12), ("type 20", 20), ("soft reserved", 0xEFFFFFFF), (" System RAM", 1),
     (" device reserved", 2)],
)  # fmt: skip
def test_every_type_that_kernels_print(words: str, kind: int) -> None:
    """`e820_print_type` of 6.1, 6.12 and 7.3."""
    found = map_in_log([f"BIOS-e820: [mem 0x0000000000001000-0x0000000000001fff] {words}"], "log")
    assert found.value == (MapRange(0x1000, 0x2000, kind),)


def test_an_unknown_type_is_not_guessed() -> None:
    """A line that this program does not know leaves the map unknown."""
    found = map_in_log(["BIOS-e820: [mem 0x0000000000001000-0x0000000000001fff] magic"], "log")
    assert found.value is None
    assert "magic" in found.reason


def test_differences_are_exact() -> None:
    """A range that moved, one that is new and one that is gone, with the types of both sides."""
    before = (MapRange(0, 0x9000, 1), MapRange(0x100000, 0x800000, 1), MapRange(0x800000, 0x900000, 2))
    after = (MapRange(0, 0x9000, 1), MapRange(0x100000, 0x7F0000, 1), MapRange(0x7F0000, 0x900000, 2))
    (only,) = differences(before, after)
    assert (only.start, only.end, only.before, only.after) == (0x7F0000, 0x800000, 1, 2)
    assert [one.before for one in side_by_side(before, after)] == [1, 1, 1, 2]
    assert ram_bytes(after) - ram_bytes(before) == -0x10000
    assert differences(before, before) == ()
    (gone,) = differences((MapRange(0, 0x1000, 1),), ())
    assert (gone.before, gone.after) == (1, None)


def test_overlapping_ranges_take_the_last_one() -> None:
    """Tables may overlap: the entry that comes later in the table counts."""
    (part,) = differences((MapRange(0, 0x4000, 1),), (MapRange(0, 0x4000, 1), MapRange(0x1000, 0x2000, 2)))
    assert (part.start, part.end, part.after) == (0x1000, 0x2000, 2)


def test_a_table_of_memory() -> None:
    """`struct e820_table`, and one that is cut."""
    table = struct.pack("<I", 1) + struct.pack("<QQI", 0x1000, 0x1000, 1)
    assert map_of_table(table) == (MapRange(0x1000, 0x2000, 1),)
    with pytest.raises(ValueError, match="23 bytes"):
        map_of_table(table[:-1])
