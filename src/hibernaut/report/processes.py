# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents and text of a process's address space, and of the files in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hibernaut.kernel.address_space import AddressSpace
from hibernaut.kernel.cached_files import CachedFile
from hibernaut.kernel.kernel import Kernel
from hibernaut.report.documents import (
    CachedFileDocument,
    DrgnDocument,
    ExtractDocument,
    FilesDocument,
    ProcessDocument,
    ProcessMappingDocument,
)
from hibernaut.report.text import columns
from hibernaut.report.visible import visible_line

__all__ = [
    "drgn_document",
    "extract_document",
    "extract_text",
    "files_document",
    "files_text",
    "hexdump",
    "process_document",
    "process_text",
]

LISTED_PAGES = 10_000
"""Most missing pages that are listed."""
BYTES_OF_LINE = 16


def process_document(pid: int, command: str, space: AddressSpace) -> ProcessDocument:
    """Return the document of an address space. Raises FormatError if its mappings are not in the memory."""
    mappings: list[ProcessMappingDocument] = []
    for mapping in space.mappings:
        counts = space.counts(mapping)
        mappings.append(
            {
                "start": f"{mapping.start:#x}",
                "end": f"{mapping.end:#x}",
                "rights": mapping.rights,
                "offset": mapping.offset,
                "name": mapping.name,
                "resident_pages": counts.resident,
                "swapped_pages": counts.swapped,
                "lost_pages": counts.lost,
                "untouched_pages": counts.untouched,
            }
        )
    return {
        "pid": pid,
        "command": command,
        "mappings": mappings,
        "resident_pages": sum(one["resident_pages"] for one in mappings),
        "swapped_pages": sum(one["swapped_pages"] for one in mappings),
        "lost_pages": sum(one["lost_pages"] for one in mappings),
        "core": None,
        "core_missing_pages": None,
        "read": None,
        "remarks": [],
    }


def process_text(document: ProcessDocument) -> str:
    """Return the mappings as /proc/PID/maps has them, with the places of their pages."""
    if document["read"] is not None:
        return hexdump(int(document["read"]["vaddr"], 16), bytes.fromhex(document["read"]["bytes"]))
    rows = [["address", "rights", "offset", "resident", "swapped", "lost", "untouched", "name"]]
    rows += [_mapping_row(one) for one in document["mappings"]]
    lines = [f"process {document['pid']}, {visible_line(document['command'])}", *columns(rows)]
    lines.append(
        f"{document['resident_pages']} pages in memory, {document['swapped_pages']} swapped out, "
        f"{document['lost_pages']} lost"
    )
    if document["core"] is not None:
        missing = document["core_missing_pages"]
        lines.append(f"{document['core']}: core of it; {missing} pages have no content in it")
    return "\n".join([*lines, *(visible_line(remark) for remark in document["remarks"])])


def drgn_document(kernel: Kernel, swap_areas: list[int]) -> DrgnDocument:
    """Return the document of a kernel as drgn is given it."""
    return {
        "release": kernel.release,
        "levels": kernel.levels,
        "symbols": len(kernel.symbols.table),
        "types": 0 if kernel.btf is None else len(kernel.btf),
        "types_problem": kernel.btf_trouble,
        "swap_areas": swap_areas,
    }


def files_document(files: Iterable[CachedFile]) -> FilesDocument:
    """Return the document of the files in memory."""
    found: list[CachedFileDocument] = [
        {
            "path": file.path,
            "file_system": file.file_system,
            "inode": file.inode,
            "size_bytes": file.size_bytes,
            "resident_pages": file.pages.resident,
            "swapped_pages": file.pages.swapped,
            "only_here": file.pages.is_tmpfs,
        }
        for file in files
    ]
    return {"files": found}


def files_text(document: FilesDocument) -> str:
    """Return a line for each file."""
    rows = [["resident", "swapped", "of", "file system", "path"]]
    rows += [_file_row(file) for file in document["files"]]
    return "\n".join(columns(rows))


def _mapping_row(mapping: ProcessMappingDocument) -> list[str]:
    return [
        f"{int(mapping['start'], 16):x}-{int(mapping['end'], 16):x}",
        mapping["rights"],
        f"{mapping['offset']:x}",
        str(mapping["resident_pages"]),
        str(mapping["swapped_pages"]),
        str(mapping["lost_pages"]),
        str(mapping["untouched_pages"]),
        visible_line(mapping["name"] or ""),
    ]


def _file_row(file: CachedFileDocument) -> list[str]:
    return [
        str(file["resident_pages"]),
        str(file["swapped_pages"]),
        str(-(-file["size_bytes"] // 4096)),
        visible_line(file["file_system"]),
        visible_line(file["path"] or f"inode {file['inode']}"),
    ]


def extract_document(file: CachedFile, output: str, missing: Sequence[tuple[int, str]]) -> ExtractDocument:
    """Return the document of a file that was put together."""
    return {
        "path": file.path or "",
        "output": output,
        "size_bytes": file.size_bytes,
        "missing_pages": len(missing),
        "missing": [{"page": page, "reason": reason} for page, reason in missing[:LISTED_PAGES]],
    }


def extract_text(document: ExtractDocument) -> str:
    """Return what was written and what lacks."""
    pages = -(-document["size_bytes"] // 4096)
    lines = [f"{document['output']}: {document['size_bytes']} bytes of {visible_line(document['path'])}"]
    if document["missing_pages"]:
        first = document["missing"][0]
        lines.append(f"{document['missing_pages']} of {pages} pages are missing and read as zeroes")
        lines.append(f"the first of them is page {first['page']}: {visible_line(first['reason'])}")
    return "\n".join(lines)


def hexdump(vaddr: int, data: bytes) -> str:
    """Return bytes in lines of 16, as `hexdump -C` has them."""
    lines = []
    for at in range(0, len(data), BYTES_OF_LINE):
        part = data[at : at + BYTES_OF_LINE]
        digits = " ".join(f"{one:02x}" for one in part).ljust(3 * BYTES_OF_LINE - 1)
        letters = "".join(chr(one) if 0x20 <= one < 0x7F else "." for one in part)
        lines.append(f"{vaddr + at:016x}  {digits}  |{letters}|")
    return "\n".join(lines)
