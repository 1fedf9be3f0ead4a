# SPDX-License-Identifier: GPL-2.0-or-later
"""The index beside an image: what is opened by it is the image; a stale, foreign or damaged one is refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.swsusp import Image, open_image
from hibernaut.swsusp.index_file import DIGEST_BYTES, INDEX_HEADER, key_of
from hibernaut.volumes.files import PlainFile
from tests.cli.run import hibernaut
from tests.conftest import Golden
from tests.strategies import image_layouts, saved_pages
from tests.swsusp import naive, userland
from tests.swsusp.images import Pages


def some_pages(seed: int = 0, count: int = 300) -> Pages:
    """Pages in several units and ranges, some of them zero."""
    rng = np.random.default_rng(seed)
    return {2 * pfn + pfn // 9: None if pfn % 11 == 0 else rng.bytes(64) * 64 for pfn in range(5, 5 + count)}


def contents(image: Image) -> list[object]:
    """All that can be read of an image, in order and by frame."""
    pages, present = image.memory().gather(image.pfns)
    return [image.pfns.tolist(), image.zero.tolist(), pages.tobytes(), present.all(), image.read_all().tobytes()]


def made(folder: Path, pages: Pages | None = None, layout: naive.Layout | None = None) -> tuple[Path, Path]:
    """An image and its index."""
    path, index = folder / "image", folder / "index"
    path.write_bytes(naive.build(some_pages() if pages is None else pages, layout or naive.Layout()))
    open_image(path, index=index).close()
    return path, index


@settings(max_examples=40)
@given(pages=saved_pages(), layout=image_layouts())
def test_an_image_opened_by_its_index_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, pages: Pages, layout: naive.Layout
) -> None:
    """Any pages and any layout: the same frames, zero pages, bytes and leftovers as without the index."""
    folder = tmp_path_factory.mktemp("index")
    path = folder / "image"
    path.write_bytes(naive.build(pages, layout))
    found = []
    for index in (None, folder / "index", folder / "index"):
        with open_image(path, offset=layout.header_block, index=index) as image:
            units = image.stream.index
            found.append(
                [*contents(image), units.first_entry.tolist(), units.compressed_bytes.tolist(), units.leftover_entries]
            )
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.1-low2m.img", "swap-6.12-lz4.img"])
def test_a_real_image_opens_with_few_reads(
    golden: Golden, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header, swap map, info page and the witnesses are read, no unit and no list; the pages are the same."""
    path, index = golden(name), tmp_path / "index"
    with open_image(path, index=index) as image:
        expected = contents(image)
        most = len(image.swap_map.map_blocks) + 64 + 40
    reads: list[int] = []
    pread, pread_into = PlainFile.pread, PlainFile.pread_into

    def counted_pread(self: PlainFile, offset: int, size_bytes: int) -> bytes:
        reads.append(size_bytes)
        return pread(self, offset, size_bytes)

    def counted_pread_into(self: PlainFile, offset: int, out: Any) -> int:
        reads.append(len(out))
        return pread_into(self, offset, out)

    monkeypatch.setattr(PlainFile, "pread", counted_pread)
    monkeypatch.setattr(PlainFile, "pread_into", counted_pread_into)
    with open_image(path, index=index) as image:
        assert len(reads) <= most
        assert max(reads) <= 4096
        assert contents(image) == expected


def test_the_file_is_private_and_made_once(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; a second use does not write it again, and nothing else is left."""
    umask = os.umask(0)
    try:
        path, index = made(tmp_path)
    finally:
        os.umask(umask)
    before = index.stat()
    assert stat.S_IMODE(before.st_mode) == 0o600
    open_image(path, index=index).close()
    assert (index.stat().st_mtime_ns, index.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["image", "index"]


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_byte_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One flipped bit, at any place, gives one line with the name of the file; it stays as it is."""
    path, index = made(tmp_path_factory.mktemp("flip"))
    content = bytearray(index.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    index.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        open_image(path, index=index)
    assert str(index) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert index.read_bytes() == content


@pytest.mark.parametrize("size", [0, 1, 15, 16, 100, INDEX_HEADER.itemsize, 300, -DIGEST_BYTES, -1])
def test_a_cut_index_is_refused(tmp_path: Path, size: int) -> None:
    """At any length, the empty file too; one that is longer as well."""
    path, index = made(tmp_path)
    content = index.read_bytes()
    for changed in (content[:size], content + bytes(abs(size) + 1)):
        index.write_bytes(changed)
        with pytest.raises(FormatError, match=r"damaged|not an index"):
            open_image(path, index=index)


def rebuilt(path: Path, pages: Pages, layout: naive.Layout) -> None:
    """Write another image to the place of one."""
    path.write_bytes(naive.build(pages, layout))


STALE: dict[str, Callable[[Path], object]] = {
    "another image": lambda path: rebuilt(path, some_pages(count=400), naive.Layout()),
    "same map, other data": lambda path: rebuilt(path, some_pages(seed=1), naive.Layout(compressor="none")),
    "file grew": lambda path: path.write_bytes(path.read_bytes() + bytes(4096)),
    "another flag": lambda path: flip(path, 4096 - 36),
    "used up": lambda path: rebuilt(path, some_pages(), naive.Layout(crc_error=1)),
}


def flip(path: Path, at: int) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("how", STALE)
def test_a_stale_index_is_refused(tmp_path: Path, how: str) -> None:
    """The image was written again, its header changed or its file: the index says that it is of another one."""
    layout = naive.Layout(compressor="none") if "same map" in how else naive.Layout()
    path, index = made(tmp_path, layout=layout)
    before = index.read_bytes()
    STALE[how](path)
    with pytest.raises(FormatError, match="belongs to another image") as caught:
        open_image(path, index=index)
    assert caught.value.advice is not None
    assert index.read_bytes() == before


def test_an_index_of_another_place_is_foreign(tmp_path: Path) -> None:
    """The same area at another byte of a file of the same length."""
    path, index = made(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content + bytes(8192))
    index.unlink()
    open_image(path, index=index).close()
    path.write_bytes(bytes(8192) + content)
    with pytest.raises(FormatError, match="belongs to another image"):
        open_image(path, base=8192, index=index)


def forged(index: Path, change: Callable[[np.ndarray, bytearray], None]) -> None:
    """Change an index and give it the right digest again."""
    body = bytearray(index.read_bytes()[:-DIGEST_BYTES])
    header = np.frombuffer(body, dtype=INDEX_HEADER, count=1).copy()
    rest = body[INDEX_HEADER.itemsize :]
    change(header, rest)
    body = bytearray(header.tobytes()) + rest
    index.write_bytes(bytes(body) + hashlib.sha256(body).digest())


def set_word(rest: bytearray, at: int, value: int, size: int) -> None:
    """Put a number into the body."""
    rest[at : at + size] = value.to_bytes(size, "little")


def set_words(rest: bytearray, count: int, value: int) -> None:
    """Give the first units a length."""
    for unit in range(count):
        set_word(rest, 4 * unit, value, 4)


FORGED: dict[str, Callable[[np.ndarray, bytearray], None]] = {
    "length of zero": lambda _, rest: set_word(rest, 0, 0, 4),
    "length too long": lambda _, rest: set_word(rest, 4, 1 << 31, 4),
    "units longer than the map": lambda _, rest: set_words(rest, 5, 139000),
    "compressor": lambda header, _: header.__setitem__("compressor", 9),
    "other compressor": lambda header, _: header.__setitem__("compressor", 1),
    "words": lambda header, _: header.__setitem__("length_bytes", 3),
    "frame beyond memory": lambda header, rest: set_word(rest, 4 * int(header["units"][0]), 1 << 60, 8),
    "frames not in order": lambda header, rest: set_word(rest, 4 * int(header["units"][0]) + 8, 1, 8),
    "no frames in a range": lambda header, rest: set_word(
        rest, 4 * int(header["units"][0]) + 8 * int(header["frame_ranges"][0]), 0, 8
    ),
    "one frame more": lambda header, rest: set_word(
        rest, 4 * int(header["units"][0]) + 16 * int(header["frame_ranges"][0]) - 8, 1000, 8
    ),
    "zero frame not listed": lambda header, rest: set_word(
        rest, 4 * int(header["units"][0]) + 16 * int(header["frame_ranges"][0]), 1, 8
    ),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_index_is_refused(tmp_path: Path, how: str) -> None:
    """Whole and with the right key, but impossible for the image: no number of it reaches a read."""
    path, index = made(tmp_path)
    forged(index, lambda *_: None)
    open_image(path, index=index).close()
    forged(index, FORGED[how])
    with pytest.raises(FormatError, match=r"contradicts its image|another compressor"):
        open_image(path, index=index)


def test_the_key_depends_on_each_part(tmp_path: Path) -> None:
    """Header, map pages, entries, info page, data: a change of each gives another key, and none gives none."""
    path, _ = made(tmp_path, layout=naive.Layout(compressor="none"))
    with open_image(path) as image:
        area, header, swap_map, info = image.area, image.header, image.swap_map, image.info
        first = key_of(area, header, swap_map, info)
        assert key_of(area, header, swap_map, info) == first
        keys = {
            first,
            key_of(area, header.with_fields({"last_page": 9}), swap_map, info),
            key_of(area, header, replace(swap_map, map_blocks=swap_map.map_blocks[::-1] + 1), info),
            key_of(area, header, replace(swap_map, entries=np.r_[swap_map.entries, 3]), info),
            key_of(area, header, swap_map, info.with_pages(saved_pages=1, image_pages=1)),
            key_of(replace(area, header_block=1), header, swap_map, info),
        }
        flip(path, area.offset_of(int(swap_map.entries[-1])) + 5)
        keys.add(key_of(area, header, swap_map, info))
    assert len(keys) == 7


def test_dumps_and_images_of_suspend_utils_have_no_index(tmp_path: Path, golden: Golden) -> None:
    """Images of suspend-utils and dumps: refused, and no file is made."""
    index, image = tmp_path / "index", tmp_path / "image"
    image.write_bytes(userland.build(some_pages(), userland.Userland()).device)
    with pytest.raises(FormatError, match="suspend-utils has no index"):
        open_image(image, index=index)
    told = hibernaut("map", str(golden("ram-6.1-lzo.elf")), "--index", str(index))
    assert (told.status, "leave out --index" in told.err, index.exists()) == (2, True, False)


def test_the_command_line_takes_it(tmp_path: Path, golden: Golden) -> None:
    """`map` makes it and answers the same with it; a foreign file is refused in one line and not overwritten."""
    path, index = str(golden("swap-6.1-lzo.img")), tmp_path / "index"
    plain = hibernaut("map", path, "--json")
    for _ in range(2):
        told = hibernaut("map", path, "--json", "--index", str(index))
        assert (told.status, json.loads(told.out)) == (plain.status, json.loads(plain.out))
    other = hibernaut("map", str(golden("swap-6.12-lz4.img")), "--index", str(index))
    assert (other.status, other.err.count("\n"), "belongs to another image" in other.err) == (2, 1, True)
    foreign = tmp_path / "notes"
    foreign.write_text("my notes")
    refused = hibernaut("map", path, "--index", str(foreign))
    assert (refused.status, "not an index" in refused.err, foreign.read_text()) == (2, True, "my notes")
    both = hibernaut("convert", path, str(index), "--to", "raw", "--index", str(index))
    assert (both.status, "name the same file" in both.err) == (2, True)
    salvaged = hibernaut("map", path, "--salvage", "--index", str(index))
    assert (salvaged.status, "--index is for whole images" in salvaged.err) == (2, True)
