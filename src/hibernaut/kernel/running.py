# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of the running machine that a resuming kernel compares, from /sys and /proc."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from hibernaut.errors import FormatError
from hibernaut.kernel.symbol_names import names_of_running
from hibernaut.kernel_line import ProbedKernel
from hibernaut.swsusp.e820 import E820Sums
from hibernaut.swsusp.verdict import ResumingMachine

__all__ = ["running_machine"]

E820_TYPES = {
    "System RAM": 1,
    "Reserved": 2,
    "ACPI Tables": 3,
    "ACPI Non-volatile Storage": 4,
    "Unusable memory": 5,
    "Persistent Memory": 7,
    "Persistent Memory (legacy)": 12,
    "Soft Reserved": 0xEFFFFFFF,
}
"""`e820_type_to_string` (arch/x86/kernel/e820.c), inverted."""

MAX_ENTRIES = 4096
PRESENT = re.compile(r"^ +present +(\d+)$", re.MULTILINE)
FACS_HARDWARE_SIGNATURE = 8
"""struct acpi_table_facs (include/acpi/actbl.h): signature, length, hardware signature."""


def running_machine(root: Path = Path("/")) -> ResumingMachine:
    """Return the facts of the running machine; a fact that cannot be read is None.

    The checksums cover the map in /sys/firmware/memmap (`e820__reserve_resources`, arch/x86/kernel/e820.c), the one
    that hibernation compares. That folder may show `e820_table_kexec`, which differs only under `alloc_mptable`. Read
    in linux-source-7.3 7.3.4-1~bpo13+1: it does. Memory hot-added since boot is listed there as well and changes the
    checksums. The hardware signature comes from ACPI's FACS, which only root can read; whether the kernel compares it
    depends on `acpi_sleep=` and on whether it runs in a virtual machine.

    Args:
        root: folder that has sys and proc.
    """
    release, build = (_text(root / "proc/sys/kernel" / name) for name in ("osrelease", "version"))
    return ResumingMachine(
        name="this machine",
        e820=_e820_sums(root / "sys/firmware/memmap"),
        physical_pages=_physical_pages(root / "proc/zoneinfo"),
        hw_sig=_hw_sig(root / "sys/firmware/acpi/tables"),
        release=release.strip() if release else None,
        build=build.strip() if build else None,
        kernel=_kernel(root),
    )


def _kernel(root: Path) -> ProbedKernel | None:
    try:
        return names_of_running(root)
    except (FormatError, OSError):
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _e820_sums(folder: Path) -> E820Sums:
    """Return the checksums of the map in a folder; unknown ones if it cannot be read."""
    table = _e820_table(folder)
    return E820Sums() if table is None else E820Sums.of_table(table)


def _e820_table(folder: Path) -> bytes | None:
    """Return the map as `struct e820_table`: u32 count, then packed entries of u64 addr, u64 size, u32 type."""
    try:
        numbers = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())
    except OSError:
        return None
    if not numbers or len(numbers) > MAX_ENTRIES:
        return None
    table = struct.pack("<I", len(numbers))
    for number in numbers:
        start, end, kind = (_text(folder / str(number) / name) for name in ("start", "end", "type"))
        code = E820_TYPES.get(kind.strip()) if kind else None
        if start is None or end is None or code is None:
            return None
        try:
            first, last = int(start, 16), int(end, 16)  # end is inclusive
            table += struct.pack("<QQI", first, last - first + 1, code)
        except (ValueError, struct.error):
            return None
    return table


def _physical_pages(path: Path) -> int | None:
    """Return `get_num_physpages()`: present pages of all zones of all nodes."""
    found = PRESENT.findall(_text(path) or "")
    return sum(map(int, found)) or None


def _hw_sig(tables: Path) -> int | None:
    """Return the hardware signature; 0 if ACPI has no FACS."""
    try:
        names = {entry.name for entry in tables.iterdir()}
        if "FACS" not in names:
            return 0 if names else None
        with (tables / "FACS").open("rb") as file:
            facs = file.read(FACS_HARDWARE_SIGNATURE + 4)
    except OSError:
        return None
    if len(facs) < FACS_HARDWARE_SIGNATURE + 4:
        return None
    return int.from_bytes(facs[FACS_HARDWARE_SIGNATURE:], "little")
