# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged and hostile images: one of our errors, bounded memory, never another exception."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.memory.page import Bytes
from hibernaut.swsusp import image as image_module
from hibernaut.swsusp import inspect_image, open_image
from hibernaut.swsusp.codecs import COMPRESSORS
from hibernaut.swsusp.pfns import pack_pfns, unpack_pfns
from hibernaut.swsusp.stream import Batch, UnitStream
from hibernaut.volumes.files import open_plain
from tests.conftest import Golden, copy_sparse
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {
    pfn: (pfn * 2654435761 % (1 << 32)).to_bytes(4, "little") * 1024 if pfn % 5 else None for pfn in range(1, 700)
}


def read_everything(path: Path) -> None:
    """Read and inspect an image in every way."""
    image = open_image(path)
    try:
        for _ in image.chunks():
            pass
        image.memory().gather(image.pfns)
    finally:
        image.close()


def must_stay_ours(path: Path) -> None:
    """Reading returns pages or raises our error; inspecting reports the same without raising beyond the header."""
    failed: HibernautError | None = None
    try:
        read_everything(path)
    except HibernautError as error:
        failed = error
    assert "\n" not in str(failed)
    try:
        with open_plain(path) as file:
            problems = inspect_image(file).problems
    except HibernautError:
        assert failed is not None
    else:
        # Leftover entries are reported, though the image can be read.
        assert bool(problems) == (failed is not None) or all("behind the last page" in p.what for p in problems)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@given(data=st.data())
def test_bits_flipped_anywhere(tmp_path: Path, compressor: str, data: st.DataObject) -> None:
    """One to three flipped bits: refused, reported, or (without CRC, in padding) harmless."""
    device = bytearray(naive.build(PAGES, naive.Layout(compressor=compressor, shuffle_seed=4)))
    for _ in range(data.draw(st.integers(1, 3))):
        # The header, map and info pages are few: aim at them as often as at the data.
        place = data.draw(st.integers(0, len(device) - 1) | st.integers(4056, 4095))
        device[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "image"
    path.write_bytes(device)
    must_stay_ours(path)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@given(data=st.data())
def test_words_overwritten_in_map_and_info(tmp_path: Path, compressor: str, data: st.DataObject) -> None:
    """Any u64 anywhere in the image's own structures replaced by an unpleasant one."""
    device = bytearray(naive.build(PAGES, naive.Layout(compressor=compressor)))
    (first_map,) = struct.unpack_from("<Q", device, 4064)
    (info,) = struct.unpack_from("<Q", device, first_map * 4096)
    block = data.draw(st.sampled_from([0, first_map, info, info + 1]))
    word = data.draw(st.integers(0, 511) | st.sampled_from([0, 1, 50, 51, 52, 53, 54, 508, 510, 511]))
    value = data.draw(
        st.sampled_from([0, 1, 2, info, first_map, (1 << 64) - 1, 1 << 63, 1 << 40, 139333]) | st.integers(0, 1 << 63)
    )
    struct.pack_into("<Q", device, block * 4096 + 8 * word, value)
    path = tmp_path / "image"
    path.write_bytes(device)
    must_stay_ours(path)


@given(data=st.data(), compressor=st.sampled_from(COMPRESSORS))
def test_cut_anywhere(tmp_path: Path, compressor: str, data: st.DataObject) -> None:
    """A file cut before the image's last block is refused: nothing is made up for what is missing."""
    device = naive.build(PAGES, naive.Layout(compressor=compressor, shuffle_seed=9, spare_blocks=0))
    path = tmp_path / "image"
    path.write_bytes(device[: data.draw(st.integers(1, len(device) - 1))])
    with pytest.raises(FormatError):
        read_everything(path)
    must_stay_ours(path)


@pytest.fixture(scope="module", params=["swap-6.1-lzo.img", "swap-6.12-lz4.img", "swap-6.1-low2m.img"])
def real_copy(request: pytest.FixtureRequest, golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real image that may be damaged for a moment, if the damage is undone."""
    path = tmp_path_factory.mktemp("real") / str(request.param)
    with golden(request.param).open("rb") as source:
        copy_sparse(source, path)
    return path


@settings(max_examples=12)
@given(data=st.data())
def test_real_images_with_a_flipped_bit(real_copy: Path, data: st.DataObject) -> None:
    """A bit flipped in a block that a real image uses; where there is a CRC, flipped data never goes unseen."""
    image = open_image(real_copy)
    blocks, checked = image.swap_map.blocks, image.header.crc32 is not None
    info_block = int(image.swap_map.entries[0])
    image.close()
    block = int(blocks[data.draw(st.integers(0, len(blocks) - 1))])
    place = block * 4096 + data.draw(st.integers(0, 4095))
    with real_copy.open("r+b", buffering=0) as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 1 << data.draw(st.integers(0, 7))]))
        try:
            must_stay_ours(real_copy)
            if checked and block != info_block:
                plain_or_refused(real_copy)
        finally:
            file.seek(place)
            file.write(old)


@settings(max_examples=4)
@given(data=st.data())
def test_real_images_cut_anywhere(real_copy: Path, tmp_path: Path, data: st.DataObject) -> None:
    """A real image cut before its last block, whatever block that is, is refused."""
    with open_image(real_copy) as image:
        last = int(image.swap_map.blocks[-1]) + 1
    cut = tmp_path / "cut"
    with real_copy.open("rb") as source:
        copy_sparse(source, cut)
    os.truncate(cut, data.draw(st.integers(1, last * 4096 - 1)))
    with pytest.raises(FormatError):
        read_everything(cut)
    must_stay_ours(cut)


def plain_or_refused(path: Path) -> None:
    """With a CRC: what is read without an error is what was written (the flip hit padding), else it is refused."""
    try:
        image = open_image(path)
    except HibernautError:
        return
    computed = None
    try:
        computed = image.computed_crc()
        image.read_all()
    except HibernautError:
        assert computed != image.header.crc32
    else:
        assert computed == image.header.crc32
    finally:
        image.close()


def patched(tmp_path: Path, patch: Callable[[bytearray, int, int], None], compressor: str = "lzo") -> Path:
    """An image changed by a function that gets the device, the first map page's byte and the info page's byte."""
    device = bytearray(naive.build(PAGES, naive.Layout(compressor=compressor)))
    (first_map,) = struct.unpack_from("<Q", device, 4064)
    (info,) = struct.unpack_from("<Q", device, first_map * 4096)
    patch(device, first_map * 4096, info * 4096)
    path = tmp_path / "image"
    path.write_bytes(device)
    return path


def put(at: int, value: int) -> Callable[[bytearray, int, int], None]:
    """Put a u64 at a byte of the first map page."""
    return lambda device, first_map, _info: struct.pack_into("<Q", device, first_map + at, value)


def put_info(at: int, value: int) -> Callable[[bytearray, int, int], None]:
    """Put a u64 at a byte of the info page."""
    return lambda device, _map, info: struct.pack_into("<Q", device, info + at, value)


def put_unit(value: int) -> Callable[[bytearray, int, int], None]:
    """Put a compressed length at the start of the first unit, which the naive builder lays behind the info page."""
    return lambda device, _map, info: struct.pack_into("<Q", device, info + 4096, value)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (put(4088, 2), "swap map loops|used twice|is zero before|map page 1"),
        (put(4088, 1), "swap map loops: map page 1 would be block 1 again"),
        (put(4088, 1 << 50), "map page 1 would be block"),
        (put(16, 0), "swap map entry 2 is zero before the last"),
        (put(16, 1 << 40), "swap map entry 2 is 1099511627776"),
        (put(24, 3), "used twice"),
        (put_unit(0), "unit 0 has a compressed length of 0"),
        (put_unit(139334), "unit 0 has a compressed length of 139334"),
        (put_unit(139333), "runs past the end|does not decompress|compressed length|decompresses to|more than"),
        (put_info(24, 1), "magic is 0x0*1:"),
        (put_info(416, 1 << 60), "image_pages is"),
        (put_info(424, 1 << 60), "pages is"),
        (put_info(424, 0), "pages is 0"),
        (put_info(432, 0), "size is 0"),
    ],
)
def test_each_damage_is_named(tmp_path: Path, patch: Callable[[bytearray, int, int], None], words: str) -> None:
    """Loops, blocks outside, zero entries, doubles, impossible lengths and counts: each has its error."""
    path = patched(tmp_path, patch)
    with pytest.raises(CorruptImage, match=words):
        read_everything(path)
    must_stay_ours(path)


@pytest.mark.parametrize(
    ("pfns", "words"),
    [
        ([5, 4], "frame 0x4 in entry 1 of the list is out of order"),
        ([5, 5], "frame 0x5 in entry 1 of the list is repeated"),
        ([5, 1 << 41], "beyond any RAM"),
    ],
)
def test_frame_lists_out_of_order(tmp_path: Path, pfns: list[int], words: str) -> None:
    """Unsorted, repeated and impossible frames are refused."""

    def patch(device: bytearray, _map: int, info: int) -> None:
        struct.pack_into("<2Q", device, info + 4096, *pfns)

    path = patched(tmp_path, patch, "none")
    with pytest.raises(CorruptImage, match=words):
        open_image(path)


def test_a_list_that_ends_early(tmp_path: Path) -> None:
    """An end mark in the first of two meta pages contradicts the counts."""

    def patch(device: bytearray, _map: int, info: int) -> None:
        struct.pack_into("<Q", device, info + 4096 + 80, (1 << 64) - 1)

    with pytest.raises(CorruptImage, match="list of frames ends at entry 10"):
        open_image(patched(tmp_path, patch, "none"))


@pytest.mark.parametrize("pages", [1, 2, 5])
def test_a_list_read_in_pieces_equals_the_whole(pages: int) -> None:
    """Frames, zero flags, and faults with the number of their entry, whatever the pieces."""
    pfns = np.arange(1, 512 * 5 - 3, dtype=np.int64) * 3
    meta = pack_pfns(pfns, pfns % 2 == 0)

    def in_pieces(meta: Bytes) -> tuple[list[int], list[bool]]:
        found: tuple[list[int], list[bool]] = ([], [])
        for first in range(0, len(meta), pages):
            before = found[0][-1] if found[0] else -1
            some, zero = unpack_pfns(
                meta[first : first + pages], "it", first_page=first, meta_pages=len(meta), before=before
            )
            found[0].extend(some.tolist())
            found[1].extend(zero.tolist())
        return found

    assert in_pieces(meta) == (pfns.tolist(), (pfns % 2 == 0).tolist())
    for entry, value, message in ((1024, 7, "entry 1024 of the list is out of order"), (1536, 1 << 60, "entry 1536")):
        broken = meta.copy()
        broken.reshape(-1).view("<u8")[entry] = value
        with pytest.raises(CorruptImage, match=message):
            in_pieces(broken)
    broken = meta.copy()
    broken.reshape(-1).view("<u8")[700] = (1 << 64) - 1
    with pytest.raises(CorruptImage, match="entry 700"):
        in_pieces(broken)


def test_units_behind_the_end_of_a_list_are_not_unpacked(tmp_path: Path) -> None:
    """A list is unpacked in pieces: a fault in the first ends the work, however many units are said to follow."""
    (tmp_path / "image").write_bytes(naive.build(dict.fromkeys(range(1, 40_000)), naive.Layout()))
    decoded = 0
    decode = UnitStream.decode

    def counted(self: UnitStream, first_unit: int, last_unit: int, out: Bytes | None = None) -> Batch:
        nonlocal decoded
        decoded += last_unit - first_unit
        return decode(self, first_unit, last_unit, out)

    with mock.patch.object(image_module, "LIST_UNITS", 1), mock.patch.object(UnitStream, "decode", counted):
        with open_image(tmp_path / "image") as image:
            assert image.pfns.tolist() == list(range(1, 40_000))
        assert decoded == 3
        decoded = 0
        fault = CorruptImage("fault of the first piece")
        with mock.patch.object(image_module, "unpack_pfns", side_effect=fault), pytest.raises(CorruptImage):
            open_image(tmp_path / "image")
        assert decoded == 1
