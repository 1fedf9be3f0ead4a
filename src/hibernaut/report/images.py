# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents of images: one that was read, one that was written, a verdict, a copy that failed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.kernel.core_file import Converted
from hibernaut.kernel_line import Probed, RulesFrom
from hibernaut.linux.rules import KernelRules
from hibernaut.report.codecs import codec_document
from hibernaut.report.documents import (
    ConvertDocument,
    CrashedSaveDocument,
    InspectDocument,
    MountDocument,
    RefusedSaveDocument,
    RewriteDocument,
    SaveDocument,
    UswsuspDocument,
    VerdictDocument,
    WrittenDocument,
)
from hibernaut.report.page_tables import gap_documents
from hibernaut.report.text import counted, hex_or_none, size_text
from hibernaut.sources import Source
from hibernaut.swsusp import Image, Inspection
from hibernaut.swsusp.uswsusp import UserlandHeader
from hibernaut.swsusp.verdict import Verdict
from hibernaut.swsusp.writer import WrittenImage

__all__ = [
    "convert_document",
    "converted_text",
    "digests_of",
    "failed_save_document",
    "inspect_document",
    "mount_document",
    "mounted_text",
    "rewrite_document",
    "save_document",
    "saved_text",
    "verdict_document",
]


def inspect_document(found: Inspection, offset: int) -> InspectDocument:
    """Return the document of an inspection."""
    header, info, image = found.header, found.info, found.image
    index = image.stream.index if image else None
    compressed = found.compressor != "none"
    architecture = info.architecture if info else None
    document: InspectDocument = {
        "architecture": architecture.name if architecture else None,
        "kernel": architecture.kernel if architecture else None,
        "page_bytes": found.area.page_size,
        "record": [{"name": name, "value": f"{value:#x}"} for name, value in architecture.record]
        if architecture
        else [],
        "compressor": found.compressor,
        "codec": codec_document(found.compressor),
        "flags": header.flags,
        "offset_pages": offset,
        "crc32": {
            "stored": hex_or_none(header.crc32),
            "computed": hex_or_none(found.computed_crc),
            "ok": found.crc_ok,
        },
        "hw_sig": hex_or_none(header.hw_sig),
        "cr3": hex_or_none(info.root if info else None),
        "jump_address": hex_or_none(info.jump_address if info else None),
        "jump_address_phys": hex_or_none(info.jump_address_phys if info else None),
        "magic": f"{info.magic:#018x}" if info and info.magic is not None else None,
        "e820_checksum": hex_or_none(info.e820_checksum if info else None),
        "e820_md5": info.e820.md5 if info else None,
        "physical_pages": info.physical_pages if info else None,
        "image_pages": info.image_pages if info else None,
        "pages": info.pages if info else None,
        "saved_pages": image.saved_pages if image else None,
        "zero_pages": image.zero_pages if image else None,
        "stored_pages": image.saved_pages - image.zero_pages if image else None,
        "meta_pages": info.meta_pages if info else None,
        "map_pages": len(found.swap_map.map_blocks) if found.swap_map else None,
        "units": (len(index) if compressed else 0) if index else None,
        "compressed_bytes": int(index.compressed_bytes.sum()) if index else None,
        "first_map_block": header.image,
        "remarks": list(found.remarks),
        "problems": [{"what": problem.what, "where": problem.where} for problem in found.problems],
    }
    if header.userland is not None:
        document["uswsusp"] = _uswsusp_document(found, header.userland)
    return document


def _uswsusp_document(found: Inspection, header: UserlandHeader) -> UswsuspDocument:
    computed, ending = found.md5
    return {
        "buffer_pages": found.image.stream.unit_rows if found.image and header.compressed else None,
        "md5_stored": header.md5.hex() if header.md5 is not None else None,
        "md5_computed": computed,
        "md5_ok": None if computed is None else ending is not None,
        "md5_ending": ending,
    }


def digests_of(image: Image) -> tuple[str, str]:
    """Return SHA-256 of the listed frames as little-endian u64, and of all stored pages, both in image order."""
    pages = hashlib.sha256()
    for _, chunk in image.chunks():
        pages.update(chunk.data)
    return (
        hashlib.sha256(image.pfns.astype("<u8").tobytes()).hexdigest(),
        pages.hexdigest(),
    )


def verdict_document(verdict: Verdict, rules_from: RulesFrom) -> VerdictDocument:
    """Return the document of a verdict."""
    return {
        "kernel": verdict.rules.line,
        "rules_from": rules_from,
        "machine": verdict.machine.name,
        "checks": [
            {
                "check": check.check,
                "answer": str(check.answer),
                "message": check.message,
                "remark": check.remark,
                "where": check.where,
                "source": check.source,
            }
            for check in verdict.checks
        ],
        "resumes": verdict.resumes,
    }


def _counts(written: WrittenImage) -> WrittenDocument:
    counts = dataclasses.asdict(written)
    return cast(WrittenDocument, {**counts, "crc32": hex_or_none(written.crc32)})


def save_document(
    snapshot: Snapshot, written: WrittenImage, via: str, pages_from: str, found: Probed[KernelRules]
) -> SaveDocument:
    """Return the document of an image that `hibernaut save` wrote."""
    return {
        "via": via,
        "outcome": "saved",
        "pages_from": pages_from,
        **_counts(written),
        "allocations": [
            {"number": one.number, "purpose": one.purpose, "pfn": hex_or_none(one.pfn)} for one in snapshot.allocations
        ],
        "changed_pages": len(snapshot.changed),
        "skipped_pages": len(snapshot.skipped),
        "log": list(snapshot.log),
        "rules": found.rules.line,
        "rules_from": found.rules_from,
    }


def failed_save_document(
    error: MachineFault | HibernationRefused, via: str, log: Sequence[str], found: Probed[KernelRules]
) -> CrashedSaveDocument | RefusedSaveDocument:
    """Return the document of a copy that crashed or was refused."""
    if isinstance(error, MachineFault):
        return {
            "via": via,
            "outcome": "died",
            "log": list(log),
            "rules": found.rules.line,
            "rules_from": found.rules_from,
            "fault": {
                "what": error.what,
                "address": f"{error.address:#x}",
                "entry": hex_or_none(error.entry),
                "pfn": hex_or_none(error.pfn),
                "doing": error.doing,
            },
        }
    return {
        "via": via,
        "outcome": "refused",
        "log": list(log),
        "rules": found.rules.line,
        "rules_from": found.rules_from,
        "refused": {"what": error.what, "errno": error.errno},
    }


def rewrite_document(
    written: WrittenImage, compressor: str, in_place: bool, writes: list[tuple[int, bytes]]
) -> RewriteDocument:
    """Return the document of an image that was rewritten."""
    return {
        "compressor": compressor,
        "in_place": in_place,
        **_counts(written),
        "writes": [{"paddr": f"{paddr:#x}", "bytes": len(data)} for paddr, data in writes],
    }


def convert_document(source: Source, converted: Converted, vaddr_base: int | None) -> ConvertDocument:
    """Return the document of a file of memory that was written.

    Args:
        source: the memory.
        converted: the file.
        vaddr_base: virtual address of page frame 0, if the file states it.
    """
    return {
        "source": source.kind,
        "remarks": list(source.remarks),
        "gaps": gap_documents(source),
        "gaps_from": source.gaps_from,
        "format": converted.format,
        "compressor": converted.compressor,
        "pages": converted.pages,
        "ranges": converted.ranges,
        "zero_pages": converted.zero_pages,
        "file_bytes": converted.file_bytes,
        "direct_map_base": hex_or_none(vaddr_base),
        "vmcoreinfo": converted.vmcoreinfo,
    }


def converted_text(name: str, document: ConvertDocument) -> str:
    """Return the text of a file of memory that was written."""
    pages, ranges = document["pages"], document["ranges"]
    return (
        f"{name}: {document['format']} of {counted(pages, 'page')} ({size_text(pages * 4096)}) in"
        f" {counted(ranges, 'range')}"
    )


def saved_text(name: str, snapshot: Snapshot, written: WrittenImage, via: str) -> str:
    """Return the text of an image that `hibernaut save` wrote: the kernel's log, the counts, what is lost.

    Args:
        name: the image.
        snapshot: the copy.
        written: counts of the image.
        via: the way of copying.
    """
    tables = np.array([one.pfn for one in snapshot.allocations if one.pfn is not None], dtype=np.int64)
    lost = int((~np.isin(tables, snapshot.pfns)).sum())
    lines = [
        *snapshot.log,
        f"{name}: {counted(written.saved_pages, 'page')} saved via {via}, {written.stored_pages} stored"
        f" ({size_text(written.blocks * 4096)} in the swap area), {counted(len(tables), 'allocation')} during the copy",
    ]
    if len(snapshot.skipped):
        lines.append(
            f"SKIPPED: {counted(len(snapshot.skipped), 'page')} could not be mapped; the image has other bytes"
        )
    if lost:
        lines.append(
            f"LOST: {counted(lost, 'page table')}, allocated during the copy and not on the list of pages;"
            " `hibernaut map` shows the damage"
        )
    return "\n".join(lines)


def mount_document(source: Source, directory: str, files: list[str], vaddr_base: int | None) -> MountDocument:
    """Return the document of a source that is mounted.

    Args:
        source: the memory.
        directory: the folder that it is mounted on.
        files: names of the files there.
        vaddr_base: virtual address of page frame 0, if the core states it.
    """
    ranges = source.memory.ranges
    return {
        "source": source.kind,
        "remarks": list(source.remarks),
        "gaps": gap_documents(source),
        "gaps_from": source.gaps_from,
        "directory": directory,
        "files": files,
        "pages": ranges.total_pages,
        "ranges": len(ranges),
        "direct_map_base": hex_or_none(vaddr_base),
    }


def mounted_text(document: MountDocument, unmount: str) -> str:
    """Return the line about a source that is mounted; `unmount` is the command that unmounts it."""
    return f"mounted on {document['directory']}: {', '.join(document['files'])}; unmount with `{unmount}`, or end this"
