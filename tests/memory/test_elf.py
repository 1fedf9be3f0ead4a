# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF cores: read against a naive parser, QEMU's own files, and made-up machines."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError, HibernautError
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.elf import open_elf
from tests.conftest import Golden
from tests.memory.conftest import Opening
from tests.memory.naive import PAGE, Load, elf_core, elf_frames, note, page_of, qemu_cpu
from tests.strategies import damage, dump_loads

TEXT = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=16777216\n"
TEXT += b"NUMBER(pgtable_l5_enabled)=1\n"


def frames_of(dump: Dump) -> dict[int, bytes]:
    """Return the bytes of every page of a dump, by frame."""
    return {first + row: page.tobytes() for first, pages in dump.memory.blocks() for row, page in enumerate(pages)}


def pages_from(pfn: int, count: int, salt: int = 0) -> bytes:
    """Return pages that name their frames."""
    return b"".join(page_of(pfn + row, salt) for row in range(count))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dump_loads(), st.booleans(), st.integers(0, 9))
def test_frames_equal_a_naive_parse(opening: Opening, loads: list[Load], many: bool, pad: int) -> None:
    """Segments in any order, overlapping, misaligned or shorter than a page: frames as the naive parser finds them."""
    data = elf_core(loads, qemu_cpu(0x1000), many=many, pad=pad)
    expected = elf_frames(data)
    answer = opening(open_elf, data)
    if isinstance(answer, Refusal):
        assert not expected
        return
    assert frames_of(answer) == expected
    asked = np.arange(-1, 30)[::-1]
    pages, present = answer.memory.gather(asked)
    assert present.tolist() == [pfn in expected for pfn in asked.tolist()]
    assert [page.tobytes() for page in pages] == [expected.get(pfn, bytes(PAGE)) for pfn in asked.tolist()]


def test_golden_core_equals_a_naive_parse(opening: Opening, golden: Golden) -> None:
    """QEMU's own file: every frame as the naive parser finds it, CR3 and levels as its CPU note has them."""
    name = "ram-6.1-lzo.elf"
    expected = elf_frames(golden(name).read_bytes())
    dump = opening.dump(open_elf, golden(name))
    assert dump.memory.ranges.total_pages == len(expected)
    for first, pages in dump.memory.blocks():
        assert pages.tobytes() == b"".join(expected[pfn] for pfn in range(first, first + len(pages)))
    assert (dump.cr3, dump.levels, dump.notes["qemu.cpus"]) == (int(golden.expected[name]["cr3"], 16), 4, "1")


def test_pyelftools_agrees_about_the_golden_core(opening: Opening, golden: Golden) -> None:
    """Pyelftools' segments, rounded to whole frames, are this reader's ranges."""
    path = golden("ram-6.1-secretmem.elf")
    with path.open("rb") as stream:
        loads = [segment.header for segment in ELFFile(stream).iter_segments("PT_LOAD")]
    dump = opening.dump(open_elf, path)
    assert list(dump.memory.ranges) == sorted((load.p_paddr // PAGE, load.p_filesz // PAGE) for load in loads)
    assert dump.cr3 == 0x61FE000


def test_memsz_beyond_filesz_is_absent(opening: Opening) -> None:
    """A segment of 3 pages with one in the file has one frame: the others are not in the dump."""
    dump = opening.dump(open_elf, elf_core([Load(5 * PAGE, page_of(5), memsz=3 * PAGE)]))
    assert list(dump.memory.ranges) == [(5, 1)]


def test_kernel_text_aliases_lose_against_earlier_headers(opening: Opening) -> None:
    """Kdump names the kernel's text twice, by two virtual addresses: the first header's bytes count."""
    text = Load(0x1000 * PAGE, pages_from(0x1000, 2, 1), vaddr=0xFFFFFFFF81000000)
    ram = Load(0xFFF * PAGE, pages_from(0xFFF, 5, 2), vaddr=0xFFFF888000FFF000)
    assert frames_of(opening.dump(open_elf, elf_core([text, ram])))[0x1001] == page_of(0x1001, 1)
    assert frames_of(opening.dump(open_elf, elf_core([ram, text])))[0x1001] == page_of(0x1001, 2)


def test_segments_without_a_physical_address_are_skipped(opening: Opening) -> None:
    """/proc/kcore: vmalloc's segment has physical address -1 now, 0 before v4.11; neither is frame 0's memory."""
    base = 0xFFFF888000000000
    low, high = Load(0, pages_from(0, 2), vaddr=base), Load(8 * PAGE, pages_from(8, 1), vaddr=base + 8 * PAGE)
    vmalloc = pages_from(0x777, 3)
    for paddr in (0, (1 << 64) - 1):
        dump = opening.dump(open_elf, elf_core([Load(paddr, vmalloc, vaddr=0xFFFFC90000000000), low, high]))
        assert frames_of(dump) == {0: page_of(0), 1: page_of(1), 8: page_of(8)}
    only = [Load(0, vmalloc, vaddr=0x400000), Load(0, vmalloc, vaddr=0x7FFFF0000000)]
    assert "process" in opening.refusal(open_elf, elf_core(only))


@pytest.mark.parametrize(("cr4", "levels"), [(0x6F0, 4), (0x16F0, 5)])
def test_qemu_notes_tell_root_and_levels(opening: Opening, cr4: int, levels: int) -> None:
    """The dump has the CR3 of each CPU; the first counts, without its PCID; CR4.LA57 tells 4 from 5 levels."""
    cpus = qemu_cpu(0x1234005, cr4=cr4) + qemu_cpu(0x5678000)
    dump = opening.dump(open_elf, elf_core([Load(0, page_of(0))], note(b"CORE", 1, bytes(336)) + cpus))
    assert (dump.cr3, dump.levels) == (0x1234000, levels)
    assert (dump.notes["qemu.cpus"], dump.notes["qemu.cr3"]) == ("2", "0x1234005 0x5678000")


def test_root_of_a_cpu_in_user_mode_is_second_choice(opening: Opening) -> None:
    """Page-table isolation hides the direct map from user mode: a CPU in the kernel, or VMCOREINFO, wins."""
    load, user, kernel = [Load(0, page_of(0))], qemu_cpu(0x1001000, cs=0x33), qemu_cpu(0x2002000)
    assert opening.dump(open_elf, elf_core(load, user + kernel)).cr3 == 0x2002000
    assert opening.dump(open_elf, elf_core(load, user)).cr3 == 0x1001000
    with_text = opening.dump(open_elf, elf_core(load, user + note(b"VMCOREINFO", 0, TEXT)))
    assert (with_text.cr3, with_text.levels) == (0x2A10000 + 0x1000000, 5)
    assert opening.dump(open_elf, elf_core(load, qemu_cpu(0, cr0=0x10))).cr3 is None


def test_vmcoreinfo_note_tells_root_and_levels(opening: Opening) -> None:
    """kdump: CR3 is the physical address of swapper_pg_dir, phys_base added; the text and its keys are given."""
    dump = opening.dump(open_elf, elf_core([Load(0, page_of(0))], note(b"VMCOREINFO", 0, TEXT)))
    assert (dump.cr3, dump.levels, dump.vmcoreinfo) == (0x2A10000 + 0x1000000, 5, TEXT)
    assert dump.notes["OSRELEASE"] == "6.1.0"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": 2}, "type 2"),
        ({"machine": 183}, "machine 183"),
        ({"elf_class": 1}, "64-bit"),
    ],
)
def test_other_elf_files_are_refused_with_the_reason(opening: Opening, change: dict[str, int], why: str) -> None:
    """An executable, another processor's core and a 32-bit core are not this reader's."""
    assert why in opening.refusal(open_elf, elf_core([Load(0, page_of(0))], **change))  # type: ignore[arg-type]


def test_short_and_other_files_are_refused(opening: Opening) -> None:
    """No magic, or less than a header: a refusal, not an error."""
    assert "magic" in opening.refusal(open_elf, b"not an ELF file")
    assert "shorter" in opening.refusal(open_elf, b"\x7fELF\x02\x01")


@pytest.mark.parametrize(("e_flags", "how"), [(0, "are not in the file"), (1, "were not written")])
def test_a_core_that_ends_early_is_read_as_far_as_it_goes(opening: Opening, e_flags: int, how: str) -> None:
    """Whole pages before the end exist, the others do not, and their number is in a remark."""
    loads = [Load(0, pages_from(0, 4)), Load(6 * PAGE, pages_from(6, 3)), Load(20 * PAGE, pages_from(20, 1))]
    whole = bytearray(elf_core(loads, qemu_cpu(0x1000)))
    struct.pack_into("<I", whole, 48, e_flags)
    dump = opening.dump(open_elf, bytes(whole[: -2 * PAGE - 100]))
    assert frames_of(dump) == {pfn: page_of(pfn) for pfn in (0, 1, 2, 3, 6)}
    assert dump.remarks == (f"the dump is incomplete: 3 of 8 pages {how}",)
    complete = opening.dump(open_elf, bytes(whole)).remarks
    assert complete == (() if not e_flags else ("the dump is marked as incomplete, but no page of those that it "
                                                "announces is missing",))  # fmt: skip


def test_a_core_that_ends_before_its_memory_says_where(opening: Opening) -> None:
    """A segment that runs past the end, with no page in the file: the offset is the file's end."""
    data = elf_core([Load(0, pages_from(0, 4))])[: -4 * PAGE + 100]
    with pytest.raises(FormatError, match="past the end") as caught:
        opening(open_elf, data)
    assert caught.value.offset == len(data)


def test_a_page_over_three_segments_is_put_together(opening: Opening) -> None:
    """Parts in any order; where they overlap, the first header wins; a frame with a byte missing does not exist."""
    page = np.random.default_rng(3).bytes(PAGE)
    loads = [
        Load(9 * PAGE - 16, bytes(16) + page[:100]),
        Load(9 * PAGE + 3000, page[3000:] + page_of(10)),
        Load(9 * PAGE + 50, b"\xee" * 50 + page[100:3000]),
        Load(12 * PAGE, bytes(100)),
        Load(12 * PAGE + 101, bytes(PAGE - 101)),
    ]
    memory = opening.dump(open_elf, elf_core(loads)).memory
    assert list(memory.ranges) == [(9, 2)]
    assert memory.page(9).tobytes() == page  # type: ignore[union-attr]
    assert memory.read(9 * PAGE + 4000, 200) == page[4000:] + page_of(10)[:104]
    assert list(memory.stored) == [(9, 2)]
    assert memory.run(9, 0).shape == (0, PAGE)
    half = [Load(3 * PAGE, page[:2048]), Load(3 * PAGE + 2048, page[2048:])]
    assert frames_of(opening.dump(open_elf, elf_core(half))) == {3: page}


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        (8, (1 << 64) - 1, "past the end"),  # p_offset
        (32, (1 << 64) - 1, "past the end"),  # p_filesz
        (24, (1 << 64) - 2 * PAGE, "52 bits"),  # p_paddr
        (24, 1 << 52, "52 bits"),
    ],
)
def test_huge_fields_are_refused(opening: Opening, field: int, value: int, what: str) -> None:
    """Sizes and offsets whose sum wraps around, or that no machine has, are errors and allocate nothing."""
    data = bytearray(elf_core([Load(0x5000, pages_from(5, 2))]))
    struct.pack_into("<Q", data, 64 + 56 + field, value)
    with pytest.raises(FormatError, match=what):
        opening(open_elf, bytes(data))


def test_absurd_number_of_headers_is_refused(opening: Opening, tmp_path: Path) -> None:
    """A PN_XNUM count of millions of headers is an error before anything of that size is read, in a huge file too."""
    data = bytearray(elf_core([Load(0, page_of(0))], many=True))
    struct.pack_into("<I", data, 64 + 44, 0xFFFFFFFF)
    (tmp_path / "sparse").write_bytes(data)
    os.truncate(tmp_path / "sparse", 1 << 40)
    for content in (bytes(data), tmp_path / "sparse"):
        with pytest.raises(FormatError, match="more than 4194304 program headers"):
            opening(open_elf, content)


def test_notes_that_run_out_of_their_segment(opening: Opening) -> None:
    """A note whose length leaves its segment is an error with its offset."""
    broken = bytearray(note(b"QEMU", 0, bytes(440)))
    struct.pack_into("<I", broken, 4, 1 << 31)
    with pytest.raises(FormatError, match="note runs past") as caught:
        opening(open_elf, elf_core([Load(0, page_of(0))], bytes(broken)))
    assert caught.value.offset == 64 + 2 * 56


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_cores_raise_nothing_else(opening: Opening, data: st.DataObject) -> None:
    """Cut and overwritten files are read, refused or a HibernautError, and every frame they list can be read."""
    whole = elf_core(
        data.draw(dump_loads()), qemu_cpu(0x1000) + note(b"VMCOREINFO", 0, TEXT), many=data.draw(st.booleans())
    )
    broken = data.draw(damage(whole, near_bytes=600))
    if not broken:
        return
    try:
        answer = opening(open_elf, broken)
    except HibernautError:
        return
    if isinstance(answer, Dump):
        ranges = answer.memory.ranges
        assert sum(len(pages) for _, pages in answer.memory.blocks(1 << 20)) == ranges.total_pages
        assert ranges.total_pages * PAGE <= 8 * len(broken)


def test_pyelftools_reads_the_naive_files() -> None:
    """The files of these tests are ELF files by pyelftools' account too, extended numbering included."""
    for many in (False, True):
        elf = ELFFile(io.BytesIO(elf_core([Load(0x3000, page_of(3))], qemu_cpu(0x9000), many=many)))
        assert [segment.header.p_type for segment in elf.iter_segments()] == ["PT_NOTE", "PT_LOAD"]
        assert elf.get_segment(1).data() == page_of(3)
