# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of pictures in a terminal: of memory, and of runs."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hibernaut.cli.terminal import print_styled, prints_ascii_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from hibernaut.cli.options import OutputOptions
    from hibernaut.linux.source_tables import Paging
    from hibernaut.report.frame_picture import StyledLine
    from hibernaut.sources import Source

__all__ = ["DemoPictureOptions", "PictureBy", "PictureOptions", "RunPictureOptions"]

PICTURE_SECTION = "Picture"
PLAIN_WIDTH = 80
"""Columns where there is no terminal."""


class PictureBy(StrEnum):
    """Questions that a picture answers."""

    MAPPED = "mapped"
    FATE = "fate"
    USE = "use"


def _picture_option(what: str, *names: str, default: str = "no") -> Any:
    return typer.Option(
        *(names or ("--picture",)),
        rich_help_panel=PICTURE_SECTION,
        help=f"{what}, with a legend; in colour on a terminal, unless NO_COLOR is set. Default: {default}.",
    )


WIDTH_OPTION = typer.Option(
    "--width",
    min=1,
    metavar="COLUMNS",
    rich_help_panel=PICTURE_SECTION,
    help="Width of the picture. Default: that of the terminal, else 80.",
)


@dataclass(frozen=True)
class PictureOptions:
    """A picture of memory before the text."""

    picture: Annotated[bool, _picture_option("Also draw memory, a sign for some frames each")] = False
    picture_by: Annotated[
        PictureBy,
        typer.Option(
            "--picture-by",
            rich_help_panel=PICTURE_SECTION,
            help="Meaning of the signs: entry in the direct map (mapped), whether hibernation saves a frame (fate), "
            "its use. Default: mapped.",
        ),
    ] = PictureBy.MAPPED
    width: Annotated[int | None, WIDTH_OPTION] = None

    def check(self, output: OutputOptions) -> None:
        """Raise BadParameter if a picture is asked for besides a document."""
        _refuse_beside_document(self.picture, output)

    def draw(self, source: Source, paging: Paging | None, output: OutputOptions) -> None:
        """Print the picture of a source's memory, if it is asked for.

        Raises:
            FormatError: the page tables are hostile.
        """
        if not self.picture or not output.text:
            return
        from hibernaut.hibernation.frame_map import frame_map
        from hibernaut.report.frame_picture import frame_picture, layer_named

        frames = frame_map(source, paging)
        layer = layer_named(self.picture_by)
        _draw(lambda width, plain: frame_picture(frames, layer, width, plain=plain), self.width)


@dataclass(frozen=True)
class RunPictureOptions:
    """Pictures of runs before the text."""

    picture: Annotated[
        bool,
        _picture_option(
            "Also draw the shortest bad run of each way, scene by scene: the frames that matter in the order of the"
            " copy, the place that it has reached, what is torn"
        ),
    ] = False
    width: Annotated[int | None, WIDTH_OPTION] = None

    def check(self, output: OutputOptions) -> None:
        """Raise BadParameter if a picture is asked for besides a document."""
        _refuse_beside_document(self.picture, output)

    def draw(self, picture: Callable[[int, bool], list[StyledLine]], output: OutputOptions) -> None:
        """Print pictures, if they are asked for.

        Args:
            picture: returns their lines for a number of columns, and whether there is ASCII alone.
            output: options of the output.
        """
        if self.picture and output.text:
            _draw(picture, self.width)


@dataclass(frozen=True)
class DemoPictureOptions:
    """Pictures of runs behind the text, drawn by default."""

    picture: Annotated[
        bool | None,
        _picture_option(
            "At the end draw the copy of one machine, scene by scene, by mainline's way and by Fixmap",
            "--picture/--no-picture",
            default="drawn as text",
        ),
    ] = None
    width: Annotated[int | None, WIDTH_OPTION] = None

    def check(self, output: OutputOptions) -> None:
        """Raise BadParameter if a picture is asked for besides a document."""
        _refuse_beside_document(bool(self.picture), output)

    def draw(self, picture: Callable[[int, bool], list[StyledLine]], output: OutputOptions) -> None:
        """Print pictures, unless they are left out. Arguments as for `RunPictureOptions.draw`."""
        if self.picture is not False and output.text:
            _draw(picture, self.width)


def _refuse_beside_document(picture: bool, output: OutputOptions) -> None:
    if picture and output.json:
        raise typer.BadParameter("--picture excludes --json: a picture is text; leave out one of them")


def _draw(picture: Callable[[int, bool], list[StyledLine]], width: int | None) -> None:
    """Print a picture in a width, by default that of the terminal."""
    if width is None:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else PLAIN_WIDTH
    print_styled(picture(width, prints_ascii_only()))
