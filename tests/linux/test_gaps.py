# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw memory that leaves out a gap: by its page tables, or a contradiction; no false alarm."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.typing import ArrayLike

from hibernaut.errors import ContradictoryMemory, FormatError
from hibernaut.linux import gaps
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.e820_tables import find_e820_ram
from hibernaut.linux.source_tables import Paging, direct_map_under, find_paging, page_tables_under, with_gaps
from hibernaut.memory.gaps import MemoryGap
from hibernaut.memory.page import BoolArray, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.raw import RawMemory
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.linux.gap_files import BASE, FOUR_GIB_PFN, Pc, put

LOW_TABLES = 0x3000


def paging_of(path: Path, cr3: int | None = None) -> tuple[Paging, DirectMap]:
    """Return the page tables of a file and the direct map under them."""
    with open_memory(path) as source:
        found = find_paging(source, cr3)
        return found, direct_map_under(source, found)


@pytest.mark.parametrize(
    "pc",
    [
        pytest.param(Pc(), id="3 GiB below the gap, tables above"),
        pytest.param(Pc(low_end=0x80000), id="2 GiB below the gap"),
        pytest.param(Pc(low_end=0xF8000), id="128 MiB of gap"),
        pytest.param(Pc(root=0x120000), id="the root above 4 GiB too"),
        pytest.param(Pc(tables=LOW_TABLES), id="tables below the gap, by the end"),
        pytest.param(Pc(tables=LOW_TABLES, leaf=3), id="leaves of 1 GiB"),
        pytest.param(Pc(levels=5), id="5 levels"),
        pytest.param(Pc(reserved=0x2000), id="32 MiB reserved below the gap"),
        pytest.param(Pc(top_unmapped=0x2000, tables=0x130000), id="the top of RAM has no entry"),
    ],
)
def test_a_gap_is_found_and_put_back(tmp_path: Path, pc: Pc) -> None:
    """The map equals that of the same memory padded over its gap; the source's frames name themselves."""
    padded, whole = paging_of(pc.write(tmp_path / "padded", gaps=()))
    assert padded.source is not None
    assert padded.source.gaps == ()
    assert padded.missing_pages == 0
    path = pc.write(tmp_path / "vmem")
    with open_memory(path) as source:
        paging = find_paging(source)
        found = direct_map_under(source, paging)
        assert paging.source is not None
        assert (paging.source.gaps, paging.source.gaps_from) == ((pc.gap,), "the page tables")
        assert any(f"--gap {pc.gap}" in remark for remark in paging.remarks)
        assert (paging.cr3, found.base, found.present_bytes) == (padded.cr3, whole.base, whole.present_bytes)
        mark = paging.source.memory.read(pc.high_end - pc.mark_every << 12, 16)
        assert mark is not None
        assert struct.unpack("<QQ", mark)[1] == pc.high_end - pc.mark_every
        assert paging.source.memory.page(pc.low_end) is None
        above = page_tables_under(source, paging).walk(BASE[pc.levels] + (FOUR_GIB_PFN << 12))
        assert above.pfn == FOUR_GIB_PFN
        assert with_gaps(source).gaps == (pc.gap,)


def test_a_root_that_is_given_is_enough(tmp_path: Path) -> None:
    """With --cr3 no search: the gap is found under that root, also if it lies above 4 GiB."""
    pc = Pc(root=0x120000)
    found, _ = paging_of(pc.write(tmp_path / "vmem"), cr3=0x120000 << 12)
    assert found.source is not None
    assert found.source.gaps == (pc.gap,)


@pytest.mark.parametrize("cr3", [None, 0x2000 << 12])
def test_no_gap_where_there_is_none(tmp_path: Path, cr3: int | None) -> None:
    """Padded over the gap, below 3 GiB, very large and sparse: as they are, and no memory is read for a gap."""
    small = Pc(low_end=0x40000, high_end=FOUR_GIB_PFN, tables=0x3F000)
    files = [
        Pc().write(tmp_path / "padded", gaps=()),
        small.write(tmp_path / "small", gaps=(), size_bytes=0x40000 << 12),
        Pc().write(tmp_path / "sparse", gaps=(), size_bytes=1 << 40),
    ]
    for path in files:
        with mock.patch.object(gaps, "_Search", side_effect=AssertionError("memory is searched")):
            found, _ = paging_of(path, cr3)
        assert found.source is not None
        assert (found.source.gaps, found.source.gaps_from, found.remarks) == ((), None, ()), path.name


def test_a_file_that_was_cut_has_no_gap(tmp_path: Path) -> None:
    """A padded dump cut by the length of its gap (`pmemsave` of as many bytes as there is RAM) is incomplete."""
    pc = Pc(high_end=0x180000, tables=LOW_TABLES)
    path = pc.write(tmp_path / "cut", gaps=(), size_bytes=0x140000 << 12)
    found, _ = paging_of(path)
    assert found.source is not None
    assert (found.source.gaps, found.missing_pages) == ((), 0x40000)
    assert "lacks 262144 pages" in found.remarks[0]


def test_a_cut_file_with_a_table_above_4_gib(tmp_path: Path) -> None:
    """Also where the gap of a padded dump holds something, such as a graphics card's memory."""
    pc = Pc(high_end=0x180000, tables=FOUR_GIB_PFN + 0x10)
    path = pc.write(tmp_path / "cut", gaps=(), size_bytes=0x140000 << 12)
    with path.open("r+b") as file:
        file.seek(0xFD000 << 12)
        file.write(b"\x77" * (1 << 22))
    found, _ = paging_of(path)
    assert found.source is not None
    assert (found.source.gaps, found.missing_pages) == ((), 0x40000)


def test_a_contradiction_without_a_proof(tmp_path: Path) -> None:
    """Tables below the gap, the top of RAM without an entry: two gaps fit, so none is taken; the advice names --gap."""
    pc = Pc(tables=LOW_TABLES, top_unmapped=0x8000)
    with pytest.raises(ContradictoryMemory, match="maps 229376 pages beyond the end") as caught:
        paging_of(pc.write(tmp_path / "vmem"))
    assert "0xc0000000+0x40000000" in str(caught.value)
    assert "0xc8000000+0x38000000" in str(caught.value)
    assert str(caught.value).endswith("; give the gap as --gap START+SIZE, or --gap none if there is none")


def test_a_given_gap_is_not_questioned(tmp_path: Path) -> None:
    """`gaps` decides where the tables do not; () says that there is none. Missing pages are reported."""
    pc = Pc(tables=LOW_TABLES, top_unmapped=0x8000)
    path = pc.write(tmp_path / "vmem")
    with open_memory(path, gaps=[pc.gap]) as source:
        found = find_paging(source)
        assert found.source is source
        assert (source.gaps_from, found.remarks) == ("--gap", ())
    with open_memory(path, gaps=()) as source:
        assert find_paging(source).missing_pages == 0x38000


def test_an_unusual_gap_by_the_firmwares_map(tmp_path: Path) -> None:
    """The kernel's copy of the memory map in memory proves a start that no hypervisor is known to have."""
    pc = Pc(low_end=0xA5123, tables=LOW_TABLES)
    path = pc.write(tmp_path / "vmem")
    with pytest.raises(ContradictoryMemory):
        paging_of(path)
    write_e820(path, pc)
    found, _ = paging_of(path)
    assert found.source is not None
    assert found.source.gaps == (pc.gap,)


def write_e820(path: Path, pc: Pc) -> None:
    """Write a memory map into a frame, as the kernel's allocator places it."""
    entries = [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xF0000, 0x10000, 2),
        (0x100000, (pc.low_end << 12) - 0x120000, 1),
    ]
    entries += [((pc.low_end << 12) - 0x20000, 0x20000, 2), (1 << 32, (pc.high_end << 12) - (1 << 32), 1)]
    table = struct.pack("<I", len(entries)) + b"".join(struct.pack("<QQI", *entry) for entry in entries)
    with path.open("r+b") as file:
        file.seek((0x2800 << 12) + 192)
        file.write(table)


def test_several_gaps_of_a_lime_raw_dump(tmp_path: Path) -> None:
    """`format=raw` of LiME leaves out whatever is not RAM: all gaps are found by the firmware's map of whole pages."""
    left_out = (MemoryGap(0, 0x1000), MemoryGap(0x9F000, 0x61000), MemoryGap(0xA4000000, 0x5C000000))
    pc = Pc(low_end=0xA4000, reserved=0, tables=0x20000)
    path = pc.write(tmp_path / "raw", gaps=left_out)
    entries = [(0x1000, 0x9E000, 1), (0x100000, 0xA4000000 - 0x100000, 1), (1 << 32, 0x40000000, 1)]
    table = struct.pack("<I", 4) + struct.pack("<QQI", 0, 0x1000, 2)
    table += b"".join(struct.pack("<QQI", *entry) for entry in entries)
    with path.open("r+b") as file:
        put(file.fileno(), 0x5000, bytes(64) + table, left_out)
    found, _ = paging_of(path)
    assert found.source is not None
    assert found.source.gaps == left_out


@pytest.mark.parametrize("name", ["ram-6.1-lzo.elf", "swap-6.12-lz4.img"])
def test_memory_maps_of_real_kernels(golden: Golden, name: str) -> None:
    """The kernel's own table, without page zero, and the firmware's, which has it: RAM of QEMU's 256 MiB."""
    ram = ((0x100000, 0xFFDD000),)
    with open_memory(golden(name)) as source:
        assert set(find_e820_ram(source.memory)) == {((0x1000, 0x9FC00), *ram), ((0, 0x9FC00), *ram)}


def test_a_real_kernel_moved_up(golden: Golden, tmp_path: Path) -> None:
    """A real machine's RAM without its legacy hole, as LiME's `format=raw` writes it: unreadable, or as with gaps.

    RAM ends within frame 0x9f, so all that follows lies at no multiple of 4096.
    """
    ranges = [(0x1000, 0x9FC00), (0x100000, 0xFFDD000)]
    path = tmp_path / "raw"
    with open_memory(golden("ram-6.1-lzo.elf")) as source, path.open("wb") as file:
        for start, end in ranges:
            content = source.memory.read(start, end - start)
            assert content is not None
            file.write(content)
        expected = direct_map_under(source, find_paging(source)).present_bytes
        root = golden.expected["ram-6.1-lzo.elf"]["cr3"]
    with pytest.raises(FormatError, match=r"not a multiple of 4096.*; give --gap"):
        open_memory(path)
    with open_memory(path, gaps=[MemoryGap(0, 0x1000), MemoryGap(0x9FC00, 0x60400)]) as source:
        found = find_paging(source, int(root, 16))
        assert direct_map_under(source, found).present_bytes == expected


def no_evidence(_: PhysicalMemory) -> list[tuple[tuple[int, int], ...]]:
    """A mutant: the firmware's map is not looked for."""
    return []


def always(_: gaps.Fit) -> bool:
    """A mutant: whatever ends too early is a contradiction."""
    return True


def cut_file(path: Path) -> tuple[MemoryGap, ...]:
    """Write a padded dump that was cut by the length of its gap; return the gaps to find in it."""
    Pc(high_end=0x180000, tables=LOW_TABLES).write(path, gaps=(), size_bytes=0x140000 << 12)
    return ()


def two_gaps(path: Path) -> None:
    """Write a file that two gaps fit."""
    Pc(tables=LOW_TABLES, top_unmapped=0x8000).write(path)


def odd_gap(path: Path) -> tuple[MemoryGap, ...]:
    """Write a file with an unusual gap and the firmware's map."""
    pc = Pc(low_end=0xA5123, tables=LOW_TABLES)
    write_e820(pc.write(path), pc)
    return (pc.gap,)


def usual_gap(path: Path) -> tuple[MemoryGap, ...]:
    """Write a file that leaves out the last GiB below 4 GiB."""
    Pc().write(path)
    return (Pc().gap,)


@pytest.mark.parametrize(
    ("write", "name", "mutant"),
    [
        pytest.param(cut_file, "_contradictory", always, id="every end that differs counts"),
        pytest.param(two_gaps, "_KEPT_BACK_PFNS", 1 << 30, id="any memory may be kept back"),
        pytest.param(odd_gap, "find_e820_ram", no_evidence, id="no memory map"),
        pytest.param(usual_gap, "LOWEST_START", 0xC8000000, id="starts above 3 GiB only"),
    ],
)
def test_each_piece_of_evidence_is_needed(
    tmp_path: Path, write: Callable[[Path], tuple[MemoryGap, ...] | None], name: str, mutant: object
) -> None:
    """Without it a cut file gets a gap, one of two is taken, or none is found."""
    expected = write(tmp_path / "file")
    assert outcome(tmp_path / "file") == expected
    with mock.patch.object(gaps, name, mutant):
        assert outcome(tmp_path / "file") != expected


def outcome(path: Path) -> tuple[MemoryGap, ...] | None:
    """Return the gaps that are found; None for a contradiction."""
    try:
        found, _ = paging_of(path)
    except FormatError:
        return None
    return found.source.gaps if found.source else None


def test_the_cost_of_a_search(tmp_path: Path) -> None:
    """A search reads the file's data a few times: not its holes, and not once for each gap that is tried."""
    path = Pc().write(tmp_path / "vmem")
    stored = path.stat().st_blocks * 512 // 4096
    assert path.stat().st_size > 100 * 4096 * stored
    read = 0
    run, gather = RawMemory.run, RawMemory.gather

    def counted_run(self: RawMemory, pfn: int, nr_pages: int) -> Bytes:
        nonlocal read
        got = run(self, pfn, nr_pages)
        read += len(got)
        return got

    def counted_gather(self: RawMemory, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        nonlocal read
        read += np.size(pfns)
        return gather(self, pfns, out)

    with mock.patch.object(RawMemory, "run", counted_run), mock.patch.object(RawMemory, "gather", counted_gather):
        assert outcome(path) == (Pc().gap,)
    assert read < 20 * stored
