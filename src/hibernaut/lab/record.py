# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a guest that hibernated, kept beside its disks: whatever another machine needs to resume and verify it.

A folder with a record holds the files named here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibernaut.errors import FormatError, LabError
from hibernaut.lab.variants import Variant
from hibernaut.volumes.output import write_file

__all__ = [
    "IMAGE_NAME",
    "LOG_NAME",
    "RECORD_NAME",
    "RESUMED_LOG_NAME",
    "SPARE_NAME",
    "GuestRecord",
    "require_arranged",
]

RECORD_NAME = "machine.json"
LOG_NAME = "kernel.log"
RESUMED_LOG_NAME = "resumed.log"
IMAGE_NAME = "swap.img"
"""The guest's first disk, vda, with its swap area."""
SPARE_NAME = "spare.img"
"""The guest's second disk, vdb, empty."""


@dataclass(frozen=True)
class GuestRecord:
    """Facts of a guest right before it hibernates.

    Attributes:
        session: session of the machine that is saved.
        release: release of its kernel.
        kernel: name of its kernel in tables.
        variant: kind of guest.
        partition: number of the swap partition, None for a whole disk.
        offset: `resume_offset`, in pages.
        regions: report of the kernel module on each region, by key.
        frames: (page of the locked region, first frame, count), as the guest reports them.
        direct_map: the kernel's counters DirectMap4k, DirectMap2M, DirectMap1G, in kB.
        saved_pages: number of pages that the kernel announced ("Need to copy N pages"), None if it did not get there.
        allocator: frames that change when the hibernating process is given a page: that page ("free"), its
            `struct page` ("mem-map"), its zone ("zone") and the CPU's list ("pcp"); empty without the module.
    """

    session: str
    release: str
    kernel: str
    variant: Variant
    partition: int | None
    offset: int
    regions: tuple[dict[str, str], ...]
    frames: tuple[tuple[int, int, int], ...]
    direct_map: dict[str, int]
    saved_pages: int | None = None
    allocator: dict[str, int] = field(default_factory=dict)

    @property
    def blocks(self) -> list[int]:
        """First frame of each region's block, in the order of the regions."""
        return [int(region["block"], 16) for region in self.regions]

    def with_announced_pages(self, log: str) -> GuestRecord:
        """Return the record with the number of pages that the kernel announced in its log."""
        announced = re.search(r"Need to copy (\d+) pages", log)
        return dataclasses.replace(self, saved_pages=int(announced[1]) if announced else None)

    def save(self, folder: Path) -> None:
        """Write the record into the folder of the guest's disks."""
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_file(folder / RECORD_NAME, text.encode(), public=True)

    @classmethod
    def load(cls, folder: Path) -> GuestRecord:
        """Read the record of a folder. Raises FormatError if it is damaged, OSError if it is absent."""
        path = folder / RECORD_NAME
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            found["variant"] = Variant.of(found["variant"])
            found["regions"] = tuple(found["regions"])
            found["frames"] = tuple(tuple(run) for run in found["frames"])
            return cls(**found)
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(
                f"not a record of a laboratory guest: {error}",
                source=str(path),
                advice="give a folder that `hibernaut lab hibernate` made, as --record",
            ) from error


def require_arranged(record: GuestRecord) -> None:
    """Require that the allocator's pages lie where the guest's variant wants them. Raises LabError if not."""
    blocks = record.blocks
    if not blocks:
        return
    lowest, highest = min(blocks), max(blocks)
    for name in ("mem-map", "zone", "pcp"):
        wanted = record.variant.lists if name == "pcp" else record.variant.pages
        pfn = record.allocator.get(name, 0)
        if not (pfn > highest if wanted == "above" else 0 < pfn < lowest):
            raise LabError(
                f"the guest's {name} is at frame {pfn:#x}; expected {wanted} its regions (frames {lowest:#x} to "
                f"{highest:#x})"
            )
