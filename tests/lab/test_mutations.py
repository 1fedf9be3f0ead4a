# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations of an image: each changes the part that it names and nothing else, and can be repeated."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.lab.parser.mutations import PARTS, Mutation, Mutator
from hibernaut.swsusp import Image, open_image
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {pfn: struct.pack("<Q", pfn * 2654435761) * 512 for pfn in range(1, 700)}
ROUNDS = 12


@pytest.fixture(scope="module", params=["lzo", "lz4"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small compressed image."""
    path = tmp_path_factory.mktemp("mutations") / "image"
    path.write_bytes(naive.build(PAGES, naive.Layout(compressor=request.param)))
    return path


@pytest.fixture
def image(saved: Path) -> Iterator[Image]:
    """Yield the open image."""
    with open_image(saved) as opened:
        yield opened


def changed(saved: Path, mutator: Mutator, mutation: Mutation, folder: Path) -> Path:
    """Return a copy of the image with a mutation."""
    device = bytearray(saved.read_bytes())
    for at, data in mutator.writes(mutation):
        device[at : at + len(data)] = data
    path = folder / "changed"
    path.write_bytes(device)
    return path


def test_every_part_is_changed_as_often(image: Image) -> None:
    """In each round once; none leaves the image as it is; the same seed gives the same mutations."""
    count = ROUNDS * len(PARTS)
    drawn = list(itertools.islice(Mutator(image, 3), count))
    assert [one.part for one in drawn] == list(PARTS) * ROUNDS
    assert drawn == list(itertools.islice(Mutator(image, 3), count))
    assert drawn != list(itertools.islice(Mutator(image, 4), count))
    mutator = Mutator(image)
    for one in drawn:
        assert any(image.area.file.pread(at, len(data)) != data for at, data in mutator.writes(one)), one


def test_a_changed_page_is_read_where_the_crc_is_right(saved: Path, image: Image, tmp_path: Path) -> None:
    """The page has the other byte and all others are the same; without the CRC the reader refuses."""
    mutator = Mutator(image)
    mutation = Mutation("byte of stored page", 40, 17 << 8 | 0x80, mends_crc=True)
    with open_image(changed(saved, mutator, mutation, tmp_path)) as other:
        pages, expected = other.read_all().copy(), image.read_all().copy()
    assert pages[40, 17] == expected[40, 17] ^ 0x80
    pages[40, 17] ^= 0x80
    assert (pages == expected).all()
    without = Mutation(mutation.part, mutation.index, mutation.value)
    with open_image(changed(saved, mutator, without, tmp_path)) as other, pytest.raises(CorruptImage, match="CRC"):
        other.read_all()


def test_a_listed_frame_gets_another_number(saved: Path, image: Image, tmp_path: Path) -> None:
    """The last one, so that the list stays in order; its bytes are those of the old one."""
    mutation = Mutation("frame number", len(PAGES) - 1, 5000, mends_crc=True)
    with open_image(changed(saved, Mutator(image), mutation, tmp_path)) as other:
        assert other.pfns[-1] == 5000
        assert (other.read_all() == image.read_all()).all()


def test_numbers_are_written_where_the_reader_finds_them(saved: Path, image: Image, tmp_path: Path) -> None:
    """A field of the header, one of the info page, a length, an entry and a link of the map."""
    mutator = Mutator(image)
    with open_image(changed(saved, mutator, Mutation("header: hw_sig", 0, 77), tmp_path)) as other:
        assert int.from_bytes(other.header.block[4060 - 4 : 4060], "little") == 77
    with open_image(changed(saved, mutator, Mutation("info: cpus", 0, 77), tmp_path)) as other:
        assert other.info.page != image.info.page
    for part, index, words in (
        ("unit length", 2, "unit 2 has a compressed length of 0"),
        ("map entry", 9, "map"),
        ("map link", 0, "map"),
    ):
        with pytest.raises(FormatError, match=words):
            open_image(
                changed(saved, mutator, Mutation(part, index, 0 if part == "unit length" else 1 << 40), tmp_path)
            )


def test_parts_that_are_not_there(image: Image) -> None:
    """Another name, an index beyond the last one, an image without units."""
    mutator = Mutator(image)
    for wrong in (Mutation("nothing", 0, 0), Mutation("unit length", 10**6, 1), Mutation("map link", -1, 1)):
        with pytest.raises(HibernautError, match="the image has no"):
            mutator.writes(wrong)


def test_an_image_without_units(tmp_path: Path) -> None:
    """Its parts are those but lengths and compressed bytes; frames and bytes are changed where they lie."""
    path = tmp_path / "plain"
    path.write_bytes(naive.build(PAGES, naive.Layout(compressor="none")))
    with open_image(path) as plain:
        mutator = Mutator(plain, 1)
        parts = [part for part in PARTS if part not in ("unit length", "compressed byte of unit")]
        drawn = list(itertools.islice(mutator, len(parts) * ROUNDS))
        assert [one.part for one in drawn] == parts * ROUNDS
        assert not any(one.mends_crc for one in drawn)
        expected = plain.read_all().copy()
        for mutation in (Mutation("byte of stored page", 40, 17 << 8 | 0x80), Mutation("frame number", 698, 5000)):
            with open_image(changed(path, mutator, mutation, tmp_path)) as other:
                if mutation.part == "frame number":
                    assert other.pfns[-1] == 5000
                else:
                    pages = other.read_all().copy()
                    pages[40, 17] ^= 0x80
                    assert (pages == expected).all()
        with pytest.raises(HibernautError, match="no CRC is compared"):
            mutator.writes(Mutation("byte of stored page", 40, 1, mends_crc=True))


def test_several_changes_are_all_made(saved: Path, image: Image, tmp_path: Path) -> None:
    """Two to four, each as it is made alone; the CRC is that of all changed units; no two are to the same byte."""
    mutator = Mutator(image, 5)
    seen = set()
    before = saved.read_bytes()
    for changes in itertools.islice(mutator.several(), 60):
        seen.add(len(changes))
        device = bytearray(before)
        for at, data in mutator.writes(*changes):
            device[at : at + len(data)] = data
        for one in changes:
            for at, data in mutator.writes(one):
                if at != image.area.crc32_at or one.part.startswith("header"):
                    assert device[at : at + len(data)] == data, changes
        assert list(mutator.several().__next__())
    assert seen == {2, 3, 4}
    units = (Mutation("byte of stored page", 3, 1, mends_crc=True), Mutation("byte of stored page", 300, 1))
    path = tmp_path / "both"
    device = bytearray(before)
    for at, data in mutator.writes(*units):
        device[at : at + len(data)] = data
    path.write_bytes(device)
    with open_image(path) as other:
        assert (other.read_all() != image.read_all()).any(axis=1).nonzero()[0].tolist() == [3, 300]
    for twice in (
        (Mutation("info: pages", 0, 1), Mutation("info: pages", 0, 2)),
        (Mutation("byte of stored page", 3, 1), Mutation("byte of stored page", 4, 1)),
        (Mutation("header: crc32", 0, 1), units[0]),
    ):
        with pytest.raises(HibernautError, match="the same byte or unit"):
            mutator.writes(*twice)


def test_a_drawn_number_says_what_it_was(image: Image) -> None:
    """So that a change can be made to another image; a byte has no such number."""
    for one in itertools.islice(Mutator(image, 2), 2 * len(PARTS)):
        assert (one.was is None) == (one.part in ("compressed byte of unit", "byte of stored page"))
        assert one.was != one.value
        if one.part == "info: image_pages":
            assert one.was == image.info.image_pages


def test_counts_are_drawn_beside_each_other(image: Image) -> None:
    """Those that leave no list or no data are among them: a kernel crashes by them, and chance alone misses them."""
    drawn = list(itertools.islice(Mutator(image, 1), 60 * len(PARTS)))
    values = {one.value for one in drawn if one.part == "info: image_pages"}
    assert {image.info.pages - 1, image.info.pages} <= values
    assert {1, 2} <= {one.value for one in drawn if one.part == "info: pages"}
