# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap area that a kernel writes its image to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.kernel.swap_areas import SwapAreaInUse

__all__ = ["area_for_image", "device_number"]


def device_number(number: int) -> str:
    """Return a dev_t as `MAJOR:MINOR`."""
    return f"{number >> 20}:{number & (1 << 20) - 1}"


def area_for_image(kernel: Kernel, areas: Iterable[SwapAreaInUse]) -> int | None:
    """Return the number of the swap area that `swsusp_swap_check` takes (kernel/power/swap.c); None if it takes none.

    It is the one on the resume device, whose header lies at the resume offset; without such a device the first one.

    Raises:
        LookupError: the kernel's declarations are unknown.
        drgn.FaultError: they are not in the memory.
    """
    device = kernel["swsusp_resume_device"].value_()
    block = kernel["swsusp_resume_block"].value_()
    for area in areas:
        if not device or (area.device, area.header_block) == (device, block):
            return area.number
    return None
