# SPDX-License-Identifier: GPL-2.0-or-later
"""The running machine, from fabricated /sys and /proc. Witness: a guest's own boot log and its image's info page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hibernaut.kernel.running import running_machine
from hibernaut.sources import open_memory
from tests.conftest import Golden

KINDS = {"usable": "System RAM", "reserved": "Reserved", "ACPI data": "ACPI Tables"}
ZONEINFO = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     3840
        spanned  4095
        present  3998
        managed  3840
Node 0, zone    DMA32
        present  61405
Node 0, zone   Normal
        present  0
"""


def fabricated(folder: Path, ranges: list[tuple[int, int, str]], facs: bytes | None) -> Path:
    """A root with ranges (first byte, last byte, what /sys calls it), listed by the file system in any order."""
    for number, (first, last, kind) in reversed(list(enumerate(ranges))):
        entry = folder / "sys/firmware/memmap" / str(number)
        entry.mkdir(parents=True)
        (entry / "start").write_text(f"{first:#x}\n")
        (entry / "end").write_text(f"{last:#x}\n")
        (entry / "type").write_text(f"{kind}\n")
    tables = folder / "sys/firmware/acpi/tables"
    tables.mkdir(parents=True)
    (tables / "APIC").write_bytes(b"APIC")
    if facs is not None:
        (tables / "FACS").write_bytes(facs)
    (folder / "proc/sys/kernel").mkdir(parents=True)
    (folder / "proc/zoneinfo").write_text(ZONEINFO)
    (folder / "proc/sys/kernel/osrelease").write_text("6.1.0-56-amd64\n")
    return folder


def test_the_guests_boot_log_gives_the_checksum_of_its_image(golden: Golden, tmp_path: Path) -> None:
    """The map that the guest's kernel printed at boot, found in its RAM, put into a memmap: 0xba571fd2."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        text = b"".join(pages.tobytes() for _, pages in source.memory.blocks())
    found = re.findall(rb"BIOS-e820: \[mem (0x[0-9a-f]{16})-(0x[0-9a-f]{16})\] ([A-Za-z ]+)", text)
    ranges = sorted({(int(first, 16), int(last, 16), KINDS[kind.decode()]) for first, last, kind in found})
    assert len(ranges) > 3
    machine = running_machine(fabricated(tmp_path, ranges, None))
    assert f"{machine.e820.crc32:#x}" == golden.expected["swap-6.1-lzo.img"]["e820_checksum"]
    assert machine.physical_pages == golden.expected["swap-6.1-lzo.img"]["physical_pages"]
    assert (machine.hw_sig, machine.release) == (0, "6.1.0-56-amd64")


def test_more_than_ten_ranges_are_in_order(tmp_path: Path) -> None:
    """Entries are ordered as numbers (10 after 9), with every type that the kernel names."""
    import struct
    import zlib

    codes = {"System RAM": 1, "Reserved": 2, "ACPI Tables": 3, "ACPI Non-volatile Storage": 4, "Unusable memory": 5,
             "Persistent Memory": 7, "Persistent Memory (legacy)": 12, "Soft Reserved": 0xEFFFFFFF}  # fmt: skip
    kinds = [*codes, *codes]
    ranges = [(number << 20, (number << 20) + 0xFFF, kind) for number, kind in enumerate(kinds)]
    table = struct.pack("<I", len(kinds)) + b"".join(
        struct.pack("<QQI", number << 20, 4096, codes[kind]) for number, kind in enumerate(kinds)
    )
    facs = b"FACS" + (64).to_bytes(4, "little") + (0xDEADBEEF).to_bytes(4, "little") + bytes(52)
    machine = running_machine(fabricated(tmp_path, ranges, facs))
    assert machine.e820.crc32 == zlib.crc32(table)
    assert machine.hw_sig == 0xDEADBEEF


@pytest.mark.parametrize("missing", ["start", "end", "type"])
def test_missing_files_give_unknown_facts(tmp_path: Path, missing: str) -> None:
    """No file, an unknown type, a short table: None, and never a guess."""
    empty = running_machine(tmp_path / "nothing")
    assert (empty.e820.crc32, empty.physical_pages, empty.hw_sig, empty.release) == (None,) * 4
    root = fabricated(tmp_path, [(0, 0xFFF, "System RAM"), (0x1000, 0x1FFF, "Reserved")], b"FACS")
    assert running_machine(root).hw_sig is None
    assert running_machine(root).e820.crc32 is not None
    entry = root / "sys/firmware/memmap/1" / missing
    entry.write_text("Unknown E820 type\n")
    assert running_machine(root).e820.crc32 is None
    entry.unlink()
    assert running_machine(root).e820.crc32 is None
