# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the image fits: into memory while it is copied, and into the swap area.

`hibernate_preallocate_memory` and `enough_free_mem` (kernel/power/snapshot.c), `enough_swap` and `write_page`
(kernel/power/swap.c). Only an image that is not compressed is measured against free swap before it is written; a
compressed one fails in the middle, when no slot is left. Read in linux-source-6.1 6.1.192-2, -6.12 6.12.118-1 and -7.3
7.3.4-1~bpo13+1.
"""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.doctor.checks.areas import area_to_write
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import CheckFinding, CheckOutcome, FactRead, failing, ok, unknown_for_lack_of, warning
from hibernaut.doctor.messages import NO_SWAP
from hibernaut.doctor.prediction import PredictedImage, image_blocks
from hibernaut.hibernation.depletion import metadata_pages, most_image_pages
from hibernaut.swsusp.declarations import PAGES_FOR_IO, PFNS_PER_META_PAGE, UNIT_PAGES

__all__ = ["free_memory", "image_size", "swap_space", "systemd_threshold"]

PAGE_BYTES = 4096
WORST_UNIT_BLOCKS = 35
"""Blocks of a unit that LZO cannot compress: 131072 + 131072/16 + 64 + 3 + 2 bytes, and the length before them."""
RECLAIMABLE = ("nr_slab_reclaimable", "nr_active_anon", "nr_inactive_anon", "nr_active_file", "nr_inactive_file")
"""Counters of `minimum_image_size`."""
SYSTEMD_THRESHOLD = 0.98
"""`HIBERNATION_SWAP_THRESHOLD` (src/shared/hibernate-util.c of systemd)."""
SAVING_FAILED = "PM: Image saving failed: -28"


@dataclass(frozen=True)
class ExpectedPages:
    """Pages of the next image.

    Attributes:
        least: pages that the kernel tries to get down to; those in use now if they are fewer than it allows.
        most: pages in use now.
        shrinks: whether the kernel has to free pages before.
        origin: facts that they come from.
    """

    least: int
    most: int
    shrinks: bool
    origin: FactRead


def expected_pages(facts: Facts) -> ExpectedPages | None:
    """Return the pages that the kernel would copy now; None if the counts are not known.

    Without a reason to free pages, all pages in use are copied: present ones that are on no free list. The kernel frees
    pages if these are more than `image_size` or than fit into memory twice, and stops at the larger one of that wish
    and of `minimum_image_size`, or where nothing more can be freed.
    """
    source = facts.source.value
    if source and source.machine.predicted and not source.machine.is_live:
        pages = source.machine.predicted.pages
        return ExpectedPages(pages, pages, False, FactRead(source.name, f"{pages} pages on the kernel's list"))
    zones = facts.zones.value
    if zones is None:
        return None
    read = FactRead.of(
        facts.zones, f"{zones.present} pages present, {zones.free} free, {zones.per_cpu} on lists of the CPUs"
    )
    in_use = max(0, zones.saveable - (facts.own_pages.value or 0))
    wanted = min(one for one in (_wish(facts), _most_copied(facts), in_use) if one is not None)
    if wanted >= in_use:
        return ExpectedPages(in_use, in_use, False, read)
    counters = facts.counters.value or {}
    least = max(wanted, in_use - sum(counters.get(name, 0) for name in RECLAIMABLE))
    return ExpectedPages(min(least, in_use), in_use, True, read)


def _wish(facts: Facts) -> int | None:
    """Return `image_size` in pages, by default two fifths of RAM (`hibernate_image_size_init`)."""
    if facts.image_size.value is not None:
        return -(-facts.image_size.value // PAGE_BYTES)
    if facts.meminfo.value is not None:
        return facts.meminfo.value["MemTotal"] // PAGE_BYTES * 2 // 5
    return None


def _most_copied(facts: Facts) -> int | None:
    """Return `max_size` of `hibernate_preallocate_memory`; a larger number if the zones' reserve is not known.

    Pages that are neither free nor saved, as those of a balloon (`PageOffline`), are not told apart in /proc/zoneinfo:
    the kernel's number is smaller by half of them.
    """
    zones = facts.zones.value
    if zones is None:
        return None
    reserved = facts.reserved_size.value if facts.reserved_size.value is not None else 1 << 20
    metadata = sum(map(metadata_pages, zones.spanned))
    return most_image_pages(zones.present - (zones.reserve or 0), metadata, reserved)


def image_size(facts: Facts) -> CheckFinding:
    """Return how many pages the next image has."""
    expected = expected_pages(facts)
    if expected is None:
        return unknown_for_lack_of(facts.zones, advice="run it on the machine itself, or give a dump as --image")
    if not expected.shrinks:
        return ok(f"the image has about {expected.most} pages", expected.origin)
    wish = FactRead.of(facts.image_size, f"image_size {facts.image_size.value} bytes")
    return ok(
        f"the kernel frees pages first: the image has about {expected.least} of the {expected.most} pages in use",
        expected.origin,
        wish,
    )


def free_memory(facts: Facts) -> CheckFinding:
    """Return whether memory has room for the copy of each page: half of it, apart from a reserve."""
    zones, counters = facts.zones, facts.counters
    if zones.value is None or counters.value is None:
        return unknown_for_lack_of(zones, counters, advice="run it on the machine itself")
    limit = _most_copied(facts) or 0
    fixed = zones.value.saveable - sum(counters.value.get(name, 0) for name in RECLAIMABLE)
    read = (
        FactRead.of(
            zones,
            f"{zones.value.saveable} pages in use, at most {limit} can be copied"
            + ("" if zones.value.reserve is not None else ", less half of what the zones keep, which it lacks"),
        ),
        FactRead.of(counters, f"{max(0, fixed)} of them can not be freed"),
    )
    if fixed > limit:
        return failing(
            f"{fixed} pages cannot be freed, and memory has room for a copy of {limit}",
            *read,
            words=("PM: hibernation: Image allocation is ? pages short", "PM: hibernation: Error -12 creating image"),
            advice="end processes that lock memory, or remove drivers that hold much of it",
        )
    if zones.value.saveable > limit:
        return ok(f"the kernel has to swap out or drop {zones.value.saveable - limit} pages first, and can", *read)
    return ok("memory has room for a copy of each page", *read)


def swap_space(facts: Facts) -> CheckFinding:
    """Return whether the image fits into the free slots of the area that the kernel writes to."""
    swaps = facts.swaps
    if swaps.value is None:
        return unknown_for_lack_of(swaps, advice="give /proc/swaps as --swaps")
    chosen = area_to_write(facts)
    if chosen is None or chosen.entry is None:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "which swap area the kernel writes to is not known",
            (FactRead.of(swaps, f"{len(swaps.value)} areas"),),
            advice="see the checks swap and resume-device",
        )
    free = chosen.entry.free_pages
    slots = FactRead.of(swaps, f"{chosen.entry.name}: {free} of {chosen.entry.size_pages} slots free")
    expected = expected_pages(facts)
    if expected is None:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            f"{free} slots are free; how many pages the image has is not known",
            (slots, FactRead.of(facts.zones)),
            advice="run it on the machine itself, or give a dump as --image",
        )
    stored = _stored(expected)
    if _is_uncompressed(facts):
        needed = stored + 1 + PAGES_FOR_IO
        if free > needed:
            return ok(f"an image without compression fits: {needed} slots of {free}", slots, expected.origin)
        return failing(
            f"an image without compression needs more than {needed} slots, and {free} are free",
            slots,
            expected.origin,
            words=("PM: Not enough free swap",),
            advice="enlarge the swap area, or remove hibernate=nocompress",
        )
    worst = image_blocks(-(-stored // UNIT_PAGES) * WORST_UNIT_BLOCKS)
    source = facts.source.value
    if free >= worst and not (source and source.machine.predicted):
        return ok(f"the image fits even if it cannot be compressed: {worst} slots of {free}", slots, expected.origin)
    return _compressed(facts, free, expected, (slots, expected.origin))


def _stored(expected: ExpectedPages) -> int:
    """Return the pages of the stream at least: those to copy, and the list of frames."""
    return expected.least + -(-expected.least // PFNS_PER_META_PAGE)


def _compressed(facts: Facts, free: int, expected: ExpectedPages, read: tuple[FactRead, ...]) -> CheckFinding:
    """Return the finding on an image that fits only if it is compressed.

    What is measured of a running kernel has more pages than the kernel will count: free ones on lists of the CPUs, and
    page tables of this process. Of 650 more in a guest of 6.12, 590 were zero: the size is taken as it is, apart from
    the share of the pages that the kernel frees.
    """
    advice = "enlarge the swap area, or lower /sys/power/image_size"
    source = facts.source.value
    predicted = source.machine.predicted if source else None
    if predicted and source and source.machine.is_live:
        predicted = predicted.scaled(predicted.pages * expected.least // max(1, expected.most))
    if predicted and source:
        measured = FactRead(
            source.name,
            f"{predicted.compressed_bytes // 1024} kbytes by {predicted.compressor}, {predicted.blocks} blocks"
            + (", of a sample" if predicted.sampled else "")
            + ("" if predicted.by_kernels_library else ", which the kernel needs up to a third more than"),
        )
        margin = predicted.blocks // _margin(predicted, is_live=source.machine.is_live)
        if predicted.blocks + margin < free:
            return ok(f"the image fits: {predicted.blocks} slots of {free} once compressed", *read, measured)
        if predicted.blocks - margin > free:
            return failing(
                f"the image needs {predicted.blocks} slots once compressed, and {free} are free",
                *read,
                measured,
                words=(SAVING_FAILED,),
                advice=advice,
            )
        return warning(f"the image needs nearly all of the {free} free slots", *read, measured, advice=advice)
    stored = _stored(expected)
    percent = 100 * free // max(1, stored)
    text = f"the image fits into {free} slots only if {stored} pages compress to {percent} % or less"
    return warning(text, *read, words=(SAVING_FAILED,), advice=advice)


def _margin(predicted: PredictedImage, *, is_live: bool) -> int:
    """Return the part of a predicted size, 1/N, that the kernel's may be larger or smaller by.

    Of a dump in `swsusp_save` it was seen to be 0.5 % off, of a running kernel (6.12, 512 MiB) 0.5 to 2.1 %.
    """
    if not predicted.by_kernels_library:
        return 3
    if predicted.sampled:
        return 8
    return 20 if is_live else 50


def _is_uncompressed(facts: Facts) -> bool:
    line = facts.command_line.value
    return line is not None and (line.last("hibernate") or "").startswith("nocompress")


def systemd_threshold(facts: Facts) -> CheckFinding:
    """Return whether systemd finds enough swap: its measure is Active(anon) against 98 % of the free part of the area.

    `enough_swap_for_hibernation` (src/shared/hibernate-util.c).
    """
    meminfo, swaps = facts.meminfo, facts.swaps
    if meminfo.value is None or swaps.value is None:
        return unknown_for_lack_of(meminfo, swaps, advice="give /proc/meminfo as --meminfo and /proc/swaps as --swaps")
    active = meminfo.value.get("Active(anon)")
    candidates = [one for one in swaps.value if not one.is_zram]
    if active is None or not candidates:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "there is no swap area to measure" if active is not None else f"{meminfo.origin} lacks Active(anon)",
            (FactRead.of(swaps, f"{len(swaps.value)} areas"),),
            advice="see the check swap",
        )
    chosen = area_to_write(facts)
    entry = chosen.entry if chosen and chosen.entry and not chosen.entry.is_zram else None
    entry = entry or max(candidates, key=lambda one: (one.priority, one.free_pages))
    free = entry.free_pages * PAGE_BYTES
    read = (
        FactRead.of(meminfo, f"Active(anon) {active // 1024} kB"),
        FactRead.of(swaps, f"{entry.name}: {free // 1024} kB free"),
    )
    if active <= free * SYSTEMD_THRESHOLD:
        return ok("systemd finds enough swap", *read)
    if facts.systemd.value is False:
        return ok("systemd would refuse for lack of swap, but does not run this machine", *read)
    text = "systemd refuses: active anonymous memory is more than 98 % of the free swap"
    advice = "enlarge the swap area, or end processes that use much memory"
    make = failing if facts.systemd.value else warning
    return make(text, *read, words=(NO_SWAP,), advice=advice)
