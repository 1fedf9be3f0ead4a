# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual addresses under a root, folded: parts of the address space, and in each the runs of entries of one kind.

Runs that differ in ACCESSED, DIRTY or software bits alone are one, so that a machine fits a screen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.linux.direct_map import START_KERNEL_MAP, DirectMap
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Rights, Spans, Stop
from hibernaut.report.documents import AddressRegionDocument
from hibernaut.report.text import size_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.paging.spans import Codes

__all__ = ["AddressPart", "AddressRun", "address_document", "address_parts"]

MAX_RUNS = 250
"""Runs of a part that are shown."""
SHIFT = np.uint64(PAGE_SHIFT)


@dataclass(frozen=True)
class AddressRun:
    """Neighbouring addresses with entries of one kind.

    Attributes:
        start: first address.
        pages: number of pages.
        size: size of the entries: 4K, 2M, 1G.
        state: `present`, `not-present` or `table-missing`.
        rights: rights that the entries grant, in words.
        pfn: first page frame; -1 for none.
    """

    start: int
    pages: int
    size: str
    state: str
    rights: str
    pfn: int

    @property
    def span(self) -> str:
        """Length of the run with its unit."""
        return size_text(self.pages << PAGE_SHIFT)


@dataclass(frozen=True)
class AddressPart:
    """A part of the address space.

    Attributes:
        name: its name.
        start: first address that has an entry.
        end: one past the last one.
        present_bytes: bytes present by size of entry.
        not_present_pages: pages under entries that are not present and not none.
        missing_tables: tables that the source lacks.
        runs: the first runs, at most `MAX_RUNS`.
        more_runs: number of further ones.
    """

    name: str
    start: int
    end: int
    present_bytes: dict[str, int]
    not_present_pages: int
    missing_tables: int
    runs: tuple[AddressRun, ...]
    more_runs: int


def address_parts(direct_map: DirectMap) -> list[AddressPart]:
    """Return the parts of the addresses under the root of a direct map, ascending; empty parts are left out.

    Raises:
        FormatError: the page tables are hostile.
    """
    spans = direct_map.tables.scan()
    spans = spans.select(spans.state != Stop.NONE.code)
    return [
        _part(name, part)
        for name, low, high in _bounds(direct_map)
        if len(part := spans.clipped(low >> PAGE_SHIFT, high >> PAGE_SHIFT))
    ]


def address_document(part: AddressPart) -> AddressRegionDocument:
    """Return the document of a part."""
    return {
        "name": part.name,
        "start": f"{part.start:#x}",
        "end": f"{part.end:#x}",
        "present_bytes": part.present_bytes,
        "not_present_pages": part.not_present_pages,
        "missing_tables": part.missing_tables,
    }


def _bounds(direct_map: DirectMap) -> Iterator[tuple[str, int, int]]:
    """Yield the parts: name, first address, one past the last one."""
    half = 1 << (11 + 9 * direct_map.levels)
    kernel = (1 << 64) - half
    end = min(direct_map.base + (direct_map.end_pfn << PAGE_SHIFT), START_KERNEL_MAP)
    yield "user", 0, half
    yield "other, below the direct map", kernel, direct_map.base
    yield "direct map", direct_map.base, end
    yield "vmalloc, vmemmap and others", end, START_KERNEL_MAP
    yield "kernel image, modules, fixmap", START_KERNEL_MAP, 1 << 64


def _part(name: str, spans: Spans) -> AddressPart:
    present = spans.state == Stop.PRESENT.code
    first = np.flatnonzero(np.concatenate(([True], _differ(spans))))
    return AddressPart(
        name=name,
        start=int(spans.vaddr[0]),
        end=int(spans.end_page[-1]) << PAGE_SHIFT,
        present_bytes={
            level.size: 4096 * pages
            for level in (Level.PTE, Level.PMD, Level.PUD)
            if (pages := int(spans.pages[present & (spans.level == level)].sum()))
        },
        not_present_pages=int(spans.pages[spans.state == Stop.NOT_PRESENT.code].sum()),
        missing_tables=len(np.unique(spans.pfn[spans.state == Stop.TABLE_MISSING.code])),
        runs=tuple(_runs(spans, first)),
        more_runs=max(0, len(first) - MAX_RUNS),
    )


def _runs(spans: Spans, first: NDArray[np.int64]) -> Iterator[AddressRun]:
    """Yield the first runs, at most `MAX_RUNS`; `first` has the first span of each run."""
    last = np.append(first[1:], len(spans))[:MAX_RUNS] - 1
    first = first[:MAX_RUNS]
    pages = (spans.end_page[last] - (spans.vaddr[first] >> SHIFT)).astype(np.int64)
    for row, length in zip(first.tolist(), pages.tolist(), strict=True):
        yield AddressRun(
            start=int(spans.vaddr[row]),
            pages=length,
            size=Level(int(spans.level[row])).size,
            state=str(Stop.of_code(int(spans.state[row]))),
            rights=_rights(int(spans.rights[row])),
            pfn=int(spans.pfn[row]),
        )


def _differ(spans: Spans) -> NDArray[np.bool_]:
    """Return which spans do not continue the one before: shape (n - 1,)."""

    def changed(codes: Codes) -> NDArray[np.bool_]:
        different: NDArray[np.bool_] = codes[1:] != codes[:-1]
        return different

    apart: NDArray[np.bool_] = spans.end_page[:-1] != spans.vaddr[1:] >> SHIFT
    apart |= spans.pfn[1:] != spans.pfn[:-1] + spans.pages[:-1]
    return apart | changed(spans.level) | changed(spans.state) | changed(spans.rights)


def _rights(rights: int) -> str:
    words = ["writable" if rights & Rights.RW else "read only", "" if rights & Rights.NX else "executable"]
    return ", ".join(filter(None, [*words, "user" if rights & Rights.USER else ""]))
