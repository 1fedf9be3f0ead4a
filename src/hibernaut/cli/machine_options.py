# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the commands that read the machine inside a source: its kernel, and the swap areas that it uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import MemoryOptions
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.cli.terminal import say
from hibernaut.errors import FormatError
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.swap_areas import SlotFile, SwapAreaInUse, slots_of, swap_areas
from hibernaut.kernel.swapped_pages import SwappedPages, slot_files
from hibernaut.linux.source_tables import with_gaps
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.report.visible import visible_line
from hibernaut.sources import Source
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.volume import Volume

__all__ = ["MachineInside", "SwapOptions"]

NUMBERED = re.compile(r"(\d{1,2})=(.+)")
SWAP_SIGNATURE = b"SWAPSPACE2"


class MachineInside:
    """A source, its kernel, and the pages that the kernel swapped out.

    Args:
        source: the source.
        kernel: its kernel.
        find_swapped: returns the pages; called once, when they are first asked for.
    """

    def __init__(self, source: Source, kernel: Kernel, find_swapped: Callable[[], SwappedPages]) -> None:
        self.source = source
        self.kernel = kernel
        self._find_swapped = find_swapped

    @cached_property
    def swapped(self) -> SwappedPages:
        """The pages that the kernel swapped out. Raises FormatError as `swap_areas`."""
        return self._find_swapped()


@dataclass(frozen=True)
class SwapOptions:
    """Files that hold the kernel's swap areas."""

    swap: Annotated[
        list[str] | None,
        typer.Option(
            "--swap",
            metavar="[N=]PATH",
            help="File or device with swap area N of the machine; repeatable. Without N, that of its UUID, or with "
            "as many slots where the memory does not have the UUID. Default: the area of an image is known.",
        ),
    ] = None

    @property
    def paths(self) -> list[Path]:
        """The files given."""
        return [Path(_numbered(one)[1]) for one in self.swap or ()]

    @contextmanager
    def open(
        self, options: MemoryOptions, salvage: SalvageOptions, path: Path, quiet: bool, *, on_demand: bool = False
    ) -> Iterator[MachineInside]:
        """Open a source and its kernel. Raises FormatError, HibernautError, OSError.

        Args:
            options: options of the source.
            salvage: options of a damaged source.
            path: its path.
            quiet: print no remarks.
            on_demand: find the kernel's swap areas when a swapped-out page is first asked for, unless --swap is given.
        """
        with ExitStack() as stack:
            source = stack.enter_context(salvage.open_memory(options, path, quiet))
            if source.undecided is not None:
                source = with_gaps(source)
            kernel = Kernel.of(source)
            inside = MachineInside(source, kernel, lambda: self._swapped(stack, source, kernel, quiet))
            if self.swap or not on_demand:
                _ = inside.swapped
            yield inside

    def _swapped(self, stack: ExitStack, source: Source, kernel: Kernel, quiet: bool) -> SwappedPages:
        """Return the pages that a kernel swapped out, and print a remark on each area whose file is not given."""
        areas = swap_areas(kernel)
        given: dict[int, SlotFile] = {}
        for one in self.swap or ():
            area, file = _given(stack, one, areas, quiet)
            if area.number in given:
                raise FormatError(
                    f"swap area {area.number} has another file, {given[area.number].file.name}",
                    source=file.name,
                    advice="give one file for each area",
                )
            given[area.number] = SlotFile(file)
        files = slot_files(kernel, source, areas, given)
        for area in areas:
            if area.used and area.number not in files:
                say(_not_given(area), quiet)
        return SwappedPages(kernel, files, areas)


def _not_given(area: SwapAreaInUse) -> str:
    """Return the remark on an area whose pages cannot be read."""
    name = visible_line(area.name or "no name")
    return f"swap area {area.number} ({name}) holds {area.used} pages; give it with --swap {area.number}=PATH"


def _numbered(text: str) -> tuple[int | None, str]:
    """Return the number of an area, None without one, and the file given for it."""
    match = NUMBERED.fullmatch(text)
    return (int(match[1]), match[2]) if match else (None, text)


def _given(stack: ExitStack, text: str, areas: Sequence[SwapAreaInUse], quiet: bool) -> tuple[SwapAreaInUse, Volume]:
    """Return an area and the file given for it. Raises FormatError if it is none, or several match."""
    number, name = _numbered(text)
    file = open_plain(Path(name))
    stack.callback(file.close)
    header = file.pread(0, PAGE_SIZE)
    known = ", ".join(map(_listed, areas)) or "none"
    if number is not None:
        area = next((one for one in areas if one.number == number), None)
        if area is None:
            raise FormatError(f"the kernel uses no swap area {number}", source=name, expected=known)
        is_header = not area.is_file and header[-len(SWAP_SIGNATURE) :] == SWAP_SIGNATURE
        mismatch = area.mismatch(header) if is_header else None
        if mismatch is not None:
            raise FormatError(mismatch, source=name, advice="give another file")
        return area, file
    fitting = [area for area in areas if area.fits(header, 0)]
    matching = [area for area in fitting if area.uuid is not None] or fitting
    if len(matching) != 1:
        reasons = [] if matching else filter(None, (area.mismatch(header) for area in areas))
        raise FormatError(
            "; ".join(reasons)
            or f"it has as many slots ({slots_of(header)}) as {len(matching)} swap areas of the machine",
            source=name,
            expected=known,
            advice="give the number of its area before it: N=PATH",
        )
    if matching[0].uuid is None:
        say(
            f"{name}: taken for swap area {matching[0].number} by its number of slots; the machine's memory does not "
            "have the area's UUID",
            quiet,
        )
    return matching[0], file


def _listed(area: SwapAreaInUse) -> str:
    """Return an area as a message lists it."""
    uuid = "" if area.uuid is None else f", UUID {area.uuid}"
    return f"{area.number}: {visible_line(area.name or 'no name')}, {area.slots} slots{uuid}"
