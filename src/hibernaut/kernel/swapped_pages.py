# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that a kernel swapped out, read from wherever they are: the swap cache, zswap, a slot of an area."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError
from hibernaut.kernel.image_area import area_for_image
from hibernaut.kernel.program import ask
from hibernaut.kernel.swap_areas import SlotFile, SwapAreaInUse, swap_areas
from hibernaut.kernel.swap_cache import SlotStates, slot_states
from hibernaut.kernel.zswap import ZswapPages
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.area import contiguous_runs

if TYPE_CHECKING:
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.memory.page import BoolArray, Bytes
    from hibernaut.sources import Source

__all__ = ["SwappedPages", "slot_files"]

Slots = npt.NDArray[np.int64]


class SwappedPages:
    """The pages that a kernel swapped out.

    Args:
        kernel: the kernel.
        files: the files that hold areas, by the number of the area.
        areas: the areas that the kernel uses; read if None.

    Attributes:
        areas: the areas that the kernel uses, by number.
        files: as given.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: as `swap_areas`.
    """

    def __init__(
        self, kernel: Kernel, files: Mapping[int, SlotFile], areas: Iterable[SwapAreaInUse] | None = None
    ) -> None:
        self._kernel = kernel
        self.areas = {area.number: area for area in (swap_areas(kernel) if areas is None else areas)}
        self.files = files
        self._states: dict[int, SlotStates] = {}
        self._zswap: dict[int, ZswapPages] = {}

    @staticmethod
    def of(kernel: Kernel, source: Source) -> SwappedPages:
        """Return those whose slots lie in the area of an image, see `slot_files`. Raises as the constructor."""
        areas = swap_areas(kernel)
        return SwappedPages(kernel, slot_files(kernel, source, areas), areas)

    def read(self, number: int, slots: Slots, out: Bytes) -> list[str | None]:
        """Read the pages of many slots of an area.

        Args:
            number: the area.
            slots: int64, shape (n,).
            out: array for the pages, uint8, shape (n, 4096), C-contiguous.

        Returns:
            For each slot None, or the reason why its page is nowhere; the bytes are zero then.
        """
        out[:] = 0
        reasons: list[str | None] = [None] * len(slots)
        area = self.areas.get(number)
        if area is None:
            return [f"the kernel uses no swap area {number}"] * len(slots)
        inside = (slots > 0) & (slots < area.slots)
        _tell(reasons, ~inside, f"swap area {number} has no such slot")
        states = self._state(area)
        within = np.where(inside, slots, 0)
        cached = np.where(inside, states.cached[within], -1)
        is_cached = cached >= 0
        if is_cached.any():
            pages, is_there = self._kernel.memory.gather(cached[is_cached])
            out[is_cached] = pages
            gone = np.zeros(len(slots), dtype=np.bool_)
            gone[np.flatnonzero(is_cached)[~is_there]] = True
            _tell(reasons, gone, "its page in the swap cache is not in memory")
        rest = inside & ~is_cached & ~states.zero[within]
        _tell(reasons, rest & states.unknown[within], "the kernel's record of its slot is not in memory")
        rest &= ~states.unknown[within]
        _tell(reasons, rest & ~states.used[within], f"its slot of swap area {number} is free")
        rest &= states.used[within]
        rest &= ~self._from_zswap(area, slots, rest, out, reasons)
        self._from_file(area, slots, rest, out, reasons)
        return reasons

    def _state(self, area: SwapAreaInUse) -> SlotStates:
        if area.number not in self._states:
            self._states[area.number] = slot_states(self._kernel, area)
        return self._states[area.number]

    def _from_zswap(
        self, area: SwapAreaInUse, slots: Slots, wanted: BoolArray, out: Bytes, reasons: list[str | None]
    ) -> BoolArray:
        """Read the pages that zswap has; returns which."""
        if area.number not in self._zswap:
            self._zswap[area.number] = ZswapPages(self._kernel, area)
        zswap = self._zswap[area.number]
        is_in_it = wanted & zswap.has(slots)
        for at in np.flatnonzero(is_in_it).tolist():
            try:
                out[at] = zswap.page(int(slots[at]))
            except FormatError as error:
                reasons[at] = f"it is compressed in zswap: {error}"
        return is_in_it

    def _from_file(
        self, area: SwapAreaInUse, slots: Slots, wanted: BoolArray, out: Bytes, reasons: list[str | None]
    ) -> None:
        """Read the pages that are on disk only."""
        file = self.files.get(area.number)
        if file is None:
            name = area.name or "an unnamed device"
            _tell(reasons, wanted, f"swap area {area.number} ({name}) is not given")
            return
        blocks = area.blocks(slots)
        _tell(reasons, wanted & (blocks < 0), "its slot lies in no extent of the swap file")
        readable = wanted & (blocks >= 0)
        if file.image is not None:
            overwritten = readable & np.isin(blocks, file.image.swap_map.blocks)
            _tell(reasons, overwritten, "the hibernation image lies in its slot")
            readable &= ~overwritten
        which = np.flatnonzero(readable)
        which = which[np.argsort(blocks[which], kind="stable")]
        at = 0
        for first, count in contiguous_runs(blocks[which]):
            part = which[at : at + count]
            data = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
            got = file.file.pread_into(file.base_bytes + first * PAGE_SIZE, data.reshape(-1))
            out[part] = data
            short = np.zeros(len(slots), dtype=np.bool_)
            short[part[got // PAGE_SIZE :]] = True
            _tell(reasons, short, f"{file.file.name} ends before its slot")
            out[short] = 0
            at += count


def slot_files(
    kernel: Kernel, source: Source, areas: Iterable[SwapAreaInUse], others: Mapping[int, SlotFile] | None = None
) -> dict[int, SlotFile]:
    """Return the files that hold the kernel's swap areas: the one of the image itself, and those given.

    The image's own area is the one whose header, as the kernel knows it, has the same number of slots (and UUID, where
    that is known) and lies at the same block. Of several, it is the one that the kernel writes its image to; without
    a match no area is taken for it.

    Args:
        kernel: the kernel.
        source: the source it is in.
        areas: the areas that it uses.
        others: files of other areas, by number.
    """
    files = dict(others or {})
    image = source.image
    if image is None or image.header.userland is not None:
        return files
    matching = [area for area in areas if area.fits(image.header.block, image.area.header_block)]
    if len(matching) > 1:
        try:
            chosen = ask(kernel, "area of the image", area_for_image, kernel, areas)
        except FormatError:
            chosen = None
        matching = [area for area in matching if area.number == chosen]
    if matching:
        files.setdefault(matching[0].number, SlotFile(image.area.file, image.area.base_bytes, image))
    return files


def _tell(reasons: list[str | None], which: BoolArray, reason: str) -> None:
    for at in np.flatnonzero(which).tolist():
        if reasons[at] is None:
            reasons[at] = reason
