# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of `seal` and `verify`: the area, and the file of a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.options import AreaOptions, number
from hibernaut.sealing.counters import Counter, counter_of
from hibernaut.sealing.volume_blocks import AreaBlocks
from hibernaut.swsusp.area import locate_area
from hibernaut.volumes.volume import close_volume

__all__ = ["AreaArgument", "KeptCounter", "opened_area", "seal_manifest_option"]

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


@dataclass(frozen=True)
class KeptCounter:
    """Options for the place in which the smallest accepted counter is kept."""

    counter_file: Annotated[
        Path | None,
        typer.Option(
            "--counter-file",
            metavar="FILE",
            help="File with the smallest counter that is accepted: not on the disk of the image. Default: none.",
        ),
    ] = None
    counter_tpm: Annotated[
        int | None,
        typer.Option(
            "--counter-tpm",
            parser=number,
            metavar="INDEX",
            help="Counter of the TPM with it, an NV index such as 0x1500010 (tpm2-tools). Default: none.",
        ),
    ] = None

    def counter(self) -> Counter | None:
        """Return it, or None. Raises BadParameter for two of them."""
        if self.counter_file is not None and self.counter_tpm is not None:
            raise typer.BadParameter("give either --counter-file or --counter-tpm", param_hint="--counter-file")
        return counter_of(self.counter_file, self.counter_tpm)


@contextmanager
def opened_area(options: AreaOptions, path: Path) -> Iterator[tuple[AreaBlocks, int]]:
    """Yield the blocks of an area's device, and the block of its header. Raises HibernautError, OSError."""
    volume, offset = options.place(path)
    try:
        area = locate_area(volume, offset=offset, partition=options.partition, base=options.base)
        yield AreaBlocks(area), area.header_block
    finally:
        close_volume(volume)
