# SPDX-License-Identifier: GPL-2.0-or-later
"""Declarations of the structures of an image of suspend-utils (uswsusp); readers are elsewhere.

Facts from suspend-utils: `swsusp.h` (`struct swsusp_header`, `struct image_header_info`, `struct extent`,
`struct buf_block`), `suspend.c` (`alloc_swap`, `save_extents`, `flush_buffer`, `write_image`) and `load.c`
(`load_extents_page`, `load_buffer`). Nothing in the format names its version. All integers are little-endian; places
are bytes of the device that holds the swap area.
"""

from __future__ import annotations

from enum import IntFlag

import numpy as np

from hibernaut.memory.page import PAGE_SIZE

__all__ = [
    "BUFFER_PAGES",
    "EXTENT",
    "EXTENTS",
    "IMAGE_HEADER",
    "IMAGE_HEADER_32",
    "MAX_BUFFER_PAGES",
    "USWSUSP_SIGNATURE",
    "USWSUSP_TAIL",
    "UserlandFlags",
]

USWSUSP_SIGNATURE = b"ULSUSPEND\0"
"""`SWSUSP_SIG`: the area holds an image of suspend-utils."""

USWSUSP_TAIL = np.dtype(
    {
        "names": ["image", "orig_sig", "sig"],
        "formats": ["<i8", "V10", "V10"],
        "offsets": [4068, 4076, 4086],
        "itemsize": PAGE_SIZE,
    }
)
"""The header block (`struct swsusp_header`): `image` is the place of the image header."""

IMAGE_HEADER = np.dtype(
    {
        "names": ["pages", "flags", "map_start", "data_bytes", "md5"],
        "formats": ["<u8", "<u4", "<i8", "<i8", "V16"],
        "offsets": [0, 8, 16, 24, 32],
        "itemsize": 48,
    }
)
"""The start of `struct image_header_info`: builds with encryption have its salt and keys next, then all have times."""

IMAGE_HEADER_32 = np.dtype(
    {
        "names": ["pages", "flags", "map_start", "data_bytes", "md5"],
        "formats": ["<u4", "<u4", "<i8", "<i8", "V16"],
        "offsets": [0, 4, 8, 16, 24],
        "itemsize": 48,
    }
)
"""The same of a 32-bit build, whose `unsigned long` has 4 bytes."""

EXTENT = np.dtype([("start", "<i8"), ("end", "<i8")])
"""A range of bytes (`struct extent`)."""
EXTENTS = PAGE_SIZE // EXTENT.itemsize - 1
"""Extents in a page of them; `start` of the slot after them is the place of the next such page."""

BUFFER_PAGES = 32
"""Pages that are compressed together, as suspend-utils comes."""
MAX_BUFFER_PAGES = 1 << 13
"""Bound for builds with other buffers: 32 MiB, which the reader holds several of."""


class UserlandFlags(IntFlag):
    """`image_header_info.flags` (swsusp.h, IMAGE_* and PLATFORM_SUSPEND)."""

    CHECKSUM = 1
    COMPRESSED = 2
    ENCRYPTED = 4
    USE_RSA = 8
    PLATFORM = 16
