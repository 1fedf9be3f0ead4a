# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases of guests that are stopped before the copy and saved from their dump, and of the kernel's copy itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hibernaut.hibernation.ways import Way
from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.cases.steps import open_saved, require_intact
from hibernaut.lab.conformance import Compared
from hibernaut.lab.judgement import crashed_in_lists
from hibernaut.lab.laboratory import Lab, Resumed
from hibernaut.lab.takeover import Takeover, take_over
from hibernaut.lab.variants import Variant, variant_named
from hibernaut.linux import DirectMap
from hibernaut.paging.spans import Stop

__all__ = ["compared", "failing_allocation", "flawed_way", "from_dump", "lost_table", "torn_lists"]

MAX_DIFFERENCES = 3


def from_dump(variant: str, lab: Lab, folder: Path) -> str:
    """Save a guest stopped before the copy loop; its stock kernel resumes."""
    taken = take_over(lab, variant_named(variant), folder)
    require_intact(taken)
    return f"{taken.resumed.reason}; {taken.written.saved_pages} pages; direct map entry by entry the same"


def lost_table(lab: Lab, folder: Path) -> str:
    """Take out a block whose PMD table is copied after the split: the kernel's image is torn, ours is intact."""
    taken = take_over(lab, variant_named("hole-2m"), folder, resume_stock=True)
    stock = _resumed_stock(taken)
    if "direct map garbage" not in stock.reason:
        raise CaseFailed(f"the kernel's own image must bring back garbage: {stock.reason}")
    (block, *_) = taken.stock.record.blocks
    with open_saved(taken.stock) as image:
        found = {hole.kind for hole in DirectMap.find(image.memory(), image.info.cr3).holes if hole.start_pfn == block}
    if Stop.TABLE_MISSING not in found:
        kinds = ", ".join(sorted(map(str, found))) or "no hole"
        raise CaseFailed(f"the map of the kernel's image has {kinds} at block {block:#x}; expected table-missing")
    require_intact(taken)
    return f"its own: {stock.reason}, its map has table-missing; ours: {taken.resumed.reason}"


def failing_allocation(lab: Lab, folder: Path) -> str:
    """Let the split's allocation fail: the stock kernel crashes, our image resumes."""
    taken = take_over(lab, variant_named("hole-2m-fails"), folder)
    if taken.stock.outcome != "died" or "Failed to remap page" not in taken.stock.log:
        raise CaseFailed(f"the stock kernel must crash: {taken.stock.summary}")
    require_intact(taken)
    return f"stock: {taken.stock.reason}; ours: {taken.resumed.reason}"


def flawed_way(way: Way, variant: str, must: str, lab: Lab, folder: Path) -> str:
    """Save by a way with a known defect: the resumed guest must report it, which shows that its checks can fail."""
    taken = take_over(lab, variant_named(variant), folder, way=way)
    if taken.passed or must not in taken.resumed.reason:
        raise CaseFailed(f"{way.name} must end in {must!r}: {taken.resumed.reason}")
    return taken.resumed.reason


def torn_lists(lab: Lab, folder: Path) -> str:
    """Put struct pages below a block, CPU lists above: the kernel's image has torn lists, ours intact ones."""
    taken = take_over(lab, variant_named("torn-lists"), folder, resume_stock=True)
    stock = _resumed_stock(taken)
    if not crashed_in_lists(stock):
        raise CaseFailed(f"the kernel's own image must bring back torn lists: {stock.reason}")
    require_intact(taken)
    return f"its own: {stock.reason}; ours: {taken.resumed.reason}"


def compared(compare: Callable[[Lab, Variant, Path], Compared], variant: Variant, lab: Lab, folder: Path) -> str:
    """Compare the copy of a guest's kernel with the model's."""
    result = compare(lab, variant, folder)
    if result.differences:
        more = len(result.differences) - MAX_DIFFERENCES
        shown = "; ".join(result.differences[:MAX_DIFFERENCES])
        raise CaseFailed(shown + (f"; and {more} more" if more > 0 else ""))
    return result.seen


def _resumed_stock(taken: Takeover) -> Resumed:
    """Return the resume from the kernel's own image. Raises CaseFailed if it made none."""
    if taken.stock_resumed is None:
        raise CaseFailed(f"the kernel made no image of its own: {taken.stock.summary}")
    return taken.stock_resumed
