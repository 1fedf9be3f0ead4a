# SPDX-License-Identifier: GPL-2.0-or-later
"""Declarations of formats: makedumpfile's flattened form, the marks of swap areas."""

from __future__ import annotations

import numpy as np

__all__ = [
    "FLATTENED_HEADER_BYTES",
    "FLATTENED_LIMIT_BYTES",
    "FLATTENED_MAGIC",
    "FLATTENED_RECORD",
    "SWAP_MARKS",
    "SWAP_PAGE_SIZES",
]

FLATTENED_MAGIC = b"makedumpfile\x00"
"""Signature of the form that goes through a pipe (`makedumpfile -F`): records of a dump file in the order written."""
FLATTENED_HEADER_BYTES = 4096
FLATTENED_RECORD = np.dtype([("offset", ">i8"), ("size", ">i8")])
"""Big-endian; `size` bytes for `offset` follow. Both fields are -1 at the end."""
FLATTENED_LIMIT_BYTES = 1 << 52
"""The end of the physical address space (CPUs have at most 52 address bits): no dump is larger."""
SWAP_MARKS = (b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001")
"""Ends of the first page of a swap area: of mkswap(8), the kernel's images, uswsusp, and 2.6.37-rc's images."""
SWAP_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
"""Sizes of a page of machines that Linux runs on."""
