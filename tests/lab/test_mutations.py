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
    """It is refused, with the reason."""
    path = tmp_path / "plain"
    path.write_bytes(naive.build(PAGES, naive.Layout(compressor="none")))
    with open_image(path) as plain, pytest.raises(HibernautError, match="not compressed"):
        Mutator(plain)
