# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of pictures of memory in a terminal."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hibernaut.cli.terminal import print_styled, prints_ascii_only

if TYPE_CHECKING:
    from hibernaut.cli.options import OutputOptions
    from hibernaut.linux.source_tables import Paging
    from hibernaut.sources import Source

__all__ = ["PictureBy", "PictureOptions"]

PICTURE_SECTION = "Picture"


class PictureBy(StrEnum):
    """Questions that a picture answers."""

    MAPPED = "mapped"
    FATE = "fate"
    USE = "use"


@dataclass(frozen=True)
class PictureOptions:
    """A picture of memory before the text."""

    picture: Annotated[
        bool,
        typer.Option(
            "--picture",
            rich_help_panel=PICTURE_SECTION,
            help="Also draw memory, a sign for some frames each, with a legend; in colour on a terminal, unless "
            "NO_COLOR is set. Default: no.",
        ),
    ] = False
    picture_by: Annotated[
        PictureBy,
        typer.Option(
            "--picture-by",
            rich_help_panel=PICTURE_SECTION,
            help="Meaning of the signs: entry in the direct map (mapped), whether hibernation saves a frame (fate), "
            "its use. Default: mapped.",
        ),
    ] = PictureBy.MAPPED
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            min=1,
            metavar="COLUMNS",
            rich_help_panel=PICTURE_SECTION,
            help="Width of the picture. Default: that of the terminal, else 80.",
        ),
    ] = None

    def check(self, output: OutputOptions) -> None:
        """Raise BadParameter if a picture is asked for besides a document."""
        if self.picture and output.json:
            raise typer.BadParameter("--picture excludes --json: a picture is text; leave out one of them")

    def draw(self, source: Source, paging: Paging | None, output: OutputOptions) -> None:
        """Print the picture of a source's memory, if it is asked for.

        Raises:
            FormatError: the page tables are hostile.
        """
        if not self.picture or not output.text:
            return
        from hibernaut.hibernation.frame_map import frame_map
        from hibernaut.report.frame_picture import frame_picture, layer_named

        width = self.width or shutil.get_terminal_size().columns
        frames = frame_map(source, paging)
        print_styled(frame_picture(frames, layer_named(self.picture_by), width, plain=prints_ascii_only()))
