# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis strategies, all in one place."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from hibernaut.linux.layout import HoleKind, HoleSpec
from hibernaut.linux.layout import Layout as MachineLayout
from hibernaut.paging.entries import Level
from tests.memory import naive as dump_files
from tests.paging.layouts import TableLayout, inverted
from tests.swsusp import naive


@st.composite
def saved_pages(draw: st.DrawFn) -> dict[int, bytes | None]:
    """Frames to save: few or hundreds, anywhere; pages of zeroes, of noise, of one byte; flagged zero pages (None)."""
    count = draw(st.integers(1, 60) | st.sampled_from([511, 512, 513, 600]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    spread = draw(st.sampled_from([count, 4 * count, 1 << 28]))
    pfns = (
        rng.choice(spread, size=count, replace=False) if spread < 1 << 20 else np.unique(rng.integers(0, spread, count))
    )
    kinds = rng.integers(0, 4 if draw(st.booleans()) else 3, len(pfns))
    pages: dict[int, bytes | None] = {}
    for pfn, kind in zip(pfns.tolist(), kinds.tolist(), strict=True):
        pages[pfn] = (bytes(4096), rng.bytes(4096), bytes([pfn & 255]) * 4096, None)[kind]
    if all(page is None for page in pages.values()):
        pages[next(iter(pages))] = b"\1" * 4096
    return pages


@st.composite
def image_layouts(draw: st.DrawFn) -> naive.Layout:
    """Positions of an image's blocks, and its compressor."""
    return naive.Layout(
        compressor=draw(st.sampled_from(["lzo", "lz4", "none"])),
        header_block=draw(st.integers(0, 9)),
        first_block=draw(st.integers(1, 5)),
        shuffle_seed=draw(st.none() | st.integers(0, 1 << 30)),
        spare_blocks=draw(st.integers(0, 20)),
    )


# --- page tables -------------------------------------------------------------------------------------------------


@st.composite
def table_layouts(draw: st.DrawFn) -> TableLayout:
    """Tables of any shape: leaves of all sizes, not-present ones, garbage, missing and shared tables, cycles."""
    levels = draw(st.sampled_from((4, 5)))
    layout = TableLayout(levels=levels, stride=draw(st.sampled_from((1, 1, 2))))
    for _ in range(draw(st.integers(0, 12))):
        vaddr = draw(table_addresses(levels))
        level = draw(st.sampled_from((1, 1, 1, 2, 2, 3, 3, levels - 1, levels)))
        _draw_entries(draw, layout, vaddr, level)
    frames = sorted(layout.tables)
    layout.missing = draw(st.sets(st.sampled_from(frames), max_size=2))
    return layout


def table_addresses(levels: int) -> st.SearchStrategy[int]:
    """Canonical page addresses that share much of their path, at the edges of tables and of the two halves."""
    top = st.sampled_from((0, 1, 255, 256, 273, 511))
    index = st.sampled_from((0, 1, 2, 255, 510, 511))

    def address(parts: tuple[int, ...]) -> int:
        vaddr = 0
        for part in parts:
            vaddr = vaddr << 9 | part
        vaddr <<= 12
        return vaddr if parts[0] < 256 else vaddr | ((1 << 64) - (1 << (12 + 9 * levels)))

    return st.tuples(top, *[index] * (levels - 1)).map(address)


def _draw_entries(draw: st.DrawFn, layout: TableLayout, vaddr: int, level: int) -> None:
    flags = draw(st.sampled_from((0x163, 0x8000000000000163, 0x161, 0x225, 0x067, 0x063, 0x1163)))
    pages = 512 ** (level - 1)
    kind = draw(st.sampled_from(("run", "run", "np-run", "zero", "known", "raw", "erratum", "missing")))
    first = draw(st.sampled_from((0, 1, 0x3FF, (1 << 40) - 2))) * pages % (1 << 40)
    count = draw(st.sampled_from((1, 2, 5, 512, 700)))
    for number in range(count if kind in ("run", "np-run", "zero", "erratum") else 1):
        at = vaddr + number * pages * 4096
        if at >= 1 << 64 or (vaddr < 1 << 63 and at >= 1 << (11 + 9 * layout.levels)):
            break
        pfn = (first + number * pages) % (1 << 40)
        if kind == "run":
            layout.put(at, level, pfn << 12 | flags | (0x80 if level > 1 else 0))
        elif kind == "np-run":
            layout.put(at, level, inverted(pfn, flags & ~0x81))
        elif kind == "zero":
            layout.put(at, level, 0)
        elif kind == "erratum":
            layout.put(at, level, 0x60)
        elif kind == "known":  # a table in use elsewhere: shared, or a cycle
            layout.put(at, level, draw(st.sampled_from(sorted(layout.tables))) << 12 | 0x67)
        elif kind == "missing":
            layout.put(at, level, 0xDEAD000 | 0x67)
        else:
            layout.put(at, level, draw(st.integers(0, (1 << 64) - 1)))


@st.composite
def holes_in_block(draw: st.DrawFn, block: int) -> list[HoleSpec]:
    """Holes within one 2 MiB block (its number): none, the whole block, or a few runs of one kind."""
    kind = draw(st.none() | st.sampled_from(HoleKind))
    if kind is None:
        return []
    if kind == HoleKind.NO_TABLE or draw(st.booleans()):
        return [HoleSpec(block * 512, 512, kind)] if kind != HoleKind.INVALID else [HoleSpec(block * 512, 3, kind)]
    starts = draw(st.lists(st.integers(0, 31), min_size=1, max_size=3, unique=True))
    return [HoleSpec(block * 512 + 16 * start, draw(st.integers(1, 16)), kind) for start in starts]


@st.composite
def machine_layouts(draw: st.DrawFn) -> MachineLayout:
    """Small machines: 24 to 48 MiB with gaps, all kinds of holes in at most a third of it, tables low or high."""
    blocks = draw(st.integers(12, 24))
    ram = draw(
        st.sampled_from(
            [
                ((0, blocks * 512),),
                ((0, 0xA0), (0x100, blocks * 512 - 0x100)),
                ((0, 0xA0), (0x100, 6 * 512 - 0x100), (8 * 512 + 7, (blocks - 8) * 512 - 30)),
            ]
        )
    )
    # Not the first block, the gap's or the last: there whole blocks are not RAM. Room for tables remains elsewhere.
    numbers = [2, 3, 5, 9, *range(10, blocks - 2, 2)]
    chosen = draw(st.lists(st.sampled_from(numbers), unique=True, max_size=blocks // 3))
    holes = [hole for block in sorted(chosen) for hole in draw(holes_in_block(block))]
    levels = draw(st.sampled_from([4, 5]))
    return MachineLayout(
        ram=ram,
        levels=levels,
        base=draw(st.sampled_from([None, 0xFFFF9A3C40000000 if levels == 4 else 0xFF2B5E3C40000000])),
        largest=draw(st.sampled_from([Level.PTE, Level.PMD, Level.PUD])),
        holes=tuple(holes),
        tables=draw(st.sampled_from(["low", "high"])),
    )


# --- physical memory ---------------------------------------------------------------------------------------------


@st.composite
def segment_lists(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(first frame, pages) of segments in any order, overlapping or not, small enough for a model of single pages."""
    return draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=8))


@st.composite
def dump_loads(draw: st.DrawFn) -> list[dump_files.Load]:
    """Segments of a dump: overlapping, aligned to pages or not, some shorter than a page."""
    loads: list[dump_files.Load] = []
    for number in range(draw(st.integers(1, 5))):
        follows = draw(st.booleans())
        if loads and follows:  # begins where the one before ends, in the middle of a page
            paddr = loads[-1].paddr + len(loads[-1].data)
            data = bytes([number]) * draw(st.sampled_from([0x123, 0x800, 4096 - 0x123, 4096 - 0x400, 4096, 9000]))
            loads.append(dump_files.Load(paddr, data, vaddr=paddr + (1 << 40)))
            continue
        shift, extra = draw(st.sampled_from([(0, 0), (0, 0), (0x400, 0), (0, 0x123), (0xC00, 0x800)]))
        start, pages = draw(st.integers(1, 20)), draw(st.integers(0, 4))
        data = b"".join(dump_files.page_of(start + page, number) for page in range(pages)) + b"\xee" * extra
        loads.append(dump_files.Load(start * 4096 + shift, data, vaddr=start * 4096 + shift + (1 << 40)))
    return loads


@st.composite
def damage(draw: st.DrawFn, data: bytes, *, near_bytes: int) -> bytes:
    """A file cut short, or with bytes overwritten, mostly within its first `near_bytes`."""
    broken = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        limit = min(len(data), near_bytes) if draw(st.booleans()) else len(data)
        at = draw(st.integers(0, limit - 1))
        value = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8)]))
        broken[at : at + len(value)] = value[: len(data) - at]
    cut = draw(st.none() | st.integers(0, len(data)))
    return bytes(broken if cut is None else broken[:cut])
