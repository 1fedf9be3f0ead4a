# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap areas that a kernel uses, and the files that hold their slots.

`swap_info` (mm/swapfile.c) has a `struct swap_info_struct` for each; the number of an area, its type, is what swap
entries refer to. Slot n of a partition is its block n; the slots of a swap file lie in extents of its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError
from hibernaut.kernel.folios import frames_of_pages
from hibernaut.kernel.paths import path_of
from hibernaut.kernel.program import ask
from hibernaut.kernel.reading import rb_objects
from hibernaut.kernel.xarray import xarray_entry
from hibernaut.volumes.volume import Volume

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel
    from hibernaut.swsusp import Image

__all__ = ["MAX_SWAPFILES", "SlotFile", "SwapAreaInUse", "slots_of", "swap_areas", "uuid_of"]

MAX_SWAPFILES = 23
"""Fewest `MAX_SWAPFILES` (include/linux/swap.h): of a swap entry's 32 types, a kernel with everything configured
keeps 9 for entries that are not of a swap area."""
MAX_AREAS = 32
MAX_EXTENTS = 1 << 16
MAX_SLOTS = 1 << 28
"""Bound for the slots of an area: 1 TiB."""
LAST_PAGE, SWS_UUID = slice(1028, 1032), slice(1036, 1052)
"""`last_page` and `sws_uuid` of `union swap_header` (include/linux/swap.h)."""


@dataclass(frozen=True, eq=False)
class SlotFile:
    """A file that holds the slots of a swap area.

    Attributes:
        file: the file.
        base_bytes: byte at which the area's device begins in it.
        image: the image in the same area, none of whose blocks is a slot; None without one.
    """

    file: Volume
    base_bytes: int = 0
    image: Image | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class SwapAreaInUse:
    """A swap area of a running kernel.

    Attributes:
        number: its type, from 0 on.
        name: path of the device or file, as `swapon` was given it; None if it is not in the memory.
        is_file: whether it is a swap file.
        device: device number of the block device, major << 20 | minor; None if it has none.
        priority: its priority.
        slots: number of slots, the header's included (`max`).
        used: slots in use.
        extents: int64, shape (n, 3), ascending: first slot, number of slots, first block of the device, in pages.
        address: address of its `struct swap_info_struct`.
        uuid: UUID in its header, if that page is in the page cache, from which `swapon` reads it; None if unknown.
    """

    number: int
    name: str | None
    is_file: bool
    device: int | None
    priority: int
    slots: int
    used: int
    extents: npt.NDArray[np.int64]
    address: int
    uuid: UUID | None = None

    @property
    def header_block(self) -> int | None:
        """Block of its header on the device, in pages: 0 for a partition; None if its extents are unknown."""
        return int(self.extents[0, 2]) if len(self.extents) and self.extents[0, 0] == 0 else None

    def blocks(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the block of the device of each slot, -1 for one outside the area or its extents."""
        if not len(self.extents):
            return np.full(len(slots), -1, dtype=np.int64)
        row = np.maximum(np.searchsorted(self.extents[:, 0], slots, side="right") - 1, 0)
        within = slots - self.extents[row, 0]
        is_inside = (within >= 0) & (within < self.extents[row, 1]) & (slots > 0) & (slots < self.slots)
        return np.where(is_inside, self.extents[row, 2] + within, -1)

    def fits(self, header: bytes, header_block: int) -> bool:
        """Return whether the header of an area may be this one's, and lies where it does."""
        return self.mismatch(header) is None and header_block == self.header_block

    def mismatch(self, header: bytes) -> str | None:
        """Return the reason why a header is not this area's, None if nothing contradicts it."""
        slots, uuid = slots_of(header), uuid_of(header)
        if slots != self.slots:
            return f"its header counts {slots}, swap area {self.number} has {self.slots} slots"
        if self.uuid is not None and uuid != self.uuid:
            return f"its UUID is {uuid or 'none'}, that of swap area {self.number} is {self.uuid}"
        return None


def slots_of(header: bytes) -> int:
    """Return the number of slots that the header of an area has, its own included."""
    return int.from_bytes(header[LAST_PAGE], "little") + 1


def uuid_of(header: bytes) -> UUID | None:
    """Return the UUID in the header of an area, None if it has none."""
    found = header[SWS_UUID]
    return UUID(bytes=found) if len(found) == 16 and any(found) else None


def swap_areas(kernel: Kernel) -> Sequence[SwapAreaInUse]:
    """Return the swap areas that the kernel uses.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: the kernel has no types, or its list of areas is not in the memory or damaged.
    """
    program = kernel.drgn()
    count = ask(kernel, "nr_swapfiles", lambda: int(program["nr_swapfiles"].value_()))
    if not 0 <= count <= MAX_AREAS:
        raise kernel.damaged(f"nr_swapfiles is {count}", f"0 to {MAX_AREAS}")
    table = ask(kernel, "swap_info", lambda: program["swap_info"])
    found = []
    for number in range(count):
        area = ask(kernel, f"swap area {number}", lambda number: _area(kernel, table[number].read_(), number), number)
        if area is not None:
            found.append(area)
    return found


def _area(kernel: Kernel, info: Any, number: int) -> SwapAreaInUse | None:
    """Return one area, None if its slot in the table is unused."""
    program = kernel.drgn()
    flags = int(info.flags)
    if not flags & int(program["SWP_USED"]) or not flags & int(program["SWP_WRITEOK"]):
        return None
    slots = int(info.max)
    if not 0 < slots <= MAX_SLOTS:
        raise kernel.damaged(f"swap area {number} has {slots} slots", f"1 to {MAX_SLOTS}")
    used = info.inuse_pages
    return SwapAreaInUse(
        number=number,
        name=_path(kernel, info),
        is_file=not flags & int(program["SWP_BLKDEV"]),
        device=int(info.bdev.bd_dev) if info.bdev else None,
        priority=int(info.prio),
        slots=slots,
        used=int(used.counter) if hasattr(used, "counter") else int(used),
        extents=np.array(_extents(kernel, info), dtype=np.int64).reshape(-1, 3),
        address=int(info),
        uuid=_uuid(kernel, info, slots),
    )


def _extents(kernel: Kernel, info: Any) -> list[tuple[int, int, int]]:
    """Return first slot, number of slots and first block of each extent, ascending."""
    found: list[tuple[int, int, int]] = []
    for extent in rb_objects(info.swap_extent_root, "struct swap_extent", "rb_node"):
        first = int(extent.start_page)
        if (found and first < found[-1][0] + found[-1][1]) or len(found) >= MAX_EXTENTS:
            raise kernel.damaged(f"the extents of a swap area overlap or have no end, at slot {first}")
        found.append((first, int(extent.nr_pages), int(extent.start_block)))
    return found


def _path(kernel: Kernel, info: Any) -> str | None:
    """Return the path of an area's device or file; None if it is not in the memory."""
    try:
        place = info.swap_file.f_path
        return ask(kernel, "path", lambda: path_of(kernel, place.mnt.read_(), place.dentry.read_()))
    except FormatError:
        return None


def _uuid(kernel: Kernel, info: Any, slots: int) -> UUID | None:
    """Return the UUID of an area's header as the page cache has it; None if it has not, or has another header."""
    try:
        pages = ask(kernel, "header", lambda: int(info.swap_file.f_mapping.i_pages.address_of_()))
        entry = xarray_entry(kernel, pages, 0)
        if not entry or entry & 1:
            return None
        (pfn,) = frames_of_pages(kernel, np.array([entry], dtype=np.uint64)).tolist()
        header = kernel.memory.page(pfn) if pfn >= 0 else None
    except FormatError:
        return None
    return uuid_of(header.tobytes()) if header is not None and slots_of(header.tobytes()) == slots else None
