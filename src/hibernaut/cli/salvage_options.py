# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the commands that read damaged and used-up images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import AreaOptions, MemoryOptions
from hibernaut.cli.progress import page_progress
from hibernaut.cli.terminal import say
from hibernaut.errors import FormatError
from hibernaut.report.text import counted
from hibernaut.sources import Source, source_of_salvaged
from hibernaut.swsusp.area import locate_area
from hibernaut.swsusp.header import AreaState, area_state, looks_like_swap
from hibernaut.swsusp.salvage import SalvagedImage, salvage_image
from hibernaut.volumes.volume import Volume, close_volume

__all__ = ["SalvageOptions"]

SALVAGE_SECTION = "Damaged or used-up image"


@dataclass(frozen=True)
class SalvageOptions:
    """Which images are read as far as they go."""

    consumed: Annotated[
        bool,
        typer.Option(
            "--consumed",
            rich_help_panel=SALVAGE_SECTION,
            help="Read an image whose signature a resume put back, as far as it was not overwritten. Default: no.",
        ),
    ] = False
    salvage: Annotated[
        bool,
        typer.Option(
            "--salvage",
            rich_help_panel=SALVAGE_SECTION,
            help="Read a damaged image as far as it goes; the frames that are lost are listed, and the exit status is "
            "1. Default: no.",
        ),
    ] = False
    map_block: Annotated[
        int | None,
        typer.Option(
            "--map-block",
            min=1,
            metavar="BLOCK",
            rich_help_panel=SALVAGE_SECTION,
            help="Read an image that no header names, from this block of its swap map on, as `hibernaut inspect "
            "--scan` prints it. Default: as the header has it.",
        ),
    ] = None

    @property
    def wanted(self) -> bool:
        """Whether a damaged or used-up image is read."""
        return self.consumed or self.salvage or self.map_block is not None

    def open(self, area: AreaOptions, path: Path, progress: Callable[[int], None] | None = None) -> SalvagedImage:
        """Read the image there as far as it goes. Raises FormatError, OSError."""
        volume, offset = area.place(path)
        return self.read(area, volume, offset, progress)

    def read(
        self, area: AreaOptions, volume: Volume, offset: int, progress: Callable[[int], None] | None = None
    ) -> SalvagedImage:
        """Read the image in a volume that is open as far as it goes. Raises FormatError, OSError."""
        return salvage_image(
            volume,
            offset=offset,
            partition=area.partition,
            base=area.base,
            used_up=self.consumed or self.map_block is not None,
            damaged=self.salvage or self.map_block is not None,
            first_map_block=self.map_block,
            progress=progress,
        )

    @staticmethod
    def exit_unless_whole(source: Source) -> None:
        """End the command with status 1 after a damaged or used-up image that is not whole. Raises Exit."""
        if source.salvaged is not None and not source.salvaged.whole:
            raise typer.Exit(1)

    @staticmethod
    @contextmanager
    def naming_the_loss(source: Source) -> Iterator[None]:
        """Let an error that memory lacks something say that the image is not whole. Raises as the block does."""
        try:
            yield
        except FormatError as error:
            image = source.salvaged
            if image is None or image.complete or error.advice:
                raise
            missing = image.missing.total_pages
            lost = f"{counted(missing, 'frame')} of this one are lost" if missing > 1 else "a part of this one is lost"
            raise error.with_facts(advice=f"give another image or a dump of this kernel: {lost}") from None

    def open_memory(self, area: MemoryOptions, path: Path, quiet: bool) -> Source:
        """Open memory as `MemoryOptions.open_memory` does, or that of the image there as far as it goes."""
        if not self.wanted:
            return area.open_memory(path, quiet)
        if area.gap:
            raise typer.BadParameter("--gap is for raw memory: it excludes --consumed, --salvage and --map-block")
        if area.index is not None:
            raise typer.BadParameter("--index is for whole images: it excludes --consumed, --salvage and --map-block")
        with page_progress(f"reading {path}", None, quiet) as advance:
            source = source_of_salvaged(self.open(area, path, advance))
        for remark in source.remarks:
            say(f"{source.name}: {remark}", quiet)
        return source

    def open_other(self, area: MemoryOptions, path: Path, quiet: bool) -> Source:
        """Open a second source: as `open_memory` does if it is an image of a kind that is asked for, else whole.

        A dump is one that is whole. --map-block is a place in the first source alone, and --index is of that alone.
        """
        given, area = replace(self, map_block=None), replace(area, index=None)
        if not given.wanted:
            return area.open_memory(path, quiet)
        volume, offset = area.place(path)
        try:
            state = _state_of(area, volume, offset)
        finally:
            close_volume(volume)
        asked = (self.consumed and state == "used up") or (self.salvage and state in ("image", "damaged"))
        return given.open_memory(area, path, quiet) if asked else area.open_memory(path, quiet)


def _state_of(area: AreaOptions, volume: Volume, offset: int) -> AreaState | None:
    """Return what a swap area holds; None for a file that does not begin as one."""
    given = offset or area.partition is not None or area.base is not None
    if not given and not looks_like_swap(volume):
        return None
    return area_state(locate_area(volume, offset=offset, partition=area.partition, base=area.base))[0]
