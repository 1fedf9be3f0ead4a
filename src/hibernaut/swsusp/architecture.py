# SPDX-License-Identifier: GPL-2.0-or-later
"""Info pages of other architectures: whose kernel wrote an image that is not of x86-64.

Each architecture that keeps a record of its own puts it where the others have `struct new_utsname`:
arch/arm64/kernel/hibernate.c (`struct arch_hibernate_hdr`), arch/riscv/kernel/hibernate.c (the same name),
arch/x86/power/hibernate.c (`struct restore_data_record`, of 32 bits on i386). Read in linux-source-7.3 7.3.4-1~bpo13+1.
"""

from __future__ import annotations

import re
import struct

import numpy as np

from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.generations import generation_of

__all__ = ["OTHER_ARCHITECTURE", "foreign_image", "foreign_kernel", "kernel_of_larger_pages"]

OTHER_ARCHITECTURE = "give an image of an x86-64 machine"
"""Next step for an image of another one."""

UTS_BYTES = 65
"""`__NEW_UTS_LEN` + 1 (include/uapi/linux/utsname.h)."""
NEW_UTSNAME = np.dtype([(name, f"S{UTS_BYTES}") for name in ("sysname", "nodename", "release", "version", "machine")])
"""`struct new_utsname`, without the domain's name."""
I386_RECORD = np.dtype([(name, "<u4") for name in ("jump_address", "jump_address_phys", "cr3", "magic")])
I386_MAGICS = (0x12345678, 0x12345679)
UTS_VERSION = np.dtype(
    {
        "names": ["uts_version", "reenter_kernel_or_satp"],
        "formats": [f"S{UTS_BYTES}", "<u8"],
        "offsets": [0, 80],
        "itemsize": 88,
    }
)
"""The records of arm64 and riscv: arm64 has `reenter_kernel`, a kernel address, where riscv has `saved_satp`."""
RISCV_SATP_MODES = (8, 9, 10)
"""Sv39, Sv48, Sv57 in the top four bits (RISC-V privileged specification, `satp`)."""
KERNEL_ADDRESS = 0xF
BUILD = re.compile(rb"#[0-9][ -~]{1,62}")
"""`UTS_VERSION` (init/version-timestamp.c): `#1 SMP ...`."""
NAME = re.compile(rb"[ -~]{1,64}")


def foreign_image(kernel: str) -> str:
    """Return the statement that an image is of a kernel that `foreign_kernel` returned."""
    not_this = "an image without a restore record" if "x86_64" in kernel else "not an x86-64 image"
    return f"{not_this}: its info page is that of {kernel}"


def foreign_kernel(page: bytes) -> str | None:
    """Return the kernel that wrote an info page, with an article; None if it is of x86-64 or unknown.

    Args:
        page: the page, at least its first 4096 bytes.
    """
    if generation_of(page[:4096]) is not None:
        return None
    if int(np.frombuffer(page, dtype=I386_RECORD, count=1)[0]["magic"]) in I386_MAGICS:
        return "an i386 kernel"
    record = np.frombuffer(page, dtype=UTS_VERSION, count=1)[0]
    if BUILD.fullmatch(record["uts_version"]):
        top = int(record["reenter_kernel_or_satp"]) >> 60
        known = {**dict.fromkeys(RISCV_SATP_MODES, "a riscv kernel"), KERNEL_ADDRESS: "an arm64 kernel"}
        return f"{known.get(top, 'an arm64 or riscv kernel')}, {record['uts_version'].decode()}"
    return _utsname(page)


def _utsname(page: bytes) -> str | None:
    """Return the kernel by its `struct new_utsname`."""
    names = np.frombuffer(page, dtype=NEW_UTSNAME, count=1)[0]
    machine, release, version = (names[field] for field in ("machine", "release", "version"))
    if names["sysname"] != b"Linux" or not all(NAME.fullmatch(text) for text in (machine, release, version)):
        return None
    kind = machine.decode()
    article = "an" if kind[0] in "aeiox" else "a"
    return f"{article} {kind} kernel {release.decode()}, {version.decode()}"


def kernel_of_larger_pages(area: SwapArea, page_size: int) -> str | None:
    """Return the kernel whose image is in an area with pages of another size, see `foreign_kernel`.

    The swap header ends with its page; blocks are counted in pages (kernel/power/swap.c, `struct swsusp_header`).
    """
    start = area.offset_of(area.header_block)
    (map_page,) = struct.unpack("<Q", area.file.pread(start + page_size - 32, 8))
    entry = _read(area, map_page * page_size, 8)
    page = _read(area, int.from_bytes(entry, "little") * page_size, 4096)
    return foreign_kernel(page) if len(page) == 4096 else None


def _read(area: SwapArea, at: int, size_bytes: int) -> bytes:
    """Return bytes of a device; none outside it."""
    return area.file.pread(area.base_bytes + at, size_bytes) if 0 < at < area.size_bytes else b""
