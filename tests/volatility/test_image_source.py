# SPDX-License-Identifier: GPL-2.0-or-later
"""An image as the layer reads it, and the words that say where it lies; no Volatility here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.volatility.image_source import ImagePlace, image_at, plugins_folder, present_pieces, read_physical
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {5: bytes([5]) * 4096, 6: bytes([6]) * 4096, 9: bytes([9]) * 4096}


@pytest.fixture
def place(tmp_path: Path) -> ImagePlace:
    """A small image in a file whose name needs quoting."""
    path = tmp_path / "swap of 5%.img"
    path.write_bytes(naive.build(PAGES, naive.Layout()))
    found = ImagePlace.of(path.as_uri(), "")
    assert found is not None
    return found


def test_a_place_has_a_path_and_options() -> None:
    """Decimal or hexadecimal; a URL of the network has no file."""
    assert ImagePlace.of("file:///a%20b", "offset=0x10 base=4096") == ImagePlace("/a b", offset=16, base=4096)
    assert ImagePlace.of("file:///disk", "partition=2") == ImagePlace("/disk", partition=2)
    assert ImagePlace.of("https://example.org/x", "") is None


@pytest.mark.parametrize("words", ["offset", "offset=", "offset=x", "size=3", "offset=-1", "offset=1 and more"])
def test_other_options_are_refused(words: str) -> None:
    """The message has the variable, the word and the options that there are."""
    with pytest.raises(HibernautError, match=r"HIBERNAUT_SOURCE_OPTIONS: .* expected offset, partition, base"):
        ImagePlace.of("file:///x", words)


def test_memory_is_read_by_physical_address(place: ImagePlace) -> None:
    """Within a page, over two, and where a frame is absent: zeroes."""
    assert read_physical(place, 5 * 4096 + 8, 4) == b"\5\5\5\5"
    assert read_physical(place, 6 * 4096 - 2, 4) == b"\5\5\6\6"
    assert read_physical(place, 7 * 4096 - 2, 4) == b"\6\6\0\0"
    assert read_physical(place, 7 * 4096, 4) == bytes(4)
    whole = read_physical(place, 0, 10 * 4096)
    pages = np.frombuffer(whole, dtype=np.uint8).reshape(10, 4096)
    assert {int(pfn) for pfn in np.flatnonzero(pages.any(axis=1))} == set(PAGES)


def test_pieces_to_scan_are_contiguous(place: ImagePlace) -> None:
    """Neighbouring frames are one piece, cut at the borders that are asked for."""
    source = image_at(place)
    assert source is not None
    assert list(present_pieces(source, 0, 1 << 20)) == [(5 * 4096, 8192), (9 * 4096, 4096)]
    assert list(present_pieces(source, 5 * 4096 + 100, 50)) == [(5 * 4096 + 100, 50)]
    assert list(present_pieces(source, 7 * 4096, 4096)) == []


def test_a_file_without_an_image_is_left_to_others(tmp_path: Path) -> None:
    """Raw memory is none; where options say that there is an image and there is none, that is an error."""
    (tmp_path / "ram").write_bytes(bytes(1 << 16))
    assert image_at(ImagePlace(str(tmp_path / "ram"))) is None
    with pytest.raises(FormatError):
        image_at(ImagePlace(str(tmp_path / "ram"), offset=2))


def test_the_plugins_folder_has_plugins_alone() -> None:
    """Volatility imports every file there."""
    assert [path.name for path in plugins_folder().glob("*.py")] == ["hibernaut_image.py"]
