# SPDX-License-Identifier: GPL-2.0-or-later
"""LiME and raw dumps."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError, HibernautError
from hibernaut.memory.dump import Dump
from hibernaut.memory.foreign import foreign_format
from hibernaut.memory.lime import open_lime
from hibernaut.memory.raw import open_raw
from tests.memory.conftest import Opening
from tests.memory.naive import PAGE, Load, lime, lime_frames, page_of
from tests.strategies import damage, dump_loads


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dump_loads())
def test_lime_frames_equal_a_naive_parse(opening: Opening, loads: list[Load]) -> None:
    """Ranges in any order, overlapping or not whole pages: frames as the naive parser finds them, however read."""
    data = lime([(load.paddr, load.data) for load in loads if load.data])
    expected = lime_frames(data)
    if not expected:
        return
    dump = opening.dump(open_lime, data)
    assert dump.memory.ranges.pfns().tolist() == sorted(expected)
    asked = np.arange(30)[::-1]
    pages, present = dump.memory.gather(asked)
    assert {int(pfn): page.tobytes() for pfn, page in zip(asked[present], pages[present], strict=True)} == expected
    assert not pages[~present].any()
    for first, block in dump.memory.blocks(2):
        assert [page.tobytes() for page in block] == [expected[first + row] for row in range(len(block))]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_lime_raises_nothing_else(opening: Opening, data: st.DataObject) -> None:
    """Cut and overwritten files are read, refused, or a HibernautError."""
    whole = lime([(load.paddr, load.data) for load in data.draw(dump_loads()) if load.data])
    if not whole or not (broken := data.draw(damage(whole, near_bytes=64))):
        return
    try:
        answer = opening(open_lime, broken)
    except HibernautError:
        return
    if isinstance(answer, Dump):
        assert sum(len(pages) for _, pages in answer.memory.blocks()) == answer.memory.ranges.total_pages


def test_lime_faults_have_offsets(opening: Opening) -> None:
    """Errors with places: rubbish between ranges, a range that ends before it starts."""
    good = lime([(0, page_of(0)), (8 * PAGE, page_of(8))])
    backwards = good[:32] + page_of(0) + struct.pack("<IIQQ8x", 0x4C694D45, 1, 9 * PAGE, PAGE)
    endless = struct.pack("<IIQQ8x", 0x4C694D45, 1, 0, (1 << 64) - 1)
    for data, what, offset in (
        (good[: 32 + PAGE] + bytes(64), "no LiME header", 32 + PAGE),
        (backwards, "impossible range", 32 + PAGE + 8),
        (endless, "impossible range", 8),
    ):
        with pytest.raises(FormatError, match=what) as caught:
            opening(open_lime, data)
        assert caught.value.offset == offset


def test_a_lime_dump_that_ends_early_is_read_as_far_as_it_goes(opening: Opening) -> None:
    """Pages before the end exist; cut in a range, the number of its missing pages is in a remark."""
    good = lime([(0, page_of(0)), (8 * PAGE, page_of(8) + page_of(9) + page_of(10))])
    dump = opening.dump(open_lime, good[: -PAGE - 1])
    assert list(dump.memory.ranges) == [(0, 1), (8, 1)]
    assert dump.remarks == ("the dump is incomplete: 2 pages of its last range, 0x8000 to 0xafff, are not in the file, "
                            "and whether there were others after it is not known",)  # fmt: skip
    dump = opening.dump(open_lime, good[: 32 + PAGE + 8])
    assert (list(dump.memory.ranges), "ends inside a LiME header" in dump.remarks[0]) == ([(0, 1)], True)
    assert opening.dump(open_lime, good).remarks == ()
    with pytest.raises(FormatError, match="no range holds a whole page"):
        opening(open_lime, good[: 32 + PAGE - 1])


def test_other_versions_of_lime_are_refused(opening: Opening) -> None:
    """Versions that are not known."""
    assert "version 2" in opening.refusal(open_lime, lime([(0, page_of(0))], version=2))


def test_raw_is_frames_from_0_on(opening: Opening) -> None:
    """Frame n of a raw file is at byte 4096 n; the pages are views of the mapping."""
    dump = opening.dump(open_raw, b"".join(page_of(pfn) for pfn in range(5)))
    assert list(dump.memory.ranges) == [(0, 5)]
    assert dump.memory.run(2, 9).tobytes() == page_of(2) + page_of(3) + page_of(4)
    assert not dump.memory.run(2, 1).flags.owndata


def test_raw_of_a_size_other_than_whole_pages_is_refused(opening: Opening) -> None:
    """4097 bytes are not pages."""
    assert "4097" in opening.refusal(open_raw, bytes(4097))


@pytest.mark.parametrize(
    ("offset", "magic", "what"),
    [
        (0, b"hibr", "Windows hibernation"),
        (0, b"HIBR", "Windows hibernation"),
        (0, b"WAKE", "Windows hibernation"),
        (0, b"RSTR", "Windows hibernation"),
        (8192, b"\x81\x81xpress", "Windows hibernation"),
        (0, b"PAGEDU64", "Windows crash dump"),
        (0, b"QFI\xfb", "qcow"),
        (0, b"KDMV", "VMDK"),
        (64, b"\x7f\x10\xda\xbe", "VDI"),
        (0, b"\x7fELF", "ELF"),
        (4086, b"SWAPSPACE2", "swap area"),
        (4086, b"S1SUSPEND\x00", "swap area"),
        (510, b"\x55\xaa", "boot sector"),
        (512, b"EFI PART", "GPT"),
    ],
)
def test_known_formats_are_never_raw_memory(opening: Opening, offset: int, magic: bytes, what: str) -> None:
    """Files of other formats, padded to whole pages, are refused by name."""
    data = bytearray(4 * PAGE)
    data[offset : offset + len(magic)] = magic
    assert what in opening.refusal(open_raw, bytes(data))


def test_ordinary_first_pages_are_raw_memory() -> None:
    """Zeroes, and a PC's first page (interrupt vectors that point into the BIOS), do not match a format."""
    assert foreign_format(bytes(1 << 16)) is None
    assert foreign_format(struct.pack("<HH", 0xFF53, 0xF000) * 256 + bytes(1 << 15)) is None
