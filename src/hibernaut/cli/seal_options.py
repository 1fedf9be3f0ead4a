# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of `seal` and `verify`: the area, and the file of a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.options import AreaOptions
from hibernaut.sealing.volume_blocks import AreaBlocks
from hibernaut.swsusp.area import locate_area
from hibernaut.volumes.volume import close_volume

__all__ = ["AreaArgument", "opened_area", "seal_manifest_option"]

AreaArgument = Annotated[
    Path,
    typer.Argument(metavar="AREA", help="Swap area with an image: device, file of a partition or of a disk."),
]


def seal_manifest_option(verb: str) -> Any:
    """Declare --manifest: the file of the manifest of a seal."""
    return typer.Option(
        "--manifest",
        metavar="FILE",
        help=f"File {verb} the manifest. Default: free blocks at the end of the area.",
    )


@contextmanager
def opened_area(options: AreaOptions, path: Path) -> Iterator[tuple[AreaBlocks, int]]:
    """Yield the blocks of an area's device, and the block of its header. Raises HibernautError, OSError."""
    volume, offset = options.place(path)
    try:
        area = locate_area(volume, offset=offset, partition=options.partition, base=options.base)
        yield AreaBlocks(area), area.header_block
    finally:
        close_volume(volume)
