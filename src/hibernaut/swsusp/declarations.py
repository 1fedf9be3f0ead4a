# SPDX-License-Identifier: GPL-2.0-or-later
"""Declarations of the structures of a swsusp image; readers and writers are elsewhere.

Facts from `kernel/power/swap.c` (`struct swsusp_header`, `struct swap_map_page`, `UNC_PAGES`, `CMP_SIZE`),
`kernel/power/power.h` (`struct swsusp_info`), `kernel/power/snapshot.c` (PFN list,
`ENCODED_PFN_ZERO_FLAG`), `arch/x86/power/hibernate.c` (`struct restore_data_record`) and `include/linux/swap.h` (`union
swap_header`). Read in linux-source-6.1 6.1.192-2, linux-source-6.12 6.12.118-1 and linux-source-7.3 7.3.4-1~bpo13+1.
All integers are little-endian.
"""

from __future__ import annotations

from enum import IntFlag

import numpy as np

from hibernaut.memory.page import PAGE_SIZE
from hibernaut.volumes.declarations import SWAP_PAGE_SIZES

__all__ = [
    "ARCH_MAGIC",
    "COUNTS_32",
    "END_OF_PFNS",
    "FOREIGN_SIGNATURES",
    "HEADER",
    "INFO",
    "LENGTH_BYTES",
    "MAGIC_2_6_24",
    "MAGIC_4_8",
    "MAGIC_4_10",
    "MAGIC_TRIMMED",
    "MAP_ENTRIES",
    "MAX_COMPRESSED_BYTES",
    "MAX_PFN",
    "OTHER_PAGE_SIZES",
    "PAGES_FOR_IO",
    "PFNS_PER_META_PAGE",
    "RECORD_2_6_24",
    "SIGNATURE",
    "SWAP_SIGNATURES",
    "UNIT_BYTES",
    "UNIT_PAGES",
    "ZERO_PAGE_FLAG",
    "Flags",
    "header_layout",
    "max_compressed_bytes",
]

SIGNATURE = b"S1SUSPEND\0"
"""`HIBERNATE_SIG`: the area holds an image."""

SWAP_SIGNATURES = (b"SWAPSPACE2", b"SWAP-SPACE")
"""Signatures of an area that is plain swap."""

FOREIGN_SIGNATURES = {
    b"S2SUSPEND\0": ("an image of suspend-utils (uswsusp)", "use suspend-utils for it: no kernel reads it"),
    b"LINHIB0001": (
        "an image of a release candidate of 2.6.37 (LINHIB0001, commit 3624eb04c248)",
        "use that kernel for it: no other reads it",
    ),
}
"""Other hibernation signatures at the same place (util-linux, libblkid/src/superblocks/swap.c): name, next step."""

OTHER_PAGE_SIZES = tuple(size for size in SWAP_PAGE_SIZES if size != PAGE_SIZE)
"""Sizes of pages of other architectures; the signature ends where the first page does."""


def header_layout(page_size: int, sector_bytes: int = 8) -> np.dtype[np.void]:
    """Return the layout of the header block of a machine with pages of this size.

    The swap header of mkswap is at 1024 (`union swap_header`); the tail of `struct swsusp_header` ends where the page
    does. `sector_bytes` is the size of `sector_t`: 8, or 4 in kernels of 32 bits without CONFIG_LBDAF.

    Since Linux kernel commit 74d9555580c4 ("PM: hibernate: Allow ACPI hardware signature to be honoured") (in v5.17),
    `hw_sig` is there: meaningful only under `Flags.HW_SIG`.
    """
    image = page_size - 24 - sector_bytes
    return np.dtype(
        {
            "names": [
                "version", "last_page", "nr_badpages", "uuid", "label",
                "hw_sig", "crc32", "image", "flags", "orig_sig", "sig",
            ],
            "formats": ["<u4", "<u4", "<u4", "V16", "V16", "<u4", "<u4", f"<u{sector_bytes}", "<u4", "V10", "V10"],
            "offsets": [
                1024, 1028, 1032, 1036, 1052,
                image - 8, image - 4, image, page_size - 24, page_size - 20, page_size - 10,
            ],
            "itemsize": page_size,
        }
    )  # fmt: skip


HEADER = header_layout(PAGE_SIZE)
"""The header block of x86-64."""


class Flags(IntFlag):
    """`swsusp_header.flags` (kernel/power/power.h, SF_*)."""

    PLATFORM_MODE = 1
    NOCOMPRESS_MODE = 2
    CRC32_MODE = 4
    HW_SIG = 8
    COMPRESSION_ALG_LZ4 = 16


MAP_ENTRIES = 511
"""Block numbers in a swap map page; the 512th u64 is the block of the next map page, 0 at the end."""

UNIT_PAGES = 32
UNIT_BYTES = UNIT_PAGES * PAGE_SIZE
LENGTH_BYTES = 8
"""Each compressed unit starts with its compressed length, a u64."""


def max_compressed_bytes(unit_bytes: int) -> int:
    """Return the largest compressed length of a unit that the kernel accepts (`bytes_worst_compress`)."""
    return unit_bytes + unit_bytes // 16 + 64 + 3 + 2


MAX_COMPRESSED_BYTES = max_compressed_bytes(UNIT_BYTES)
"""That of x86-64."""

INFO = np.dtype(
    {
        # restore_data_record lies where new_utsname's strings would be; then swsusp_info as C lays it out.
        "names": [
            "jump_address", "jump_address_phys", "cr3", "magic", "e820_checksum", "e820_md5",
            "version_code", "num_physpages", "cpus", "image_pages", "pages", "size",
        ],
        "formats": ["<u8", "<u8", "<u8", "<u8", "<u8", "V16", "<u4", "<u8", "<i4", "<u8", "<u8", "<u8"],
        "offsets": [0, 8, 16, 24, 32, 32, 392, 400, 408, 416, 424, 432],
        "itemsize": PAGE_SIZE,
    }
)  # fmt: skip
"""The info page: first entry of the swap map, never compressed. The magic tells which field is at 32."""

RECORD_2_6_24 = np.dtype(
    {
        "names": ["jump_address", "cr3", "magic"],
        "formats": ["<u8", "<u8", "<u8"],
        "offsets": [0, 8, 16],
        "itemsize": PAGE_SIZE,
    }
)
"""`restore_data_record` under `MAGIC_2_6_24`; the counts lie where `INFO` has them."""

COUNTS_32 = np.dtype(
    {
        "names": ["version_code", "num_physpages", "cpus", "image_pages", "pages", "size"],
        "formats": ["<u4", "<u4", "<i4", "<u4", "<u4", "<u4"],
        "offsets": [392, 396, 400, 404, 408, 412],
        "itemsize": PAGE_SIZE,
    }
)
"""The counts of the info page where `unsigned long` has 32 bits."""

MAGIC_2_6_24 = 0x0123456789ABCDEF
"""`RESTORE_MAGIC` of 2.6.24 to 4.7: three fields, the magic at 16.

Linux kernel commit d158cbdf39ff ("Hibernation: Arbitrary boot kernel support on x86_64") brings it. Read in
arch/x86/power/hibernate_64.c of a tree of 4.x."""
MAGIC_4_8 = 0x123456789ABCDEF0
"""`RESTORE_MAGIC` of 4.8 and 4.9: `jump_address_phys` is new, the magic at 24.

Read in arch/x86/power/hibernate_64.c of Red Hat's 3.10: a backport has it."""
MAGIC_4_10 = 0x23456789ABCDEF01
"""`RESTORE_MAGIC` with an MD5 of the e820 map at 32; all zero where the kernel was built without MD5.

Since Linux kernel commit 62a03defeabd ("PM / hibernate: Verify the consistent of e820 memory map by md5 digest") (in
v4.10), kernels have it. Read in a tree of 4.19."""
ARCH_MAGIC = 0x23456789ABCDEF02
"""`RESTORE_MAGIC`: the e820 map is checked by a CRC32.

Since Linux kernel commit f5d1499ae209 ("PM: hibernate: x86: Use crc32 instead of md5 for hibernation e820 integrity
check") (in v5.13), kernels have it. Read in linux-source-5.10 5.10.262-1: a backport has it."""
MAGIC_TRIMMED = 0x23456789ABCDEF03
"""`RESTORE_MAGIC`: RAM of page zero is trimmed off the e820 map before its CRC32.

Linux kernel commit 29671cabfc09 brings it (September 2026, in the tree of power management); it is not known with which
release."""

PFNS_PER_META_PAGE = PAGE_SIZE // 8
PAGES_FOR_IO = 1024
"""`PAGES_FOR_IO` (kernel/power/power.h): pages that stay free for writing the image, 4 MiB."""
END_OF_PFNS = 0xFFFF_FFFF_FFFF_FFFF
ZERO_PAGE_FLAG = 1 << 63
"""The page was all zeroes and has no data page.

Since Linux kernel commit 005e8dddd497 ("PM: hibernate: don't store zero pages in the image file") (in v6.6), kernels
write and read it."""
MAX_PFN = (1 << 40) - 1
"""x86-64 has at most 52 bits of physical address."""
