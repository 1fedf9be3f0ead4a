# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged and used-up images: what is read is right, what is not read is listed, and the numbers of units are certain.

The witness is the image before the damage: whatever a damaged one still gives must have the same bytes at the same
frame.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hibernaut.errors import FormatError, HibernautError
from hibernaut.swsusp import Image, open_image
from hibernaut.swsusp.salvage import SalvagedImage, SalvagedMemory, salvage_image
from hibernaut.swsusp.salvage.units import NumberedUnits, number_units
from tests.conftest import Golden
from tests.swsusp import naive

Edit = tuple[int, bytes]
"""Byte of the device, and what is written there."""
B = 4096
CONSUMED: Edit = (4086, b"SWAPSPACE2")


WORDS = np.random.default_rng(0).integers(0, 1 << 63, 64)


def page(pfn: int) -> bytes:
    """Return a page that compresses as most of memory does, and names its frame."""
    return struct.pack("<Q", pfn) + np.random.default_rng(pfn).choice(WORDS, 511).astype("<u8").tobytes()


@cache
def device(compressor: str = "lzo", shuffle_seed: int | None = None, header_block: int = 0) -> bytes:
    """Return an image of several map pages with zero pages; in the order of the kernel if it is not shuffled."""
    count = 1400 if compressor == "none" else 5000
    pages = {pfn: None if pfn % 11 == 5 else page(pfn) for pfn in range(100, 100 + 2 * count, 2) if pfn % 250 > 20}
    layout = naive.Layout(
        compressor=compressor,
        shuffle_seed=shuffle_seed,
        header_block=header_block,
        kernel_order=shuffle_seed is None,
    )
    return naive.build(pages, layout)


def damaged(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Return a device with other bytes in some places."""
    out = bytearray(content)
    for at, data in edits:
        out[at : at + len(data)] = data
    return bytes(out)


class Salvage:
    """Salvages a device, and compares every page with the intact one.

    Attributes:
        image: the image before the damage.
    """

    def __init__(self, folder: Path, content: bytes, **where: Any) -> None:
        self._folder = folder
        self._content = content
        self._where = where
        (folder / "intact").write_bytes(content)
        self._stack = ExitStack()
        self.image: Image = self._stack.enter_context(open_image(folder / "intact", **where))

    def __enter__(self) -> Salvage:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, edits: Sequence[Edit], size_bytes: int | None = None, **how: object) -> SalvagedImage:
        """Return the salvaged image of a device with edits, cut to a size, its pages compared."""
        path = self._folder / "damaged"
        path.write_bytes(damaged(self._content, edits)[:size_bytes])
        found = self._stack.enter_context(
            salvage_image(path, used_up=CONSUMED in edits, **self._where, **how)  # type: ignore[arg-type]
        )
        compare(found, self.image)
        return found

    @property
    def entries(self) -> list[int]:
        """Blocks of the swap map's entries."""
        listed: list[int] = self.image.swap_map.entries.tolist()
        return listed

    def unit(self, number: int) -> int:
        """Return the byte at which a unit begins."""
        return self.entries[int(self.image.stream.index.first_entry[number])] * B

    def map_page(self, number: int) -> int:
        """Return the byte at which a map page begins."""
        return int(self.image.swap_map.map_blocks[number]) * B

    def frames_of(self, units: Sequence[int]) -> set[int]:
        """Return the frames whose data is in some units."""
        meta, stored = self.image.info.meta_pages, self.image.stored_pfns
        rows = (row - meta for unit in units for row in range(32 * unit, 32 * unit + 32))
        return {int(stored[row]) for row in rows if 0 <= row < len(stored)}


def compare(found: SalvagedImage, image: Image) -> None:
    """Check that every page that was read is as it was, and that every other frame of the list is reported."""
    pages, present = SalvagedMemory(found).gather(found.pfns)
    original, known = image.memory().gather(found.pfns)
    assert present.all()
    assert known.all()
    assert not (pages != original).any(axis=1).any() or found.crc_ok is False or found.units is None
    missing = found.missing.pfns()
    assert not np.isin(missing, found.pfns).any()
    assert np.isin(missing, image.pfns).all()
    if found.listed is not None:
        assert found.listed == len(image.pfns)
        unlisted = found.listed - len(found.pfns) - len(missing)
        assert unlisted >= 0
        if not unlisted:
            assert np.array_equal(np.sort(np.concatenate((missing, found.pfns))), image.pfns)
    assert found.whole == (not found.damage and not found.problems and found.crc_ok is not False and proved(found))


def proved(found: SalvagedImage) -> bool:
    """Return whether a CRC proves the data, or none is needed."""
    return found.crc_ok is True or not (found.used_up or found.header.crc32 is not None)


@pytest.fixture(params=["lzo", "lz4"])
def salvage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Salvage]:
    """A compressed image."""
    with Salvage(tmp_path, device(request.param)) as made:
        yield made


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Salvage]:
    """An image that is not compressed."""
    with Salvage(tmp_path, device("none")) as made:
        yield made


def noise(pages: int, seed: int = 1) -> bytes:
    """Return bytes that do not belong to an image."""
    return np.random.default_rng(seed).bytes(pages * B)


def missing_of(found: SalvagedImage) -> set[int]:
    """Return the frames that are missing."""
    return set(found.missing.pfns().tolist())


def test_a_used_up_image_that_was_not_overwritten_is_whole(salvage: Salvage) -> None:
    """Its CRC proves that every byte is as it was."""
    found = salvage([CONSUMED])
    assert (found.used_up, found.whole, found.crc_ok, found.complete) == (True, True, True, True)
    assert "the CRC of the whole is right: the data is as it was written" in found.findings


def test_a_used_up_image_is_read_only_if_asked_for(salvage: Salvage) -> None:
    """And an image that is not used up is not read as one that is."""
    path = salvage._folder / "used"
    path.write_bytes(damaged(salvage._content, [CONSUMED]))
    with pytest.raises(FormatError, match="a resume consumed it or the kernel refused it"):
        salvage_image(path)
    with pytest.raises(FormatError, match="not used up"):
        salvage_image(salvage._folder / "intact", used_up=True, damaged=False)


@pytest.mark.parametrize("at", [0, 1, 2, 9, 4096 - 1, 5000])
def test_a_flipped_byte_costs_at_most_its_unit(salvage: Salvage, at: int) -> None:
    """In the length or in the data; the frames of other units keep theirs."""
    start = salvage.unit(7)
    byte = bytes([salvage._content[start + at] ^ 0x41])
    found = salvage([(start + at, byte)])
    assert missing_of(found) <= salvage.frames_of([7])
    assert not found.whole
    if missing_of(found):
        assert [(part.first_unit, part.units) for part in found.damage] == [(7, 1)]
    else:
        assert found.crc_ok is False


def test_one_unit_lost_does_not_shift_the_others(salvage: Salvage) -> None:
    """Unit k holds rows 32 k to 32 k + 31, whatever was lost before it."""
    last = len(salvage.image.stream.index) - 1
    for number in (0, 1, 5, last - 1, last):
        found = salvage([CONSUMED, (salvage.unit(number), noise(1))])
        assert found.units is not None
        assert found.units.total == last + 1
        if number:
            assert missing_of(found) == salvage.frames_of([number])
            assert [(part.first_unit, part.units) for part in found.damage] == [(number, 1)]
        else:
            assert not len(found.pfns)
            assert found.unplaced_pages > 0
            assert any("list of frames is lost" in problem.what for problem in found.problems)


def test_a_shifted_unit_is_noticed(salvage: Salvage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that numbers the units that it finds one after another fails the comparison."""

    def shifting(*arguments: Any) -> NumberedUnits:
        numbered = number_units(*arguments)
        numbered.number[:] = np.arange(len(numbered.number))
        return numbered

    monkeypatch.setattr("hibernaut.swsusp.salvage.salvaged.number_units", shifting)
    with pytest.raises(AssertionError):
        salvage([CONSUMED, (salvage.unit(5), noise(1))])


def test_two_lost_unit_starts_far_apart(salvage: Salvage) -> None:
    """The units between are numbered, since both gaps have at least one unit and there are two in all."""
    found = salvage([(salvage.unit(5), noise(1)), (salvage.unit(12), noise(1, 2))])
    assert missing_of(found) == salvage.frames_of([5, 12])


GAPS = {"inside": (1, 1), "start": (0, 1), "long": (0, 3)}
"""First block of a unit that is overwritten, and number of units to the start of the last. The length of a unit stays
only in the first: that gap has a certain number of units, the others do not.
"""


@pytest.mark.parametrize("gaps", [gaps for count in (2, 3) for gaps in itertools.product(GAPS, repeat=count)])
def test_units_between_several_gaps(tmp_path: Path, gaps: tuple[str, ...]) -> None:
    """Those before the first uncertain gap and behind the last one have their numbers, whatever lies between."""
    with Salvage(tmp_path, device("lz4")) as salvage:
        edits: list[Edit] = []
        hit: list[int] = []
        unsure: list[int] = []
        for place, kind in enumerate(gaps):
            unit, (first, units) = 10 + 25 * place, GAPS[kind]
            begin = salvage.unit(unit) + first * B
            edits.append((begin, noise(max(1, (salvage.unit(unit + units - 1) - begin) // B + 1), place)))
            lost = range(unit, unit + units)
            hit += lost
            unsure += [] if kind == "inside" else lost
        between = range(unsure[0], unsure[-1] + 1) if unsure else ()
        missing = missing_of(salvage(edits))
        assert salvage.frames_of(hit) <= missing <= salvage.frames_of([*hit, *between])


def test_units_whose_number_is_not_certain_are_absent(salvage: Salvage) -> None:
    """Two gaps of which one is larger than it must be: the units between could be shifted, and are left out."""
    first, second = salvage.unit(5), salvage.unit(16)
    long = salvage.unit(8) + B - first
    found = salvage([(first, noise(long // B)), (second, noise(1, 2))])
    lost = salvage.frames_of(range(5, 17))
    assert missing_of(found) <= lost
    assert found.units is not None
    if (found.units.number < 0).any():
        assert any("number is not certain" in part.what for part in found.damage)
        assert found.unplaced_pages > 0
    assert missing_of(found) >= salvage.frames_of([5, 6, 7, 8, 16])


def test_a_wrong_crc_alone(salvage: Salvage) -> None:
    """All units decompress, and it is not known which is wrong, if any: all pages are given, the image is not whole."""
    found = salvage([(4060, b"\x12\x34\x56\x78")])
    assert (found.crc_ok, found.complete, found.whole, found.damage) == (False, True, False, ())
    assert any("it is not known which" in finding for finding in found.findings)


def test_units_that_decompress_by_luck(tmp_path: Path) -> None:
    """Data that does not compress is copied as it is: an overwritten block in it is noticed by the CRC alone."""
    pages: dict[int, bytes | None] = {pfn: np.random.default_rng(pfn).bytes(B) for pfn in range(64, 300)}
    with Salvage(tmp_path, naive.build(pages, naive.Layout(kernel_order=True))) as salvage:
        for block in range(1, 30):  # a block without a match of the compressor
            luck = (salvage.unit(3) + block * B, noise(1))
            found = salvage([CONSUMED, luck])
            if found.complete:
                break
        assert (found.complete, found.crc_ok, found.whole) == (True, False, False)
        both = [CONSUMED, luck, (salvage.unit(5), noise(1))]
        with pytest.raises(AssertionError):  # wrong bytes: with a second unit lost the CRC cannot show them
            salvage(both)
    (tmp_path / "both").write_bytes(damaged(salvage._content, both))
    with salvage_image(tmp_path / "both", used_up=True) as lost:
        assert any("bytes in it that do not compress can have been overwritten" in one for one in lost.findings)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lost_map_page(salvage: Salvage, number: int) -> None:
    """Its entries follow from the order of blocks, and units that decompress confirm them."""
    found = salvage([CONSUMED, (salvage.map_page(number), noise(1))])
    assert (found.complete, found.crc_ok, found.whole) == (True, True, False)
    assert any(f"does not hold map page {number}" in problem.what for problem in found.problems)


@pytest.mark.parametrize("number", [0, 1])
def test_a_lost_map_page_of_an_image_in_another_order(tmp_path: Path, number: int) -> None:
    """No order of blocks helps where they were taken in none: units are absent, never elsewhere."""
    with Salvage(tmp_path, device(shuffle_seed=3, header_block=2), offset=2) as salvage:
        assert not salvage([(salvage.map_page(number), noise(1))]).whole


@pytest.mark.parametrize("entry", [0, 1, 30, 510])
@pytest.mark.parametrize("value", [b"\xff" * 8, struct.pack("<Q", 3), bytes(8)], ids=["outside", "inside", "zero"])
def test_a_wrong_entry_of_the_map(salvage: Salvage, entry: int, value: bytes) -> None:
    """The block that continues its neighbours is tried, and whole units confirm it."""
    found = salvage([(salvage.map_page(1) + 8 * entry, value)])
    assert missing_of(found) <= salvage.frames_of(range(len(salvage.image.stream.index)))
    assert len(missing_of(found)) <= 32
    assert found.problems or found.damage
    if 0 < entry < 510:
        assert found.complete
        assert found.crc_ok


@pytest.mark.parametrize("value", [b"\xff" * 8, struct.pack("<Q", 7), bytes(8)], ids=["outside", "inside", "zero"])
def test_a_broken_link_of_the_map(salvage: Salvage, value: bytes) -> None:
    """The next map page is right behind the last entry."""
    found = salvage([(salvage.map_page(0) + 8 * 511, value)])
    assert (found.complete, found.crc_ok) == (True, True)
    assert found.problems


def test_a_header_that_names_another_block(salvage: Salvage) -> None:
    """The chain is found by its looks."""
    for block in (5, 10**9):
        found = salvage([(4064, struct.pack("<Q", block))])
        assert not found.whole
        assert found.problems


@pytest.mark.parametrize(("field", "at"), [("image_pages", 416), ("pages", 424), ("size", 432), ("magic", 24)])
def test_wrong_counts_of_the_info_page(salvage: Salvage, field: str, at: int) -> None:
    """The units and the list of frames have the counts as well."""
    start = salvage.entries[0] * B + at
    found = salvage([(start, bytes([salvage._content[start] ^ 0x21]))])
    assert (found.complete, found.crc_ok, found.whole) == (True, True, False), field
    assert found.problems


def test_a_lost_info_page(salvage: Salvage) -> None:
    """Counts follow from the units and the list; CR3 is lost."""
    found = salvage([(salvage.entries[0] * B, noise(1))])
    assert (found.complete, found.crc_ok, found.info) == (True, True, None)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut(salvage: Salvage, part: float) -> None:
    """Units behind the end are absent."""
    blocks = int(len(salvage._content) * part) // B
    found = salvage([], size_bytes=blocks * B)
    ends = salvage.image.stream.index.first_entry
    lost = [
        unit
        for unit in range(len(ends) - 1)
        if any(block >= blocks for block in salvage.entries[ends[unit] : ends[unit + 1]])
    ]
    assert missing_of(found) == salvage.frames_of(lost)
    assert found.damage


def test_a_wrong_flag_for_the_compressor(salvage: Salvage) -> None:
    """The compressor is the one that decompresses the units."""
    flags = salvage._content[4072]
    found = salvage([(4072, bytes([flags ^ 16]))])
    assert (found.compressor, found.complete) == (salvage.image.compressor, True)


def test_a_flipped_byte_in_the_signature(salvage: Salvage) -> None:
    """The rest of the header still names the image; two flipped bytes are another signature."""
    assert salvage([(4088, b"x")]).complete
    with pytest.raises(FormatError, match="no swap area"):
        salvage([(4088, b"xy")])


def test_pages_of_an_image_that_is_not_compressed_are_not_judged(plain: Salvage) -> None:
    """And the finding reports it: such an image has no CRC either."""
    found = plain([CONSUMED])
    assert (found.complete, found.crc_ok, found.whole) == (True, None, False)
    assert "the data is not compressed: nothing shows whether a page was overwritten" in found.findings
    assert plain([]).whole


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_lost_map_page_of_plain_data_loses_its_pages(plain: Salvage, number: int) -> None:
    """Nothing confirms a block of plain data, so its page is absent; those behind it are numbered from the end."""
    found = plain([(plain.map_page(number), noise(1))])
    assert not found.complete
    rows = range(max(0, 511 * number - 1), 511 * number + 510)
    if number:
        meta = plain.image.info.meta_pages
        stored = plain.image.stored_pfns
        assert missing_of(found) == {int(stored[row - meta]) for row in rows if meta <= row < meta + len(stored)}


def test_a_block_used_twice_in_plain_data(plain: Salvage) -> None:
    """The entry out of order is the wrong one."""
    found = plain([(plain.map_page(1) + 8 * 50, struct.pack("<Q", plain.entries[700]))])
    meta = plain.image.info.meta_pages
    assert missing_of(found) == {int(plain.image.stored_pfns[511 + 50 - 1 - meta])}


RANGES = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from([1, 1, 2, 5, 40, 300]), st.sampled_from(["noise", "zero", "own", "ones"])
    ),
    min_size=1,
    max_size=4,
)


@given(ranges=RANGES, seed=st.integers(0, 100), compressor=st.sampled_from(["lzo", "lz4"]), header=st.booleans())
@example(ranges=[(0.0, 40, "noise")], seed=0, compressor="lzo", header=True)
@example(ranges=[(0.5, 40, "noise"), (0.875, 1, "noise"), (0.08, 1, "noise")], seed=0, compressor="lzo", header=False)
def test_overwritten_blocks_never_give_a_wrong_page(
    tmp_path_factory: pytest.TempPathFactory,
    ranges: list[tuple[float, int, str]],
    seed: int,
    compressor: str,
    header: bool,
) -> None:
    """Wherever blocks were overwritten: by noise, by zeroes, by other blocks of the image (its own map and units)."""
    content = device(compressor)
    blocks = len(content) // B
    edits: list[Edit] = [CONSUMED] if header else []
    touched: set[int] = set()
    for number, (place, count, kind) in enumerate(ranges):
        first = 1 + int(place * (blocks - 1 - count))
        source = first + count if first + 2 * count < blocks else first - count  # the original stays
        data = {
            "noise": noise(count, seed + number),
            "zero": bytes(count * B),
            "own": content[source * B : (source + count) * B] if len(ranges) == 1 else noise(count, seed),
            "ones": b"\1" * count * B,
        }[kind]
        edits.append((first * B, data))
        touched |= set(range(first, first + count))
    with Salvage(tmp_path_factory.mktemp("salvage"), content) as salvage:
        found = salvage(edits)
        ends = salvage.image.stream.index.first_entry
        hit = [unit for unit in range(len(ends) - 1) if touched & set(salvage.entries[ends[unit] : ends[unit + 1]])]
        maps = set(salvage.image.swap_map.map_blocks.tolist()) & touched
        copied = any(kind == "own" for *_, kind in ranges)  # of two equal units it is not known which is the copy
        if not copied and len(ranges) == 1 and not maps and 0 not in hit and salvage.entries[0] not in touched:
            assert missing_of(found) <= salvage.frames_of(hit)


@cache
def small(compressor: str) -> bytes:
    """Return an image of a few units, one map page, and no frame without data."""
    return naive.build(
        {pfn: page(pfn) for pfn in range(40, 300)}, naive.Layout(compressor=compressor, kernel_order=True)
    )


@given(data=st.data())
@pytest.mark.parametrize("compressor", ["lzo", "lz4", "none"])
def test_any_words_anywhere(tmp_path_factory: pytest.TempPathFactory, compressor: str, data: st.DataObject) -> None:
    """A result whose pages are right, or our error: whatever header, map, info page and list hold."""
    content = small(compressor)
    at = st.integers(508, 511) | st.integers(512, 512 * 4) | st.integers(0, len(content) // 8 - 1)
    value = st.sampled_from([0, 1, 2, 511, 1 << 20, 1 << 40, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
    words = data.draw(st.lists(st.tuples(at, value), min_size=1, max_size=4))
    edits = [(8 * place, struct.pack("<Q", word)) for place, word in words]
    cut = data.draw(st.none() | st.integers(1, len(content) // B))
    with Salvage(tmp_path_factory.mktemp("words"), content) as salvage:
        folder = salvage._folder
        (folder / "damaged").write_bytes(damaged(content, edits)[: None if cut is None else cut * B])
        try:
            found = salvage_image(folder / "damaged", used_up=data.draw(st.booleans()))
        except HibernautError:
            return
        with found:
            pages, present = SalvagedMemory(found).gather(found.pfns)
            original, known = salvage.image.memory().gather(found.pfns)
            assert present.all()
            data_and_map = {*salvage.entries[1:], *salvage.image.swap_map.map_blocks.tolist()}
            if not data_and_map & {place * 8 // B for place, _ in words}:
                assert known.all()
                assert not (pages != original).any()


IMAGES = ["swap-6.1-lzo.img", "swap-6.12-lz4.img", "swap-6.1-low2m.img"]


@pytest.mark.parametrize("name", IMAGES)
def test_a_real_image_that_was_used_up(golden: Golden, golden_copy: Callable[[str], Path], name: str) -> None:
    """Whole, then with half a megabyte overwritten in its middle and around a map page."""
    path = golden_copy(name)
    with open_image(golden(name)) as image:
        write(path, *CONSUMED)
        with salvage_image(path, used_up=True) as found:
            compare(found, image)
            assert found.complete
            assert found.whole == (image.compressor != "none")
        middle = int(image.swap_map.map_blocks[5]) - 64
        write(path, middle * B, noise(128))
        with salvage_image(path, used_up=True) as found:
            compare(found, image)
            assert 0 < found.missing.total_pages < len(image.pfns) // 4
            assert not found.whole


def write(path: Path, at: int, data: bytes) -> None:
    """Write into a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_salvaged_memory_reads_as_the_image_does(salvage: Salvage) -> None:
    """By runs, by single pages, in blocks; a missing frame does not exist."""
    found = salvage([(salvage.unit(7), noise(1))])
    memory, original = SalvagedMemory(found), salvage.image.memory()
    seen = {first + row: bytes(one) for first, pages in memory.blocks() for row, one in enumerate(pages)}
    assert set(seen) == set(found.pfns.tolist())
    for pfn in found.pfns.tolist()[::37]:
        run = memory.run(pfn, 50)
        assert len(run) > 0
        for row, one in enumerate(run):
            assert bytes(one) == bytes(original.page(pfn + row)) == seen[pfn + row]  # type: ignore[arg-type]
    lost = next(iter(missing_of(found)))
    assert memory.page(lost) is None
    assert not len(memory.run(lost, 1))


@pytest.mark.parametrize("edits", [(), ("unit",), ("map",), ("unit", "map", "info")])
def test_units_and_blocks_are_those_of_the_image(salvage: Salvage, edits: tuple[str, ...]) -> None:
    """Each unit that is read has its length and its rows; blocks that are read or lost are the image's, each once."""
    places = {"unit": salvage.unit(7), "map": salvage.map_page(1), "info": salvage.entries[0] * B}
    found = salvage([CONSUMED, *((places[name], noise(1)) for name in edits)])
    units, whole = found.read_units, salvage.image.read_units
    assert (units.total, units.unit_rows) == (whole.total, whole.unit_rows)
    assert (whole.number == np.arange(len(whole))).all()
    assert int(whole.rows.sum()) == whole.stored_rows
    assert (units.rows == whole.rows[units.number]).all()
    assert (units.compressed_bytes == whole.compressed_bytes[units.number]).all()
    assert set(range(whole.total or 0)) - set(units.number.tolist()) == ({7} if "unit" in edits else set())
    blocks, all_blocks = found.blocks, salvage.image.blocks
    assert set(all_blocks.all.tolist()) == set(salvage.image.swap_map.blocks.tolist())
    parts = [set(part.tolist()) for part in (blocks.pages, blocks.maps, blocks.lost)]
    assert sum(map(len, parts)) == len(blocks.all)
    missing = set(all_blocks.all.tolist()) - set(blocks.all.tolist())
    assert set(blocks.all.tolist()) <= set(all_blocks.all.tolist())
    assert bool(missing) == ("map" in edits)
    assert bool(len(blocks.lost)) == ("unit" in edits)
    assert (salvage.entries[0] in parts[2]) == ("info" in edits)


def test_blocks_of_plain_pages(plain: Salvage) -> None:
    """A lost map page takes its entries, of which no other page tells; all others are the image's."""
    found = plain([CONSUMED, (plain.map_page(1), noise(1))])
    everything = set(plain.image.swap_map.blocks.tolist())
    blocks = found.blocks
    assert set(blocks.all.tolist()) < everything
    assert len(blocks.pages) == int(found.rows.known.sum()) + 1
    assert found.read_units.stored_rows == int(found.rows.known.sum())
    assert (len(found.read_units), len(blocks.lost)) == (0, 0)
    whole = plain([CONSUMED])
    assert set(whole.blocks.all.tolist()) == everything
