# SPDX-License-Identifier: GPL-2.0-or-later
"""A source in plain sentences: the machine, whether the image is whole, what is saved, what is torn or lost.

They are written for readers that have never heard of hibernation's copy; the numbers are those of the document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hibernaut.hibernation.audit import Order
from hibernaut.hibernation.frame_map import Fate, MappedBy, missing_tables
from hibernaut.report.documents import SentenceDocument
from hibernaut.report.identity import utc
from hibernaut.report.salvage_sentences import pages_of_salvaged, salvage_headline, salvage_sentences
from hibernaut.report.text import counted, size_text
from hibernaut.report.visible import visible_line

if TYPE_CHECKING:
    from typing import Literal

    from hibernaut.hibernation.copy_order import RegionInOrder
    from hibernaut.hibernation.examination import Examination
    from hibernaut.linux.direct_map import DirectMap

__all__ = ["frames_text", "headline", "region_steps", "sentences"]

SHOWN_REGIONS = 6
"""Regions with sentences of their own; the others are counted."""


def sentences(found: Examination) -> list[SentenceDocument]:
    """Return the sentences on a source, in the order of a report."""
    return [
        *_identity(found),
        *_integrity(found),
        *_saving(found),
        *_regions(found),
        *_tables(found),
        *_outcome(found),
    ]


def headline(told: list[SentenceDocument], found: Examination) -> SentenceDocument:
    """Return the verdict in one sentence: that of the worst of the sentences."""
    lost = found.frames.totals(found.frames.fate).get(Fate.LOST, 0)
    torn = sum(region.torn for region in found.order.regions)
    salvaged = found.source.salvaged
    if salvaged is not None and not salvaged.whole:
        return _said("verdict", *salvage_headline(salvaged))
    if any(one["about"] == "integrity" and one["state"] == "bad" for one in told):
        return _said("verdict", "bad", "The image is damaged.")
    if lost and not found.source.any_image:
        return _said("verdict", "unknown", f"The file is incomplete: it lacks {counted(lost, 'page table')}.")
    if lost:
        tables = "A page table is lost" if lost == 1 else f"{lost} page tables are lost"
        pages = found.frames.totals(found.frames.mapped).get(MappedBy.TABLE_MISSING, 0)
        if not pages:
            return _said("verdict", "bad", f"{tables}.")
        size = size_text(4096 * pages)
        return _said(
            "verdict", "bad", f"{tables}: after a resume, {size} of memory are not where the kernel maps them."
        )
    if torn:
        least = "at least " if found.order.more else ""
        return _said(
            "verdict", "bad", f"Hibernation would tear the mapping of {least}{counted(torn, 'region')} of memory."
        )
    if found.source.any_image is None and found.audit is not None and found.audit.refused is not None:
        return _said("verdict", "warning", f"This machine would not hibernate: {found.audit.refused}.")
    if salvaged is not None and salvaged.used_up:
        return _said("verdict", *salvage_headline(salvaged))
    if found.source.any_image is not None and found.frames.direct_map is not None:
        return _said("verdict", "ok", "The image names no page table that it lacks.")
    if found.audit is not None and not found.audit.safe_today:
        return _said("verdict", "warning", "Not every page of this machine is certain to be saved.")
    if found.audit is None or found.paging is None:
        return _said("verdict", "unknown", "Whether every page is saved is not known.")
    return _said("verdict", "ok", "Every page would be saved.")


def frames_text(start: int, pages: int) -> str:
    """Return a run of frames in words: "frames 0x400 to 0x5ff"."""
    return f"frame {start:#x}" if pages == 1 else f"frames {start:#x} to {start + pages - 1:#x}"


def region_steps(region: RegionInOrder) -> list[str]:
    """Return the steps of the copy at a region, in their order: those that an image shows, or mainline's way takes."""
    if region.of_image and region.lost_pfn is None:
        return [f"The image has the entry in frame {region.table_pfn:#x} as it was before the copy: nothing was split."]
    if region.lost_pfn is not None and region.lost_later is not False:
        return [f"The file lacks frame {region.lost_pfn:#x}, the table that decides: the copy there is not known."]
    if not region.list_known:
        return [
            f"The table that is taken, frame {region.lost_pfn:#x}, is not on the list of pages to save. Which frames of"
            " the region are on it is not known, since that part of the list is lost."
        ]
    size, table = region.level.size, f"frame {region.table_pfn:#x}"
    if region.first_pfn is None or region.order is None:
        return [f"No frame of the region is on a list of pages to save: the copy does not meet its entry in {table}."]
    new = "a new page table" if region.lost_pfn is None else f"a new page table, frame {region.lost_pfn:#x}"
    split = (
        f"At frame {region.first_pfn:#x} the copy meets the first page of the region that is saved. It is not mapped: "
        f"the kernel splits the {size} entry and takes {new}."
    )
    copied = (
        f"{counted(region.listed_pages, 'page')} of the region {'is' if region.listed_pages == 1 else 'are'} copied."
    )
    if region.order == Order.BELOW:
        before = f"{table.capitalize()}, the table with the entry, is copied first: the image has the entry as it was."
        return [before, split, copied]
    if region.order == Order.NOT_LISTED:
        return [split, copied, f"{table.capitalize()}, the table with the entry, is not on the list: it is not copied."]
    after = f"{table.capitalize()}, the table with the entry, is copied now: the image has the entry after the split."
    lost = "The new table was taken after the list of pages was made. It is not on the list: the image lacks it."
    return [split, copied, after, lost]


def _said(about: str, state: Literal["ok", "warning", "bad", "unknown", "fact"], text: str) -> SentenceDocument:
    return {"about": about, "state": state, "text": visible_line(text)}


def _identity(found: Examination) -> Iterator[SentenceDocument]:
    source, identity = found.source, found.identity
    if source.any_image is not None:
        writer = "suspend-utils" if source.kind == "uswsusp" else "its Linux kernel"
        text = (
            f"This file is a hibernation image: the memory of a computer that {writer} wrote to a swap area before the"
            " computer was switched off, to continue from it when it is switched on."
        )
    else:
        text = f"This file is a copy of the memory of a computer (a dump, {source.kind})."
        if found.frames.pages_from == "kernel":
            text += (
                " It was taken in the middle of hibernation: the kernel's list of pages to save is complete, and the"
                " copy is not done."
            )
    yield _said("source", "fact", text)
    if identity is None:
        yield _said("machine", "unknown", "Its kernel is not read: the remarks have the reason.")
        return
    hardware = " ".join(filter(None, (identity.vendor, identity.product)))
    where = f" on {hardware}" if hardware else ""
    ram = f", {size_text(4096 * identity.ram_pages)} of RAM" if identity.ram_pages else ""
    when = utc(identity.clock.now_ns if identity.clock else None)
    at = f". Its clock said {when[:19].replace('T', ' ')} UTC" if when else ""
    yield _said("machine", "fact", f"The machine runs Linux {identity.release or '?'}{where}{ram}{at}.")


def _integrity(found: Examination) -> Iterator[SentenceDocument]:
    if found.source.salvaged is not None:
        for state, text in salvage_sentences(found.source.salvaged):
            yield _said("integrity", state, text)
        return
    checksum = found.checksum
    if checksum is None:
        return
    if checksum.damage is not None:
        yield _said("integrity", "bad", f"The image is damaged: {checksum.damage}.")
    elif checksum.ok is None:
        yield _said(
            "integrity",
            "unknown",
            "The image's header, map and list of pages agree. It has no checksum of its pages that is checked here, so"
            " that a page that changed on the disk goes unnoticed.",
        )
    elif checksum.ok:
        yield _said("integrity", "ok", "The image is whole: the checksum of all its pages is right.")
    else:
        yield _said("integrity", "bad", "The checksum of the image's pages is wrong: a page changed on the disk.")


def _saving(found: Examination) -> Iterator[SentenceDocument]:
    fates = found.frames.totals(found.frames.fate)
    saved = fates.get(Fate.SAVED, 0) + fates.get(Fate.ZERO, 0)
    if found.frames.pages_from == "direct-map":
        held = fates.get(Fate.IN_FILE, 0) + fates.get(Fate.ZERO_IN_FILE, 0)
        zero = f", {fates[Fate.ZERO_IN_FILE]} of them all zeroes" if Fate.ZERO_IN_FILE in fates else ""
        free = f", besides {counted(fates[Fate.FREE], 'frame')} that are free" if Fate.FREE in fates else ""
        text = f"The file has {counted(held, 'page')}{zero}{free}. It has no list of the pages that hibernation saves."
        yield _said("saving", "fact", text)
        return
    verb = ("is" if saved == 1 else "are") if found.source.any_image else "would be"
    zero = f", {fates[Fate.ZERO]} of them all zeroes" if Fate.ZERO in fates else ""
    parts = [f"{counted(saved, 'page')} ({size_text(4096 * saved)}) {verb} saved{zero}."]
    if found.source.salvaged is not None and not found.source.salvaged.complete:
        parts = [pages_of_salvaged(found.source.salvaged, fates.get(Fate.ZERO, 0))]
    if Fate.FREE in fates:
        parts.append(f"{counted(fates[Fate.FREE], 'frame')} were free, with nothing in them to save.")
    if Fate.SET_ASIDE in fates:
        parts.append(f"{counted(fates[Fate.SET_ASIDE], 'frame')} were set aside for the copies.")
    if Fate.LEFT_OUT in fates:
        frames = found.frames.frames(found.frames.fate, Fate.LEFT_OUT).without(found.frames.described).total_pages
        free = f", or free: {counted(frames, 'struct page')} of them cannot be read" if frames else ""
        parts.append(
            f"Of {counted(fates[Fate.LEFT_OUT], 'other frame')} the file does not say why they are not saved: they are"
            f" reserved, marked nosave,{'' if free else ' or'} set aside for a copy{free}."
        )
    if Fate.UNCERTAIN in fates:
        parts.append(
            f"Of {counted(fates[Fate.UNCERTAIN], 'more frame')} it is not known whether they were saved, since that"
            " part of the list is lost."
        )
    yield _said("saving", "fact", " ".join(parts))


def _regions(found: Examination) -> Iterator[SentenceDocument]:
    single = found.frames.totals(found.frames.mapped).get(MappedBy.NOT_PRESENT_4K, 0)
    if single:
        yield _said(
            "regions",
            "ok",
            f"{counted(single, 'page')} {'is' if single == 1 else 'are'} taken out of the direct map by entries of 4K."
            " The copy maps each for a moment and splits nothing.",
        )
    for region in found.order.regions[:SHOWN_REGIONS]:
        yield _region(region)
    others = len(found.order.regions) - SHOWN_REGIONS + found.order.more
    if others > 0:
        yield _said(
            "regions", "fact", f"{counted(others, 'more region')} of this kind: the table below lists the first."
        )


def _region(region: RegionInOrder) -> SentenceDocument:
    where = frames_text(region.start_pfn, region.pages)
    place = f"{size_text(4096 * region.pages)} of memory at {size_text(4096 * region.start_pfn)}"
    if region.lost_pfn is not None and region.lost_later is not False:
        text = (
            f"The mapping of {where} ({place}) is not known: the page table in frame {region.table_pfn:#x} names the"
            f" table in frame {region.lost_pfn:#x} for it, and the file does not have that frame."
        )
        if region.lost_later:
            text += " It is on the list of the image, whose data for it is lost."
        elif region.of_image:
            text += " Whether it was saved is not known, since that part of the image's list is lost."
        return _said("regions", "unknown", text)
    if region.lost_pfn is not None:
        text = (
            "A page table is lost. The kernel reaches all memory by its direct map, a range of addresses whose entries"
            " are in page tables, which are pages of memory themselves. That in frame"
            f" {region.table_pfn:#x} says that the mapping of {where} ({place}) is described by the table in frame"
            f" {region.lost_pfn:#x}, and the file does not have that frame."
            " After a resume it holds whatever was there before, read as page-table entries: these pages are mapped to"
            " arbitrary memory, or not at all. An access crashes the kernel, or reads and changes memory of others."
        )
        if region.order == Order.ABOVE:
            text += (
                f" The order of the copy explains it: the table in frame {region.table_pfn:#x} lies above the memory"
                f" that it maps, and was changed during the copy, before it was copied itself."
            )
        return _said("regions", "bad", text)
    text = (
        f"{where.capitalize()} ({place}) {'is' if region.pages == 1 else 'are'} not mapped by the direct map: one entry"
        f" of {region.level.size}, in the page table in frame {region.table_pfn:#x}, is not present."
    )
    if region.of_image:
        text += " The image has that entry as it was before the copy: it is consistent, and a resume brings it back."
        return _said("regions", "ok", text)
    if region.order is None:
        return _said("regions", "unknown", f"{text} Whether hibernation saves a page of it is not known.")
    text += " To copy these pages, mainline kernels split the entry, for which they take a new page table."
    if region.order == Order.BELOW:
        text += (
            " The table lies below the memory that it maps: it is copied before the split, and the image is consistent."
            " If the new table cannot be had, the kernel crashes."
        )
        return _said("regions", "warning", text)
    place_of_table = "lies above the memory that it maps" if region.order == Order.ABOVE else "is not saved itself"
    text += (
        f" The table {place_of_table}: the image names the new table and does not have it. After a resume these pages"
        " are mapped to arbitrary memory."
    )
    return _said("regions", "bad", text)


def _tables(found: Examination) -> Iterator[SentenceDocument]:
    direct_map = found.frames.direct_map
    if direct_map is None:
        yield _said("tables", "unknown", "The kernel's page tables were not found.")
        return
    number = len(direct_map.tables.pfns())
    lost = found.frames.totals(found.frames.fate).get(Fate.LOST, 0)
    named = len({region.lost_pfn for region in found.order.regions if region.torn or not region.of_image} - {None})
    lost_later = list(_tables_lost_later(found, direct_map))
    yield from lost_later
    if not lost and not lost_later:
        yield _said("tables", "ok", f"All {counted(number, 'page table')} that its root reaches are in the file.")
    elif lost > named:
        state: Literal["bad", "unknown"] = "bad" if found.source.any_image else "unknown"
        yield _said("tables", state, f"{counted(lost, 'page table')} that others name are not in the file.")


def _tables_lost_later(found: Examination, direct_map: DirectMap) -> Iterator[SentenceDocument]:
    """Yield sentences on the tables that a damaged or used-up image had, or may have had."""
    if found.source.salvaged is None:
        return
    missing = missing_tables(direct_map)
    for frames, text in (
        (found.frames.lost, "on the list of the image, whose data for {them} is lost"),
        (found.frames.uncertain, "not in what is left of the image; whether {they} saved is not known"),
    ):
        pages = missing.within(frames).total_pages
        if pages:
            one = pages == 1
            told = text.format(them="it" if one else "them", they="it was" if one else "they were")
            verb, what = ("is", "it maps") if one else ("are", "they map")
            yield _said(
                "tables",
                "unknown",
                f"{counted(pages, 'page table')} that others name {verb} {told}. The memory that {what} is not known.",
            )


def _outcome(found: Examination) -> Iterator[SentenceDocument]:
    """Yield the prediction for a machine that has not hibernated yet; an image is the outcome itself."""
    if found.audit is None or found.source.any_image is not None:
        return
    if found.audit.refused is not None:
        yield _said("outcome", "warning", f"The kernel would refuse to hibernate: {found.audit.refused}.")
    bad = [one for one in found.audit.classes if one.today_bad]
    if not bad:
        yield _said("outcome", "ok", "By its page tables, today's kernel saves every page, whatever fails.")
    else:
        pages = sum(one.frames.total_pages for one in bad)
        fixmap = "a fixmap slot saves every page" if found.audit.safe_by_fixmap else "a fixmap slot does not save all"
        yield _said(
            "outcome",
            "warning",
            f"{counted(pages, 'page')} {'is' if pages == 1 else 'are'} not certain to be saved by today's kernel"
            f" ({'; '.join(one.name for one in bad)}); {fixmap}.",
        )
