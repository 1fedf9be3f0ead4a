# SPDX-License-Identifier: GPL-2.0-or-later
"""The loading of pages by a kernel: against a naive implementation, page by page, and against what guests did."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp import inspect_image, kernel_loading, kernel_reading
from hibernaut.swsusp.checks import Answer
from hibernaut.swsusp.kernel_loading import FAILED, SnapshotLoading
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.swsusp.verdict import Verdict, verdict_on
from hibernaut.volumes.files import open_plain
from tests.swsusp import naive
from tests.swsusp.test_verdict import GUEST, PAGES, entries_of, image, refusals, units_of

END = (1 << 64) - 1
FLAG = 1 << 63
ZONES = FrameRanges.of([(1, 4095), (4096, 60000)])
OF_ZONES = replace(GUEST, frames=ZONES)
UNSIGNED = 1 << 32


def naive_loading(
    rows: list[list[int]], pages: int, image_pages: int, *, has_zero_pages: bool
) -> tuple[str, int] | None:
    """Return the end and the number of pages taken; None if pages are missing.

    A page is its numbers. This follows `snapshot_write_next` of kernel/power/snapshot.c call by call: `handle->cur`,
    a set for the bitmap, an iterator for its walk.
    """
    meta, copy = (pages - image_pages - 1) % UNSIGNED, image_pages % UNSIGNED
    current, zeroes, listed, zero = 2, 0, set[int](), set[int]()
    walk = None
    made = False
    for number, row in enumerate(rows, 1):
        while True:
            if current > (meta + copy + zeroes) % UNSIGNED:
                if not made:
                    return "crashes", number
                return ("loaded" if copy else "refused"), number
            if not made and current > (meta + 1) % UNSIGNED:
                return "crashes", number
            if not made:
                for word in row:
                    if word == END:
                        break
                    frame = word & ~FLAG if has_zero_pages else word
                    if frame not in range(1, 4096) and frame not in range(4096, 64096):
                        return "refused", number
                    listed.add(frame)
                    if has_zero_pages and word & FLAG:
                        zero.add(frame)
                        zeroes += 1
                if current == meta + 1:
                    if copy + zeroes < UNSIGNED <= meta + copy + zeroes:
                        return "refused", number  # prepare_image asks for as many pages, 16 TiB
                    made, walk = True, iter(sorted(listed))
            if walk is not None:
                frame = next(walk, 0)
                if not frame:
                    return "refused", number
                current += 1
                if frame in zero:
                    continue
                break
            current += 1
            break
    return None


FRAMES = st.integers(1, 25)
BAD = st.sampled_from([END, 0, 64095, 64096, FLAG | 64096, 1 << 50])
LISTS = st.lists(st.lists(FRAMES | FRAMES.map(FLAG.__or__), max_size=6), max_size=3)
FEW = st.just(0) | st.integers(-3, 3)


@settings(max_examples=max(400, settings().max_examples))
@given(
    lists=LISTS | st.lists(st.lists(FRAMES | BAD, max_size=5), max_size=3),
    missing=FEW,
    pages=FEW | st.sampled_from([1 << 31, 1 << 45]),
    more=FEW | st.sampled_from([1 << 40, 1 << 31]),
    has_zero_pages=st.booleans(),
    parts=st.integers(1, 7),
)
@example(lists=[[FLAG | 1]], missing=0, pages=0, more=-2, has_zero_pages=True, parts=1)
@example(lists=[[FLAG | 1, 2]], missing=0, pages=0, more=-3, has_zero_pages=True, parts=1)
@example(lists=[[1, FLAG | 2]], missing=0, pages=0, more=-3, has_zero_pages=True, parts=1)
@example(lists=[[FLAG | frame for frame in range(1, 9)]], missing=0, pages=0, more=-5, has_zero_pages=True, parts=1)
@example(
    lists=[[1], [FLAG | frame for frame in range(2, 9)]], missing=0, pages=0, more=-5, has_zero_pages=True, parts=2
)
def test_a_snapshot_ends_as_the_naive_one(
    lists: list[list[int]], missing: int, pages: int, more: int, has_zero_pages: bool, parts: int
) -> None:
    """Counts that agree or contradict each other, lists in any order, repeated and flagged frames; parts of any size.

    An image that agrees with itself has a page of data for each different frame without the flag.
    """
    entries = [word for one in lists for word in one]
    flagged = {word & ~FLAG for word in entries if has_zero_pages and word & FLAG}
    data = max(0, len(set(entries) - flagged - {word | FLAG for word in flagged}) + missing)
    rows = [(one + [END] * 512)[:512] for one in lists] + [[0] * 512] * (data + 2)
    image_pages = (data + more) % (1 << 64)
    total = (1 + len(lists) + image_pages + pages) % (1 << 64)
    expected = naive_loading(rows, total, image_pages, has_zero_pages=has_zero_pages)
    snapshot = SnapshotLoading(total, image_pages, has_zero_pages=has_zero_pages, frames=ZONES)
    if snapshot.start() is not None:  # before a page is taken: the first one shows it
        assert has_zero_pages
        assert expected == ("crashes", 1)
        return
    stream = np.array(rows, dtype="<u8").reshape(-1, 512).view(np.uint8)
    for first in range(0, len(rows), parts):
        ending = snapshot.take(stream[first : first + parts])
        if ending is not None:
            assert expected is not None
            end, number = expected
            assert first < number <= first + parts
            ends = {"loaded": {Answer.OK, Answer.DEPENDS}, "refused": {Answer.REFUSES}, "crashes": {Answer.CRASHES}}
            assert ending.answer in ends[end], (ending, expected)
            return
    assert expected is None


def test_lists_that_repeat_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are kept are the different frames, not the pages: a unit of 400 bytes can have 32 pages of a list."""
    monkeypatch.setattr(kernel_loading, "MERGED_WORDS", 2000)
    snapshot = SnapshotLoading(1 << 20, 0, has_zero_pages=True, frames=ZONES)
    row = np.arange(1, 513, dtype="<u8").view(np.uint8)
    for _ in range(300):
        assert snapshot.take(np.stack([row] * 8)) is None
        assert sum(map(len, snapshot._listed)) < 2000 + 8 * 512


def judged(path: Path, kernel: str = "6.1", *, zones: bool = True) -> Verdict:
    """Return the verdict of a kernel, on a machine whose zones are known or not."""
    with open_plain(path) as file:
        machine = OF_ZONES if zones else GUEST
        return verdict_on(inspect_image(file), image_rules_for_release(kernel), machine)


def answers(verdict: Verdict) -> dict[str, Answer]:
    """Return the answers that are not ok."""
    return {check.check: check.answer for check in verdict.checks if check.answer is not Answer.OK}


def counts(pages: int, image_pages: int, size: int | None = None) -> Callable[[bytearray], None]:
    """Return a change of the counts in the info page, by so many pages, or of its size."""

    def change(device: bytearray) -> None:
        at = entries_of(device)[0] * 4096
        for place, more in ((424, pages), (416, image_pages)):
            (count,) = struct.unpack_from("<Q", device, at + place)
            struct.pack_into("<Q", device, at + place, (count + more) % (1 << 64))
        if size is not None:
            struct.pack_into("<Q", device, at + 432, size)

    return change


STORED = 600
"""Data pages of the image; it has 2 pages of the list."""


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
@pytest.mark.parametrize("compressor", ["lzo", "none"])
def test_counts_that_contradict_each_other(tmp_path: Path, kernel: str, compressor: str) -> None:
    """No list, or no data, crashes; too few or too many of either are refused; the size is not looked at.

    Guests of 6.1, 6.12 and 7.3 did the same, see docs/parser.md.
    """
    layout = naive.Layout(compressor=compressor)

    def of(pages: int, image_pages: int, size: int | None = None) -> dict[str, Answer]:
        return answers(judged(image(tmp_path, layout, counts(pages, image_pages, size)), kernel))

    bug = judged(image(tmp_path, layout, counts(0, 2)), kernel).checks[7]
    assert bug.where.startswith("memory_bm_next_pfn" if kernel == "6.1" else "memory_bm_test_bit")

    assert of(0, 0, 0) == of(0, 0, 1 << 60) == {}
    assert of(1 << 32, 0) == of(0, 3 << 60) == {}
    for pages, image_pages in ((0, 2), (0, 3), (1 - 603, 0), (2 - 603, 0), (3 - 603, -STORED)):
        found = of(pages, image_pages)
        assert found.pop("frames") is Answer.CRASHES, (pages, image_pages)
        assert set(found) <= {"units", "crc32"}
    for pages, image_pages in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1 << 20, 0), (0, 4), (0, 1 << 31)):
        assert Answer.REFUSES in of(pages, image_pages).values(), (pages, image_pages)


def test_fewer_pages_than_are_listed_depend_on_the_machine(tmp_path: Path) -> None:
    """The kernel loads what the counts say if it has the memory; the CRC is that of the units that it has read."""
    verdict = judged(image(tmp_path, naive.Layout(), counts(-1, -1)))
    assert answers(verdict) == {"frames": Answer.DEPENDS}
    assert verdict.resumes is None
    assert "refused if more than 599 of these" in str(verdict.checks[7].remark)
    verdict = judged(image(tmp_path, naive.Layout(), counts(-64, -64)))
    assert refusals(verdict) == {"crc32": "PM: Invalid image CRC32!"}


def listed(entry: int, frame: int) -> Callable[[bytearray], None]:
    """Return a change of a listed frame in an image that is not compressed."""
    return lambda device: struct.pack_into(
        "<Q", device, entries_of(device)[1 + entry // 512] * 4096 + 8 * (entry % 512), frame
    )


def test_listed_frames(tmp_path: Path) -> None:
    """Any order is taken; a frame that is listed twice, or that the machine does not have, is refused."""
    layout = naive.Layout(compressor="none")
    for entry, frame in ((3, 5000), (3, 1), (599, 64095), (599, 2)):
        assert answers(judged(image(tmp_path, layout, listed(entry, frame)))) == {}, (entry, frame)
    for entry, frame in ((3, 20), (3, 0), (599, 64096), (599, 1 << 40), (3, FLAG | 19)):
        assert refusals(judged(image(tmp_path, layout, listed(entry, frame)))) == {"frames": FAILED}, (entry, frame)
    # With the flag of zero pages, the frame counts once more.
    assert refusals(judged(image(tmp_path, layout, listed(3, FLAG | 19)), "7.3")) == {"frames": FAILED}
    for entry, frame, answer in ((3, 1, Answer.DEPENDS), (3, 20, Answer.REFUSES)):
        path = image(tmp_path, layout, listed(entry, frame))
        assert answers(judged(path, zones=False))["frames"] is answer


def test_blocks_that_are_used_twice(tmp_path: Path) -> None:
    """The kernel reads them twice: the data is another one, as the CRC or the codec tells."""

    def again(device: bytearray) -> None:
        at = [
            at for at in range(4096, 8192, 8) if struct.unpack_from("<Q", device, at)[0] == units_of(device)[5] // 4096
        ]
        struct.pack_into("<Q", device, at[0], units_of(device)[4] // 4096)

    found = refusals(judged(image(tmp_path, naive.Layout(), again)))
    assert found
    assert set(found.values()) <= {
        "PM: Invalid image CRC32!",
        "PM: LZO decompression failed",
        "PM: Invalid LZO compressed length",
    }


def test_read_ahead(tmp_path: Path) -> None:
    """A block beyond the device is read, with the first 1024, before a length that is wrong is looked at."""

    def both(device: bytearray) -> None:
        struct.pack_into("<Q", device, units_of(device)[2], 0)
        struct.pack_into("<Q", device, 4096 + 8 * 300, 1 << 40)

    sector = f"PM: Read-error on swap-device (?:?:{8 << 40})"
    assert refusals(judged(image(tmp_path, naive.Layout(), both))) == {"units": sector}


def test_read_ahead_beyond_the_first_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads as far as its memory allows: both ends are left open, unless the data needs the block."""
    sector = f"PM: Read-error on swap-device (?:?:{8 << 40})"

    def beyond(number: int) -> Callable[[bytearray], None]:
        return lambda device: struct.pack_into("<Q", device, 4096 + 8 * number, 1 << 40)

    def both(device: bytearray) -> None:
        struct.pack_into("<Q", device, units_of(device)[2], 0)
        beyond(300)(device)

    def fewer(device: bytearray) -> None:
        counts(-192, -192)(device)
        last = len(entries_of(device)) - 1
        struct.pack_into("<I", device, 4060, 0)
        struct.pack_into("<I", device, 4072, 0)  # no flag of a CRC
        beyond(last)(device)

    monkeypatch.setattr(kernel_reading, "READ_AHEAD", (10, 8192))
    assert refusals(judged(image(tmp_path, naive.Layout(), beyond(300)))) == {"units": sector}
    assert refusals(judged(image(tmp_path, naive.Layout(), both))) == {"units": FAILED}
    found = answers(judged(image(tmp_path, naive.Layout(), fewer)))
    assert found == {"units": Answer.DEPENDS}
    monkeypatch.setattr(kernel_reading, "READ_AHEAD", (10, 20))
    assert refusals(judged(image(tmp_path, naive.Layout(), both))) == {"units": "PM: Invalid LZO compressed length"}


def test_contradicting_flags(tmp_path: Path) -> None:
    """`inspect` calls the header damaged; the kernel takes units for pages, and the first one for a list."""
    path = image(tmp_path, naive.Layout(extra_flags=2 | 16))
    with open_plain(path) as file:
        found = inspect_image(file)
    assert [problem.what for problem in found.problems] == ["flags say both not compressed and LZ4; found 0x16"]
    assert refusals(judged(path, "6.12")) == {"frames": FAILED}


def test_another_signature_to_put_back(tmp_path: Path) -> None:
    """Guests of 6.1, 6.12 and 7.3 resumed; the area is not swap space any more, which `inspect` tells."""

    def other(device: bytearray) -> None:
        device[4076:4086] = b"SWAPSPACE3"

    path = image(tmp_path, naive.Layout(), other)
    verdict = judged(path)
    assert verdict.resumes is True
    assert verdict.checks[0].remark == "the area is not swap space any more"
    with open_plain(path) as file:
        found = inspect_image(file)
    assert found.problems == ()
    assert "b'SWAPSPACE3', no swap signature" in found.remarks[0]
    with open_plain(image(tmp_path, naive.Layout())) as file:
        assert inspect_image(file).remarks == ()


assert len(PAGES) == STORED
