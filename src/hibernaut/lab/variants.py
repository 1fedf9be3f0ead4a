# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests there are, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hibernaut.errors import LabUnavailable

__all__ = ["MOST_REGIONS", "REGIONS", "VARIANTS", "Swap", "Variant", "variant_named"]

REGIONS = ("2m:above", "2m:below", "4k:above", "4k:below", "none:above", "none:below")
"""What the module can take out: a block, a page of one, or the whole entry of a page ("none": it is zero then); the PMD
table at a higher or a lower frame."""
MOST_REGIONS = 16
SIDES = ("above", "below")


class Swap(StrEnum):
    """Where the guest swaps to, and so hibernates to."""

    DISK = "disk"
    PARTITION = "partition"
    FILE = "file"


@dataclass(frozen=True)
class Variant:
    """A guest.

    Attributes:
        name: what the user says.
        what: a clause for `lab --help` and tables.
        memory_mib: RAM, MiB.
        levels: levels of paging.
        kaslr: whether the kernel moves itself and its maps.
        compressor: of the image: lzo, lz4 or none.
        swap: where it swaps to.
        regions: what is taken out of the direct map, in the module's words (guest/region); those whose PMD table lies
            on the same side are in ascending order of address.
        seed: draws the regions' blocks from all that suit; 0: the first that are found.
        fail_allocations: how many allocations for a split fail during the copy.
        pages: where, seen from the regions, the pages lie that the hibernating process is given, and with them their
            array of `struct page` and their zone: above or below.
        lists: where the CPU's own lists of free pages lie, above or below.
        secret_pages: pages of memfd_secret that a process holds; the kernel does not hibernate then.
    """

    name: str
    what: str
    memory_mib: int = 256
    levels: int = 4
    kaslr: bool = False
    compressor: str = "lzo"
    swap: Swap = Swap.DISK
    regions: tuple[str, ...] = ()
    seed: int = 0
    fail_allocations: int = 0
    secret_pages: int = 0
    pages: str = "above"
    lists: str = "above"

    @property
    def two_nodes(self) -> bool:
        """Whether it takes two NUMA nodes: in a guest of one node the allocator has all of its own above the regions.

        Of two the regions are in the upper one, the pages and the CPU each in the one or the other.
        """
        return (self.pages, self.lists) != ("above", "above")

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Variant:
        """A variant from its fields as JSON has them. Raises TypeError, ValueError or KeyError."""
        fields = {"pages": "above", "lists": "above", **fields}  # records of before there were nodes
        wrong = [name for name, kind in TYPES.items() if not isinstance(fields[name], kind)]
        wrong += [name for name in ("pages", "lists") if fields[name] not in SIDES]
        if wrong:
            raise TypeError(f"{wrong[0]} is {fields[wrong[0]]!r}")
        return cls(**{**fields, "swap": Swap(fields["swap"]), "regions": tuple(fields["regions"])})


TYPES = {"name": str, "memory_mib": int, "levels": int, "kaslr": bool, "compressor": str, "regions": list}

VARIANTS = (
    Variant("lzo", "an ordinary machine, image compressed with LZO"),
    Variant("lz4", "an ordinary machine with KASLR, image compressed with LZ4 (6.9 and later)", kaslr=True,
            compressor="lz4"),
    Variant("none", "an ordinary machine, image not compressed", compressor="none"),
    Variant("kaslr", "kernel and direct map moved by KASLR", kaslr=True),
    Variant("la57", "5 levels of paging and KASLR", levels=5, kaslr=True),
    Variant("big", "2 GiB of memory", memory_mib=2048),
    Variant("partition", "swap partition at an offset in a disk", swap=Swap.PARTITION),
    Variant("file", "swap file on ext4", swap=Swap.FILE),
    Variant("secret", "1292 pages of memfd_secret; for dumps, the kernel refuses to hibernate", secret_pages=1292),
    Variant("hole-4k", "one page not present in the direct map", regions=("4k:below",)),
    Variant("hole-2m", "a 2 MiB block not present, its PMD table at a higher frame", compressor="none",
            regions=("2m:above",)),
    Variant("hole-2m-below", "a 2 MiB block not present, its PMD table at a lower frame", compressor="none",
            regions=("2m:below",)),
    Variant("holes", "three 2 MiB blocks and a page not present, tables on both sides", compressor="none",
            regions=("2m:above", "2m:below", "2m:below", "4k:below")),
    Variant("hole-2m-fails", "a 2 MiB block not present, and the allocation for its split fails", compressor="none",
            regions=("2m:above",), fail_allocations=1),
    Variant("torn-lists", "a 2 MiB block not present, above the struct pages and below the CPU's lists (two nodes)",
            memory_mib=512, compressor="none", regions=("2m:below",), pages="below"),
    Variant("none-entry", "a page whose entry in the direct map is zero", regions=("none:below",)),
)  # fmt: skip


def variant_named(name: str) -> Variant:
    """One of `VARIANTS`. Raises LabUnavailable, with the names there are."""
    for variant in VARIANTS:
        if variant.name == name:
            return variant
    raise LabUnavailable(f"no guest variant {name!r} (known: {', '.join(one.name for one in VARIANTS)})")
