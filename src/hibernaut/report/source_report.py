# SPDX-License-Identifier: GPL-2.0-or-later
"""The document of a report, and what a page shows beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.hibernation.frame_map import FrameUse
from hibernaut.memory.painting import union
from hibernaut.memory.ranges import FrameRanges
from hibernaut.report.address_tree import AddressPart, address_document, address_parts
from hibernaut.report.documents import (
    CompressionDocument,
    ContentsDocument,
    DifferenceDocument,
    FrameClassDocument,
    ImageAreaDocument,
    OwnerDifferenceDocument,
    RegionInOrderDocument,
    SourceReportDocument,
)
from hibernaut.report.frame_words import LAYERS, USES
from hibernaut.report.identity import utc
from hibernaut.report.salvage import salvage_document
from hibernaut.report.sentences import headline, region_steps, sentences
from hibernaut.report.text import hex_or_none, size_text
from hibernaut.report.visible import visible_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hibernaut.hibernation.copy_order import RegionInOrder
    from hibernaut.hibernation.examination import Examination, SourceDifference
    from hibernaut.hibernation.frame_map import FrameMap
    from hibernaut.kernel.identity import MachineIdentity
    from hibernaut.memory.contents import PageContents
    from hibernaut.paging.spans import Codes
    from hibernaut.report.frame_words import FrameWords
    from hibernaut.swsusp import Image
    from hibernaut.swsusp.salvage import SalvagedImage

__all__ = ["SourceReport", "difference_document", "source_report", "use_of_either"]

MAX_RUNS = 200
"""Runs of differing frames that are listed."""
LEFT_OUT = "[left out]"
PERSONAL = ("host name", "command line")
"""Facts that name a machine or a person: left out of a redacted report."""


@dataclass(frozen=True, eq=False)
class SourceReport:
    """A source as a page shows it.

    Attributes:
        found: the source, examined.
        document: its numbers and sentences.
        parts: its virtual addresses.
    """

    found: Examination
    document: SourceReportDocument
    parts: list[AddressPart]


def source_report(found: Examination, *, redacted: bool = False, name: str = "SOURCE") -> SourceReport:
    """Return a source as a page shows it.

    Args:
        found: the source, examined.
        redacted: leave out names of a person or a machine.
        name: replaces the name of the file in a redacted report.

    Raises:
        FormatError: the page tables are hostile.
    """
    direct_map = found.frames.direct_map
    parts = [] if direct_map is None else address_parts(direct_map)
    told = sentences(found)
    image = found.source.any_image
    area = None if image is None else _area(image)
    swap = None if found.identity is None else found.identity.swap
    layers = (found.frames.mapped, found.frames.fate, found.frames.use)
    classes = [_classes(found.frames, layer.words, codes) for layer, codes in zip(LAYERS, layers, strict=True)]
    document: SourceReportDocument = {
        "name": name if redacted else visible_line(found.source.name),
        "kind": found.source.kind,
        "verdict": headline(told, found),
        "sentences": told,
        "facts": {} if found.identity is None else _facts(found.identity, redacted),
        "frames": found.frames.end_pfn,
        "runs": len(found.frames.pages),
        "mapped": classes[0],
        "fate": classes[1],
        "use": classes[2],
        "regions": [_region_document(region) for region in found.order.regions],
        "more_regions": found.order.more,
        "page_tables": None if direct_map is None else len(direct_map.tables.pfns()),
        "addresses": [address_document(part) for part in parts],
        "contents": None if found.contents is None else _contents(found.contents),
        "compression": None if image is None else _compression(image),
        "area": area,
        "swapped_pages": None if swap is None else sum(one.used for one in swap),
        "remarks": [visible_line(remark) for remark in found.remarks],
    }
    if found.source.salvaged is not None:
        document["salvage"] = salvage_document(found.source.salvaged)
        document["remarks"] = [text for text in document["remarks"] if text not in found.source.salvaged.findings]
    if redacted:
        _redact(document, visible_line(found.source.name), name)
    return SourceReport(found, document, parts)


def _redact(document: SourceReportDocument, name: str, other: str) -> None:
    """Replace the name of the file in a document by another one."""
    for sentence in document["sentences"]:
        sentence["text"] = sentence["text"].replace(name, other)
    document["remarks"] = [remark.replace(name, other) for remark in document["remarks"]]
    if "salvage" in document:
        document["salvage"]["problems"] = [
            {
                "what": problem["what"].replace(name, other),
                "where": problem["where"] and problem["where"].replace(name, other),
            }
            for problem in document["salvage"]["problems"]
        ]


def difference_document(found: SourceDifference, first: Examination, second: Examination) -> DifferenceDocument:
    """Return the document of the difference between two sources."""
    memory = found.memory
    owners: list[OwnerDifferenceDocument] = []
    runs: list[tuple[int, int, str]] = []
    number = 0
    for use in FrameUse:
        frames = use_of_either(first.frames, second.frames, use)
        different = memory.different.within(frames)
        parts = (different, memory.only_first.within(frames), memory.only_second.within(frames))
        counts = [part.total_pages for part in parts]
        label = USES[use].label
        if any(counts):
            owners.append({"owner": label, "different": counts[0], "only_first": counts[1], "only_second": counts[2]})
        number += len(different)
        shown = (different.starts[:MAX_RUNS].tolist(), different.nr_pages[:MAX_RUNS].tolist())
        runs += [(start, pages, label) for start, pages in zip(*shown, strict=True)]
    listed = sorted(runs)[:MAX_RUNS]
    return {
        "equal": memory.equal.total_pages,
        "different": memory.different.total_pages,
        "only_first": memory.only_first.total_pages,
        "only_second": memory.only_second.total_pages,
        "owners": owners,
        "runs": [{"start_pfn": f"{start:#x}", "pages": pages, "owner": label} for start, pages, label in listed],
        "more_runs": number - len(listed),
        "entries": [
            {
                "table_pfn": f"{one.table_pfn:#x}",
                "index": one.index,
                "first": f"{one.first:#x}",
                "second": f"{one.second:#x}",
            }
            for one in found.entries
        ],
        "more_entries": found.more_entries,
    }


def use_of_either(first: FrameMap, second: FrameMap, use: FrameUse) -> FrameRanges:
    """Return the frames with this use in the first map, or in the second where the first does not know it."""
    mine = first.frames(first.use, use)
    beyond = FrameRanges.of([(first.end_pfn, (1 << 52) - first.end_pfn)])
    if use == FrameUse.UNKNOWN:
        known = union([second.frames(second.use, other) for other in FrameUse if other])
        return union([mine, beyond]).without(known)
    unknown = union([first.frames(first.use, FrameUse.UNKNOWN), beyond])
    return union([mine, second.frames(second.use, use).within(unknown)])


def _classes(frames: FrameMap, words: Mapping[int, FrameWords], codes: Codes) -> list[FrameClassDocument]:
    totals = frames.totals(codes)
    return [
        {"key": told.key, "label": told.label, "pages": totals[code]} for code, told in words.items() if code in totals
    ]


def _facts(identity: MachineIdentity, redacted: bool) -> dict[str, str]:
    clock = identity.clock
    known = {
        "kernel": identity.release,
        "build": identity.build,
        "host name": identity.hostname,
        "hardware": ", ".join(filter(None, (identity.vendor, identity.product, identity.bios))) or None,
        "processors": None if identity.cpus is None else f"{identity.cpus}, {identity.cpu_model or '?'}",
        "hypervisor": identity.hypervisor,
        "RAM": None if identity.ram_pages is None else size_text(4096 * identity.ram_pages),
        "booted": utc(clock.booted_ns) if clock else None,
        "memory is of": utc(clock.now_ns) if clock else None,
        "command line": identity.command_line,
    }
    return {
        name: LEFT_OUT if redacted and name in PERSONAL else visible_line(value)
        for name, value in known.items()
        if value is not None
    }


def _region_document(region: RegionInOrder) -> RegionInOrderDocument:
    return {
        "start_pfn": f"{region.start_pfn:#x}",
        "pages": region.pages,
        "level": region.level.size,
        "entry": f"{region.entry:#x}",
        "table_pfn": f"{region.table_pfn:#x}",
        "first_pfn": hex_or_none(region.first_pfn),
        "listed_pages": region.listed_pages,
        "order": None if region.order is None else region.order.value,
        "lost_pfn": hex_or_none(region.lost_pfn),
        "torn": region.torn,
        "steps": region_steps(region),
    }


def _contents(contents: PageContents) -> ContentsDocument:
    return {
        "pages": contents.pages,
        "zero_pages": contents.zero.total_pages,
        "distinct_pages": contents.distinct,
        "repeated_pages": contents.repeated,
    }


def _compression(image: Image | SalvagedImage) -> CompressionDocument:
    units = image.read_units
    return {
        "compressor": image.compressor,
        "units": len(units),
        "unit_pages": units.unit_rows,
        "stored_pages": units.stored_rows,
        "compressed_bytes": int(units.compressed_bytes.sum()),
    }


def _area(image: Image | SalvagedImage) -> ImageAreaDocument | None:
    """Return the place of an image's blocks; None if none of them is known."""
    blocks = image.blocks.all
    if not len(blocks):
        return None
    return {
        "area_blocks": image.area.blocks,
        "header_block": image.area.header_block,
        "image_blocks": len(blocks),
        "map_blocks": len(image.blocks.maps),
        "first_block": int(blocks[0]),
        "last_block": int(blocks[-1]),
        "runs": int(np.count_nonzero(np.diff(blocks) != 1)) + 1,
    }
