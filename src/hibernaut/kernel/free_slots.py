# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks of an image's swap area that the saved machine does not use, by its own record of slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.swap_areas import swap_areas
from hibernaut.kernel.swap_cache import slot_states
from hibernaut.kernel.swapped_pages import slot_files

if TYPE_CHECKING:
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.memory.page import BoolArray
    from hibernaut.sources import Source

__all__ = ["free_blocks"]


def free_blocks(kernel: Kernel, source: Source) -> BoolArray:
    """Return which blocks of the device with an image are free slots of the saved machine, shape (blocks,).

    The record is that of the moment when memory was saved: the slots of the image itself were taken later, and count
    as free.

    Args:
        kernel: the kernel.
        source: the image that it is in.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: the source is not an image; the kernel does not use its area as far as its memory tells; or its
            record of slots is damaged or of an unknown layout.
    """
    image = source.image
    areas = {area.number: area for area in swap_areas(kernel)}
    found = slot_files(kernel, source, areas.values())
    if image is None or len(found) != 1:
        raise FormatError(
            "which slots of this area the saved machine uses is not in its memory",
            source=source.name,
            advice="give a file for the manifest: --manifest FILE",
        )
    area = areas[next(iter(found))]
    states = slot_states(kernel, area)
    slots = np.flatnonzero(~(states.used | states.unknown | (states.cached >= 0)))
    blocks = area.blocks(slots)
    free = np.zeros(image.area.blocks, dtype=np.bool_)
    free[blocks[(blocks > 0) & (blocks < image.area.blocks)]] = True
    return free
