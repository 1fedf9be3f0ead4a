# SPDX-License-Identifier: GPL-2.0-or-later
"""The studies: sweeps with a name and a question, from which `docs/answers.md` is made."""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.search import Bounds
from hibernaut.linux.rules import LINES

__all__ = ["COMING", "MOST_SPLITS", "MUTANTS_IN_QUESTION", "PROPOSED_RULES", "RESERVES_AT_THE_MARK", "STUDIES", "Study"]

BOTH = (Side.ABOVE, Side.BELOW)
WITHOUT_OWNERS = (
    RegionKind.PAGE,
    RegionKind.BLOCK,
    RegionKind.GIB,
    RegionKind.MIXED,
    RegionKind.NONE,
    RegionKind.NO_TABLE,
)
"""The kinds of region whose pages have no owner, or one that rewrites the whole entry."""
OWNERS = (RegionKind.PAGE, RegionKind.BLOCK, RegionKind.KFENCE, RegionKind.KFENCE_AT_BOOT)
OWNERS_ASKS = "pages by 4K entries of two kinds of owner: one sets PRESENT and RW again, KFENCE sets PRESENT alone"
WAYS_IN_QUESTION = (
    "remap",
    "fixmap",
    "fixmap-v1",
    "fixmap-v3",
    "remap-generic",
    "remap-generic-zero",
    "remap-generic-abort",
    "remap-whole",
    "reserved:9",
)
MUTANTS_IN_QUESTION = (
    "fixmap-no-flush",
    "fixmap-no-clear",
    "fixmap-no-map",
    "fixmap-skips",
    "fixmap-bounce",
    "remap-no-unmap",
    "remap-no-flush",
    "remap-whole-no-write",
    "remap-write-anyway",
)
"""The mutants of the ways above."""
MOST_SPLITS = 9
"""The number of splits of three regions of 1 GiB."""
FEW_PAGES = 10
"""The number of free pages where a mark counts: one more than the splits, so that the lowest mark is never met."""
RESERVES_AT_THE_MARK = ("reserved:1", "reserved:3", "reserved:9")


@dataclass(frozen=True)
class Study:
    """A sweep with a name.

    Attributes:
        name: its name.
        asks: its question, a clause.
        sweep: its sweep.
    """

    name: str
    asks: str
    sweep: Sweep


CANDIDATES = ("fixmap", "mermap", "mermap:2", "fixmap-whole-run")
CANDIDATES_MUTANTS = (
    "mermap-no-flush",
    "mermap-other-cpu",
    "fixmap-whole-run-no-flush",
    "fixmap-whole-run-no-clear",
)
PROPOSED_RULES = "7.3 with set_direct_map_takes_pages, resets_huge_vmalloc, has_unmapped_pageblocks"
"""The newest line with what is proposed for large blocks (`KernelRules`)."""

_RELEASED: tuple[Study, ...] = (
    Study(
        "regions",
        "all layouts of up to three regions, every allocation failing or not, every stale translation used or not",
        Sweep(Family(regions=(0, 1, 2, 3), remembered=(False, True)), (*WAYS_IN_QUESTION, *MUTANTS_IN_QUESTION)),
    ),
    Study(
        "kinds",
        "other kinds of region: among present 4K entries, without an entry, without a table",
        Sweep(
            Family(regions=(0, 1, 2), kinds=WITHOUT_OWNERS, root=BOTH),
            (*WAYS_IN_QUESTION, *MUTANTS_IN_QUESTION),
        ),
    ),
    Study(
        "places",
        "all sides for the kernel's own pages, and allocations on the resumed machine",
        Sweep(
            Family(
                regions=(0, 1),
                kinds=(RegionKind.BLOCK, RegionKind.GIB),
                root=BOTH,
                mem_map=BOTH,
                zone=BOTH,
                pcp=BOTH,
                free=BOTH,
                cpus=(1, 2),
            ),
            (*WAYS_IN_QUESTION, *MUTANTS_IN_QUESTION),
            allocations_after=64,
        ),
    ),
    Study(
        "reserve",
        "the number of pages for tables that have to be reserved",
        Sweep(
            Family(regions=(0, 1, 2, 3), kinds=(RegionKind.BLOCK, RegionKind.GIB), free=BOTH),
            tuple(f"reserved:{pages}" for pages in range(MOST_SPLITS + 1)),
        ),
    ),
    Study(
        "6.13-rc",
        "2 MiB blocks out of the direct map, as execmem took them in 6.13-rc; all sides for the allocator's own pages",
        Sweep(
            Family(
                regions=(0, 1, 2, 3),
                kinds=(RegionKind.BLOCK,),
                mem_map=BOTH,
                zone=BOTH,
                pcp=BOTH,
                free=BOTH,
                cpus=(1, 2),
            ),
            ("remap", "fixmap", "remap-whole"),
            rules="6.13-rc",
            allocations_after=64,
        ),
    ),
    Study(
        "two nodes",
        "a machine of two NUMA nodes: pages come from the lower node, the regions and the CPU are on the upper node",
        Sweep(
            Family(
                regions=(0, 1, 2, 3),
                kinds=(RegionKind.BLOCK, RegionKind.GIB),
                tables=(Side.BELOW,),
                mem_map=(Side.BELOW,),
                zone=(Side.BELOW,),
                pcp=(Side.ABOVE,),
                free=(Side.BELOW,),
                cpus=(1, 2),
            ),
            ("remap", "fixmap", "remap-whole"),
            allocations_after=64,
        ),
    ),
    Study(
        "owners",
        OWNERS_ASKS,
        Sweep(Family(regions=(0, 1, 2), kinds=OWNERS), (*WAYS_IN_QUESTION, *MUTANTS_IN_QUESTION)),
    ),
    *(
        Study(
            f"owners {line}",
            f"the same by the rules of {line}",
            Sweep(
                Family(regions=(0, 1, 2), kinds=OWNERS),
                ("remap", "fixmap", "fixmap-v3", "remap-whole"),
                rules=line,
            ),
        )
        for line in ("6.12", "6.15", "7.3")
    ),
    *(
        Study(
            f"line {rules.line}",
            f"differences by the rules of {rules.line}",
            Sweep(
                Family(regions=(0, 1, 2), kinds=WITHOUT_OWNERS),
                ("remap", "fixmap", "fixmap-v3", "remap-whole"),
                rules=rules.line,
            ),
        )
        for rules in LINES[1:]
    ),
    Study(
        "depletion",
        "a zone near its min mark, with nothing injected: ten free pages, marks of one to ten, three sizes of refill",
        Sweep(
            Family(
                regions=(2, 1, 3),  # the first machine has two splits, of which the second fails
                kinds=(RegionKind.BLOCK, RegionKind.GIB),
                tables=(Side.ABOVE,),
                free_pages=FEW_PAGES,
                min_mark=tuple(range(1, FEW_PAGES + 1)),
                batch=(63, 1, 3),
            ),
            ("remap", "fixmap", "remap-whole", "remap-generic-abort", *RESERVES_AT_THE_MARK),
            bounds=Bounds(failures=0),
        ),
    ),
)

COMING: tuple[Study, ...] = (
    Study(
        "candidates",
        "ways that no patch has for hibernation: the mermap, and one entry for a block",
        Sweep(
            Family(
                regions=(0, 1, 2),
                kinds=(RegionKind.PAGE, RegionKind.BLOCK, RegionKind.GIB, RegionKind.NONE, RegionKind.NO_TABLE),
                tables=(Side.ABOVE,),
                root=BOTH,
            ),
            (*CANDIDATES, *CANDIDATES_MUTANTS),
            rules="7.3",
        ),
    ),
    Study(
        "second root",
        "a second root that mirrors the direct map by tables of its own, as for address space isolation",
        Sweep(
            Family(
                regions=(0, 1, 2), kinds=(RegionKind.PAGE, RegionKind.BLOCK), root=BOTH, free=BOTH, second_root=BOTH
            ),
            ("remap", "remap-whole", "reserved:4", *CANDIDATES, "remap-whole-one-root"),
            rules="7.3",
        ),
    ),
    Study(
        "vmalloc",
        "huge vmalloc areas caught while a kernel thread that is not frozen frees them; it continues after the copy",
        Sweep(
            Family(regions=(0, 1, 2), kinds=(RegionKind.VMALLOC,), root=BOTH, free=BOTH),
            ("remap", "remap-whole", "reserved:2", *CANDIDATES),
            rules=PROPOSED_RULES,
            allocations_after=64,
        ),
    ),
    Study(
        "unmapped",
        "unmapped pageblocks, allocated and free, with one mapped page free for the splits",
        Sweep(
            Family(
                regions=(1, 2),
                kinds=(RegionKind.UNMAPPED, RegionKind.UNMAPPED_FREE),
                mem_map=BOTH,
                zone=BOTH,
                free_pages=1,
            ),
            ("remap", "remap-whole", "reserved:2", *CANDIDATES),
            rules=PROPOSED_RULES,
            allocations_after=64,
        ),
    ),
)
"""The studies of what is proposed, and not in a released kernel."""

STUDIES: tuple[Study, ...] = (*_RELEASED, *COMING)
"""All studies, in the order of the page."""
