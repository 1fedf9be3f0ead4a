# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions that choose a machine's layout: which regions its direct map lacks, and where its own pages lie.

They are asked of the same `Environment` as the choices of a running kernel, so that one schedule of answers records
both. Each function asks one question; the first option is the answer without interference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum, StrEnum

from hibernaut.linux.environment import Choice, Environment, Question

__all__ = [
    "LayoutKind",
    "RegionKind",
    "Side",
    "Structure",
    "ask_batch",
    "ask_cpus",
    "ask_min_mark",
    "ask_region",
    "ask_regions",
    "ask_remembered",
    "ask_side",
    "ask_tables",
]


class RegionKind(IntEnum):
    """The ways in which a region can be missing from the direct map."""

    PAGE = 0
    BLOCK = 1
    GIB = 2
    MIXED = 3
    NONE = 4
    NO_TABLE = 5
    KFENCE = 6
    KFENCE_AT_BOOT = 7
    VMALLOC = 8
    UNMAPPED = 9
    UNMAPPED_FREE = 10

    @property
    def word(self) -> str:
        """Its name on the command line and in files."""
        return (
            "4k",
            "2m",
            "1g",
            "mixed",
            "none",
            "no-table",
            "kfence",
            "kfence-at-boot",
            "vmalloc",
            "unmapped",
            "unmapped-free",
        )[self]

    def __str__(self) -> str:
        return (
            "two pages not present, by 4K entries of their own",
            "2 MiB not present, as one entry",
            "1 GiB not present, as one entry",
            "2 MiB by 4K entries, every other one not present",
            "two pages without an entry, in a PTE table that exists",
            "2 MiB without a PTE table",
            "KFENCE's pool, switched on at run time: an object's page is free again, its guard pages are not present",
            "KFENCE's pool, made at boot: the same in reserved memory",
            "a huge vmalloc area of 2 MiB, caught while a kernel thread frees it",
            "two unmapped pageblocks that are allocated, each one entry",
            "an unmapped pageblock that is free, one entry",
        )[self]


class Side(IntEnum):
    """The side of all regions on which something lies: pages above them are copied after them."""

    ABOVE = 0
    BELOW = 1

    @property
    def word(self) -> str:
        """Its name on the command line and in files."""
        return self.name.lower()


class Structure(IntEnum):
    """The pages that a kernel has exactly one set of: its static page tables, the allocator's own pages.

    A second root is there on some machines alone.
    """

    ROOT = 0
    MEM_MAP = 1
    ZONE = 2
    PCP = 3
    FREE = 4
    SECOND_ROOT = 5

    @property
    def word(self) -> str:
        """Its name on the command line."""
        return ("root", "mem-map", "zone", "pcp", "free", "second-root")[self]

    def __str__(self) -> str:
        return (
            "the root of the page tables and the fixmap's tables lie",
            "the array of struct page lies",
            "the heads of the free lists lie",
            "the CPUs' own lists lie",
            "the free pages lie",
            "the second root and its tables lie",
        )[self]


class LayoutKind(StrEnum):
    """The kinds of question about a layout; see `QuestionKind`."""

    REGIONS = "regions"
    REGION = "region"
    TABLES = "tables"
    SIDE = "place"
    CPUS = "cpus"
    REMEMBERED = "remembered"
    MIN_MARK = "min-mark"
    BATCH = "batch"

    def describe(self, choice: Choice) -> str:
        """Return an answer to a question of this kind in words."""
        return _WORDS[self](choice)


_WORDS: dict[LayoutKind, Callable[[Choice], str]] = {
    LayoutKind.REGIONS: lambda one: (
        f"{one.value} {'region is' if one.value == 1 else 'regions are'} out of the direct map"
    ),
    LayoutKind.REGION: lambda one: f"region {one.subject}: {RegionKind(one.value)}",
    LayoutKind.TABLES: lambda one: f"region {one.subject}: its tables lie {Side(one.value).word} all regions",
    LayoutKind.SIDE: lambda one: f"{Structure(one.subject)} {Side(one.value).word} all regions",
    LayoutKind.CPUS: lambda one: (
        f"{one.value} {'CPU has' if one.value == 1 else 'CPUs have'} pages on a list of its own"
    ),
    LayoutKind.REMEMBERED: lambda one: (
        "the CPU " + ("remembers" if one.value else "remembers nothing of") + " the regions as they were before"
    ),
    LayoutKind.MIN_MARK: lambda one: f"the zone's min mark is {one.value} {'page' if one.value == 1 else 'pages'}",
    LayoutKind.BATCH: lambda one: f"a CPU's list takes {one.value} {'page' if one.value == 1 else 'pages'} at a time",
}


def ask_regions(environment: Environment, counts: Sequence[int]) -> int:
    """Ask how many regions are out of the direct map."""
    return environment.ask(Question(LayoutKind.REGIONS, 0, counts))


def ask_region(environment: Environment, number: int, kinds: Sequence[RegionKind]) -> RegionKind:
    """Ask for the kind of region `number`, counted from 1 in ascending order of address."""
    return RegionKind(environment.ask(Question(LayoutKind.REGION, number, kinds)))


def ask_tables(environment: Environment, region: int, sides: Sequence[Side]) -> Side:
    """Ask on which side of all regions the page tables of one region lie."""
    return Side(environment.ask(Question(LayoutKind.TABLES, region, sides)))


def ask_side(environment: Environment, structure: Structure, sides: Sequence[Side]) -> Side:
    """Ask on which side of all regions a structure of the kernel's lies."""
    return Side(environment.ask(Question(LayoutKind.SIDE, structure, sides)))


def ask_cpus(environment: Environment, counts: Sequence[int]) -> int:
    """Ask how many CPUs have refilled their own lists."""
    return environment.ask(Question(LayoutKind.CPUS, 0, counts))


def ask_remembered(environment: Environment, options: Sequence[int]) -> bool:
    """Ask whether the CPU still caches translations of the regions from before they were taken out."""
    return bool(environment.ask(Question(LayoutKind.REMEMBERED, 0, options)))


def ask_min_mark(environment: Environment, marks: Sequence[int]) -> int:
    """Ask for the zone's min mark, in pages."""
    return environment.ask(Question(LayoutKind.MIN_MARK, 0, marks))


def ask_batch(environment: Environment, batches: Sequence[int]) -> int:
    """Ask how many pages a CPU's list takes at a time."""
    return environment.ask(Question(LayoutKind.BATCH, 0, batches))
