# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of cases that every kernel of the laboratory must pass."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from hibernaut.errors import HibernautError
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.hibernation.ways import FixmapNoFlush, Remap
from hibernaut.lab.cases.case import LabCase
from hibernaut.lab.cases.damage import refusals
from hibernaut.lab.cases.images import read_facts, rewrite, rewrite_changed, swap_elsewhere
from hibernaut.lab.cases.killed import KILLS, killed
from hibernaut.lab.cases.predictions import as_explored, with_allocator
from hibernaut.lab.cases.swapped import SWAPPED_RIGHT, huge_pages_right, swapped_out
from hibernaut.lab.cases.takeovers import compared, failing_allocation, flawed_way, from_dump, lost_table, torn_lists
from hibernaut.lab.cases.traces import traced
from hibernaut.lab.conformance import compare_copy, compare_crash
from hibernaut.lab.variants import Swap, random_variant, variant_named

__all__ = ["CASES", "COPY_SEED", "QUICK", "cases_of"]

COPY_SEED, LA57_SEED, CRASH_SEED = 1, 3, 2
SAME_COPY = "page tables, map and splits equal, entry by entry"
SAME_CALLS = "the model's, step by step"

CASES = (
    LabCase("facts read, against the kernel's own", "every fact agrees", read_facts, every_line=True),
    LabCase("own image rewritten, each compressor", "resumes", rewrite, every_line=True),
    LabCase("one marker changed in the image", "the guest sees the change", rewrite_changed),
    LabCase("saved from a dump: 4 levels", "resumes", partial(from_dump, "lzo"), every_line=True),
    LabCase("saved from a dump: KASLR", "resumes", partial(from_dump, "kaslr")),
    LabCase("saved from a dump: 5 levels, KASLR", "resumes", partial(from_dump, "la57")),
    LabCase("2 MiB not present, table above", "own image: garbage, as its map shows; ours: intact", lost_table),
    LabCase("2 MiB not present, allocation fails", "stock kernel crashes; ours resumes", failing_allocation),
    LabCase(
        "saved by the model's Remap",
        "direct map garbage, as from the kernel itself",
        partial(flawed_way, Remap(), "hole-2m", "direct map garbage"),
    ),
    LabCase(
        "saved through a fixmap without a TLB flush",
        "the guest finds damaged pages",
        partial(flawed_way, FixmapNoFlush(), "hole-2m-below", "511 pages damaged"),
    ),
    LabCase(
        "explored: an allocation fails",
        "a warning, then a page fault in the copy",
        partial(as_explored, RegionKind.BLOCK, Side.ABOVE, (1,)),
    ),
    LabCase(
        "explored: a zero entry",
        "a page fault in the copy, no warning",
        partial(as_explored, RegionKind.NONE, Side.BELOW, ()),
    ),
    LabCase(
        "explored: nothing fails, table above",
        "no warning, an image that lacks a table, garbage",
        partial(as_explored, RegionKind.BLOCK, Side.ABOVE, ()),
    ),
    LabCase(
        "explored: struct pages below, CPU lists above",
        "no warning, every table saved, the resumed kernel crashes in its free lists",
        partial(with_allocator, Side.BELOW, Side.ABOVE),
    ),
    LabCase(
        "explored: struct pages above, CPU lists below",
        "no warning, every table saved, the resumed kernel continues",
        partial(with_allocator, Side.ABOVE, Side.BELOW),
    ),
    LabCase(
        "explored: struct pages and CPU lists below",
        "no warning, every table saved, the resumed kernel continues",
        partial(with_allocator, Side.BELOW, Side.BELOW),
    ),
    LabCase(
        "struct pages below, CPU lists above: saved from a dump",
        "own image: torn free lists; ours: intact",
        torn_lists,
    ),
    LabCase(
        f"random regions, seed {COPY_SEED}: copy and model",
        SAME_COPY,
        partial(compared, compare_copy, random_variant(COPY_SEED)),
    ),
    LabCase(
        f"random regions, seed {LA57_SEED}, 5 levels, KASLR: copy and model",
        SAME_COPY,
        partial(compared, compare_copy, random_variant(LA57_SEED, levels=5, kaslr=True)),
    ),
    LabCase(
        f"random regions, seed {CRASH_SEED}, allocation fails: crash messages",
        "the model's, word for word; ours resumes",
        partial(compared, compare_crash, random_variant(CRASH_SEED, fail_allocations=1)),
    ),
    LabCase(
        "a zero entry: crash messages",
        "no warning, the model's word for word; ours resumes",
        partial(compared, compare_crash, variant_named("none-entry")),
    ),
    LabCase("2 MiB not present: the copy's calls", SAME_CALLS, partial(traced, "hole-2m")),
    LabCase("2 MiB not present, allocation fails: the copy's calls", SAME_CALLS, partial(traced, "hole-2m-fails")),
    LabCase("swap partition at an offset", "resumes", partial(swap_elsewhere, Swap.PARTITION)),
    LabCase("swap file on ext4", "resumes", partial(swap_elsewhere, Swap.FILE)),
    LabCase("pages swapped out to a partition", SWAPPED_RIGHT, partial(swapped_out, "swapped"), every_line=True),
    LabCase("pages swapped out to a swap file, KASLR", SWAPPED_RIGHT, partial(swapped_out, "swapped-file")),
    LabCase("pages swapped out to zswap", SWAPPED_RIGHT, partial(swapped_out, "zswap")),
    LabCase("pages swapped out to zswap, LZO-RLE", SWAPPED_RIGHT, partial(swapped_out, "zswap-lzo-rle")),
    LabCase("huge pages swapped out to a partition", SWAPPED_RIGHT, partial(huge_pages_right, "swapped-huge")),
    LabCase("huge pages in memory", SWAPPED_RIGHT, partial(huge_pages_right, "huge")),
    LabCase("damaged and foreign images", "refused as inspect predicts", refusals, every_line=True),
    LabCase(f"writer killed {KILLS} times", "old image, none, or the new one", killed),
)

QUICK = (
    "facts read, against the kernel's own",
    "own image rewritten, each compressor",
    "2 MiB not present, allocation fails",
    f"random regions, seed {COPY_SEED}:",
)
"""Names of the everyday subset: reading, rewriting, a takeover where the stock kernel crashes, copy and model."""


def cases_of(names: Iterable[str] | None = None) -> list[LabCase]:
    """Return the cases whose names contain one of these texts; all of them if None.

    Raises:
        HibernautError: a text matches no case.
    """
    if names is None:
        return list(CASES)
    wanted = list(names)
    for name in wanted:
        if not any(name in case.name for case in CASES):
            raise HibernautError(f"no case matches {name!r}", advice="`hibernaut lab prove --list` lists them")
    return [case for case in CASES if any(name in case.name for name in wanted)]
