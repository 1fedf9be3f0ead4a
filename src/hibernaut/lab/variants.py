# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of guests, as data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hibernaut.errors import LabUnavailable

__all__ = ["MAX_REGIONS", "REGIONS", "VARIANTS", "Swap", "Variant", "random_variant", "variant_named"]

REGIONS = (
    "2m:above",
    "2m:below",
    "4k:above",
    "4k:below",
    "4k-pair:above",
    "4k-pair:below",
    "none:above",
    "none:below",
    "none-2m:above",
    "none-2m:below",
    "1g:below",
    "2m-thin:above",
    "2m-thin:below",
    "2m-thin:any",
    "2m-thread:above",
    "2m-thread:below",
    "vfree:above",
    "vfree:below",
)
"""Regions that the module can take out of the direct map: a block of 2 MiB or 1 GiB, a block of 2 MiB of which one page
alone is saved ("thin"), a page of a block or two neighbouring ones, or a page or a block whose entry becomes zero
("none"); with the table of the block's entry at a higher or a lower frame, or either. A block of 2 MiB can also belong
to a thread that is caught while it frees it: by calls for all of its pages ("thread"), or page by page, as the kernel's
own `vfree` does."""
THREADS = ("2m-thread:", "vfree:")
"""Begin of the words of regions with a thread."""
MAX_REGIONS = 4096
SIDES = ("above", "below")


class Swap(StrEnum):
    """The place that a guest swaps and hibernates to."""

    DISK = "disk"
    PARTITION = "partition"
    FILE = "file"


@dataclass(frozen=True)
class Variant:
    """A kind of guest.

    Attributes:
        name: name on the command line.
        what: noun phrase for help and tables.
        memory_mib: RAM, MiB.
        levels: levels of paging.
        kaslr: whether the kernel randomizes the addresses of itself and of its maps.
        compressor: compressor of the image: lzo, lz4 or none.
        swap: place that it swaps to.
        regions: regions out of the direct map, in the module's words (guest/region); those whose PMD table is on the
            same side ascend by address.
        seed: seed that draws the regions' blocks from all that fit; 0 takes the first ones found.
        fail_allocations: number of allocations for a split that fail during the copy.
        skip_allocations: number of those that succeed before the first one fails.
        kfence: whether KFENCE is switched on at run time, and used until its slots were reused.
        pages: position, relative to the regions, of the pages that the hibernating process is given, of their array of
            `struct page` and of their zone: above or below.
        lists: position of the CPU's own lists of free pages: above or below.
        swaps_out: whether the kernel swaps out what it can before it makes the image (/sys/power/image_size is 0).
        zswap: whether zswap is enabled, so that pages are compressed in memory first.
        zswap_compressor: its compressor, by the kernel's name; empty for the kernel's default.
        huge_pages: number of huge pages of anonymous memory that a process has; with any, tmpfs has some, too, and the
            disk is one that the kernel swaps them out to as they are.
        secret_pages: pages of memfd_secret that a process holds, with which the kernel does not hibernate.
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
    skip_allocations: int = 0
    kfence: bool = False
    secret_pages: int = 0
    pages: str = "above"
    lists: str = "above"
    swaps_out: bool = False
    zswap: bool = False
    zswap_compressor: str = ""
    huge_pages: int = 0

    @property
    def has_threads(self) -> bool:
        """Whether a thread that is not frozen frees one of the regions."""
        return any(region.startswith(THREADS) for region in self.regions)

    @property
    def two_nodes(self) -> bool:
        """Whether the guest has two NUMA nodes. With one node the allocator has all of its pages above the regions.

        With two nodes, the regions are in the upper one, the pages and the CPU each in either.
        """
        return (self.pages, self.lists) != ("above", "above")

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Variant:
        """Return a variant from its fields in JSON. Raises TypeError, ValueError or KeyError."""
        fields = {"pages": "above", "lists": "above", **fields}  # absent from records older than these fields
        wrong = [name for name, kind in TYPES.items() if not isinstance(fields[name], kind)]
        wrong += [name for name in ("pages", "lists") if fields[name] not in SIDES]
        if wrong:
            raise TypeError(f"{wrong[0]} is {fields[wrong[0]]!r}")
        return cls(**{**fields, "swap": Swap(fields["swap"]), "regions": tuple(fields["regions"])})


TYPES = {"name": str, "memory_mib": int, "levels": int, "kaslr": bool, "compressor": str, "regions": list}

VARIANTS = (
    Variant("lzo", "ordinary machine, image compressed with LZO"),
    Variant("lz4", "ordinary machine with KASLR, image compressed with LZ4 (6.9 and later)", kaslr=True,
            compressor="lz4"),
    Variant("none", "ordinary machine, image not compressed", compressor="none"),
    Variant("kaslr", "kernel and direct map randomized by KASLR", kaslr=True),
    Variant("la57", "5 levels of paging and KASLR", levels=5, kaslr=True),
    Variant("big", "2 GiB of memory", memory_mib=2048),
    Variant("partition", "swap partition at an offset in a disk", swap=Swap.PARTITION),
    Variant("file", "swap file on ext4", swap=Swap.FILE),
    Variant("swapped", "swap partition, pages swapped out before the image is made", swap=Swap.PARTITION,
            swaps_out=True),
    Variant("swapped-file", "swap file on ext4, pages swapped out before the image is made, KASLR", swap=Swap.FILE,
            kaslr=True, swaps_out=True),
    Variant("zswap", "swap partition behind zswap, pages swapped out before the image is made", swap=Swap.PARTITION,
            swaps_out=True, zswap=True),
    Variant("zswap-lzo-rle", "swap partition behind zswap that compresses with LZO-RLE, pages swapped out before the "
            "image is made", swap=Swap.PARTITION, swaps_out=True, zswap=True, zswap_compressor="lzo-rle"),
    Variant("huge", "512 MiB, huge pages of a process and of tmpfs", memory_mib=512, swap=Swap.PARTITION,
            huge_pages=16),
    Variant("swapped-huge", "swap partition, huge pages swapped out before the image is made", swap=Swap.PARTITION,
            swaps_out=True, huge_pages=16),
    Variant("secret", "1292 pages of memfd_secret, for dumps: the kernel refuses to hibernate", secret_pages=1292),
    Variant("hole-4k", "one page not present in the direct map", regions=("4k:below",)),
    Variant("hole-2m", "a 2 MiB block not present, its PMD table at a higher frame", compressor="none",
            regions=("2m:above",)),
    Variant("hole-2m-below", "a 2 MiB block not present, its PMD table at a lower frame", compressor="none",
            regions=("2m:below",)),
    Variant("holes", "three 2 MiB blocks and a page not present, PMD tables on both sides", compressor="none",
            regions=("2m:above", "2m:below", "2m:below", "4k:below")),
    Variant("hole-2m-fails", "a 2 MiB block not present, and the allocation for its split fails", compressor="none",
            regions=("2m:above",), fail_allocations=1),
    Variant("thread-2m", "a 2 MiB block that a kernel thread is freeing, hidden by one call, its PMD table at a higher "
            "frame", compressor="none", regions=("2m-thread:above",)),
    Variant("thread-2m-below", "the same with its PMD table at a lower frame", compressor="none",
            regions=("2m-thread:below",)),
    Variant("thread-vfree", "a 2 MiB vmalloc area that the kernel's vfree is resetting, page by page",
            compressor="none", regions=("vfree:above",)),
    Variant("torn-lists", "a 2 MiB block not present, above the struct pages and below the CPU's lists (two nodes)",
            memory_mib=512, compressor="none", regions=("2m:below",), pages="below"),
    Variant("none-entry", "a page whose entry in the direct map is zero", regions=("none:below",)),
)  # fmt: skip


def variant_named(name: str) -> Variant:
    """Return one of `VARIANTS`. Raises LabUnavailable, with the known names."""
    for variant in VARIANTS:
        if variant.name == name:
            return variant
    raise LabUnavailable(f"no guest variant {name!r}", advice="`hibernaut lab variants` lists them")


def random_variant(seed: int, *, levels: int = 4, kaslr: bool = False, fail_allocations: int = 0) -> Variant:
    """Return a guest with random regions: their number, sizes, sides of their tables, and blocks.

    Args:
        seed: the same seed gives the same regions, and the same choice of blocks where the same ones are free.
        levels: levels of paging.
        kaslr: whether kernel and direct map are randomized.
        fail_allocations: number of allocations for a split that fail during the copy.
    """
    chance = random.Random(seed)  # nosec B311 # reproducible variants
    # Low memory beside the kernel's image is scarce: one block of it for certain, perhaps a second one.
    regions = ["2m:above", *chance.choices(["2m:above", "4k:above"], k=chance.randint(0, 1))]
    regions += chance.choices(["2m:below", "4k:below"], weights=[3, 1], k=chance.randint(1, 6))
    chance.shuffle(regions)
    return Variant(
        f"random-{seed}",
        f"random regions, seed {seed}",
        # Wherever KASLR puts the kernel, both sides of its tables must have enough blocks.
        memory_mib=512 if kaslr else 256,
        levels=levels,
        kaslr=kaslr,
        compressor="none",
        regions=tuple(regions),
        seed=seed,
        fail_allocations=fail_allocations,
    )
