# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the commands that read damaged and used-up images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import AreaOptions, MemoryOptions
from hibernaut.cli.progress import page_progress
from hibernaut.cli.terminal import say
from hibernaut.sources import Source, source_of_salvaged
from hibernaut.swsusp.salvage import SalvagedImage, salvage_image

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

    def open_memory(self, area: MemoryOptions, path: Path, quiet: bool) -> Source:
        """Open memory as `MemoryOptions.open_memory` does, or that of the image there as far as it goes."""
        if not self.wanted:
            return area.open_memory(path, quiet)
        if area.gap:
            raise typer.BadParameter("--gap is for raw memory: it excludes --consumed, --salvage and --map-block")
        with page_progress(f"reading {path}", None, quiet) as advance:
            source = source_of_salvaged(self.open(area, path, advance))
        for remark in source.remarks:
            say(f"{source.name}: {remark}", quiet)
        return source
