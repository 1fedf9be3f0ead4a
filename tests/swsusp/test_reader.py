# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader against images that it did not write: real kernels' and those of a second, naive implementation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.swsusp import Image, inspect_image, looks_like_swap, open_image
from hibernaut.swsusp.stream import UnitStream
from hibernaut.volumes.files import open_plain
from tests.conftest import Golden
from tests.strategies import image_layouts, saved_pages
from tests.swsusp import naive

Opened = Callable[..., Image]

IMAGES = ("swap-6.1-lzo.img", "swap-6.12-lz4.img", "swap-6.1-low2m.img")


@pytest.fixture
def opened() -> Iterator[Opened]:
    """`open_image` whose images are closed after the test."""
    with ExitStack() as stack:
        yield lambda *args, **where: stack.enter_context(open_image(*args, **where))


@pytest.mark.parametrize("name", IMAGES)
def test_real_image_has_the_pages_that_were_expected(golden: Golden, name: str, opened: Opened) -> None:
    """Frame list and page bytes of a real kernel's image have the digests worked out by an independent reader."""
    expected = golden.expected[name]
    image = opened(golden(name))
    assert hashlib.sha256(image.pfns.astype("<u8").tobytes()).hexdigest() == expected["sha256_pfns"]
    assert hashlib.sha256(image.read_all().data).hexdigest() == expected["sha256_stored_pages"]
    streamed = hashlib.sha256()
    for _, pages in image.chunks():
        streamed.update(pages.data)
    assert streamed.hexdigest() == expected["sha256_stored_pages"]


@pytest.mark.parametrize("name", IMAGES)
def test_real_image_by_frame_is_the_same_as_in_order(golden: Golden, name: str, opened: Opened) -> None:
    """Random access (gather, run, blocks) gives what the stream gives; zero pages are zeroes, other frames absent."""
    image = opened(golden(name))
    memory = image.memory()
    stored = image.read_all()
    rows = np.random.default_rng(7).permutation(len(stored))[:3000]
    pages, present = memory.gather(image.stored_pfns[rows])
    assert present.all()
    assert (pages == stored[rows]).all()
    for row in rows[:50].tolist():
        assert (memory.run(int(image.stored_pfns[row]), 1)[0] == stored[row]).all()
    zero_pages, present = memory.gather(image.pfns[image.zero])
    assert present.all()
    assert not zero_pages.any()
    absent = np.setdiff1d(np.arange(0x10000), image.pfns)[:100]
    assert not memory.gather(absent)[1].any()
    assert memory.page(int(absent[0])) is None
    listed = np.concatenate([np.arange(first, first + len(block)) for first, block in memory.blocks()])
    assert (listed == image.pfns).all()


@given(pages=saved_pages(), layout=image_layouts())
def test_naive_image_reads_back(
    tmp_path_factory: pytest.TempPathFactory, pages: dict[int, bytes | None], layout: naive.Layout
) -> None:
    """Any pages, blocks in any order, header anywhere: what the naive builder put in comes out."""
    path = tmp_path_factory.mktemp("naive") / "image"
    path.write_bytes(naive.build(pages, layout))
    image = open_image(path, offset=layout.header_block)
    try:
        assert image.pfns.tolist() == sorted(pages)
        got, present = image.memory().gather(image.pfns)
        assert present.all()
        for pfn, page in zip(image.pfns.tolist(), got, strict=True):
            assert page.tobytes() == (pages[pfn] or bytes(4096))
        memory = image.memory()
        for pfn in image.pfns.tolist():
            run = memory.run(pfn, 40)
            assert len(run) >= 1
            assert run.tobytes() == b"".join(pages[pfn + at] or bytes(4096) for at in range(len(run)))
            assert not run.flags.writeable or not run.any()
        inspection = inspect_image(image.area.file, offset=layout.header_block)
        assert inspection.problems == ()
        assert inspection.crc_ok is (None if layout.compressor == "none" else True)
    finally:
        image.close()


def some_pages(count: int = 700) -> dict[int, bytes | None]:
    """Enough pages for two meta pages, several units and two map pages if not compressed."""
    return {3 * pfn: None if pfn % 11 == 0 else pfn.to_bytes(8, "little") * 512 for pfn in range(count)}


@pytest.mark.parametrize("compressor", ["lzo", "lz4"])
def test_units_of_zeroes_are_kept_once(tmp_path: Path, opened: Opened, compressor: str) -> None:
    """After the first unit of zeroes the others are the same array; a shorter one at the end, and others, are not."""
    units = 6
    pages: dict[int, bytes | None] = {pfn: bytes(4096) for pfn in range(32 * units + 7)}
    pages[4 * 32] = b"something" + bytes(4087)  # in unit 4, since the list of frames takes the first rows
    path = tmp_path / "image"
    path.write_bytes(naive.build(pages, naive.Layout(compressor=compressor)))
    stream = opened(path).stream
    found = [stream.unit(number) for number in range(len(stream.index))]
    assert [unit.any() for unit in found] == [number in (0, 4) for number in range(len(found))]
    assert found[2] is found[3] is found[5]
    assert found[1] is not found[2]  # it was decompressed
    assert [len(unit) for unit in found] == [32] * units + [8]
    for number, unit in enumerate(found):
        assert (unit == stream.decode(number, number + 1).pages).all()


def test_a_page_that_is_not_compressed_is_read_by_itself(tmp_path: Path, opened: Opened) -> None:
    """One block of the swap map is read for it; of a compressed image, those of its unit."""
    for compressor in ("none", "lzo"):
        path = tmp_path / compressor
        path.write_bytes(naive.build(some_pages(), naive.Layout(compressor=compressor)))
        memory = opened(path).memory()
        with mock.patch.object(
            UnitStream, "_read_entries", autospec=True, side_effect=UnitStream._read_entries
        ) as read:
            assert memory.page(3 * 100) is not None
        blocks = sum(last - first for _, first, last, _ in (call.args for call in read.call_args_list))
        index = memory.image.stream.index
        unit = (memory.image.meta_rows + memory.image.stored_frames.row(3 * 100)) // 32
        expected = index.first_entry[unit + 1] - index.first_entry[unit]
        assert blocks == (1 if compressor == "none" else expected)


def test_a_unit_of_zeroes_in_the_place_of_a_shorter_one_is_damage(tmp_path: Path, opened: Opened) -> None:
    """The last unit has eight rows: 32 rows of zeroes there are refused, although their form is known by then."""
    pages: dict[int, bytes | None] = {pfn: bytes(4096) for pfn in range(32 * 3 + 7)}
    path = tmp_path / "image"
    path.write_bytes(naive.build(pages, naive.Layout(compressor="lz4")))
    image = opened(path)
    index, entries = image.stream.index, image.swap_map.entries
    whole, last = (image.area.offset_of(int(entries[index.first_entry[unit]])) for unit in (1, len(index) - 1))
    damaged = bytearray(path.read_bytes())
    damaged[last : last + 4096] = damaged[whole : whole + 4096]
    path.write_bytes(damaged)
    stream = opened(path).stream
    assert not stream.unit(1).any()
    assert stream.unit(2) is stream.unit(2)
    with pytest.raises(CorruptImage, match="unit 3"):
        stream.unit(3)


def test_a_full_last_meta_page_has_no_end_mark(tmp_path: Path, opened: Opened) -> None:
    """512 frames fill one meta page: the kernel stores no end mark then, and none is needed."""
    pages = {pfn: bytes([pfn & 255]) * 4096 for pfn in range(512)}
    path = tmp_path / "image"
    path.write_bytes(naive.build(dict(pages), naive.Layout()))
    assert len(opened(path).pfns) == 512


def test_wrong_crc_is_reported_after_the_last_page(tmp_path: Path, opened: Opened) -> None:
    """A CRC that differs from the data's is an error of reading all, and a problem of inspection."""
    path = tmp_path / "image"
    path.write_bytes(naive.build(some_pages(), naive.Layout(crc_error=1)))
    image = opened(path)
    with pytest.raises(CorruptImage, match="CRC"):
        image.read_all()
    with pytest.raises(CorruptImage, match="CRC"):
        list(image.chunks())
    inspection = inspect_image(image.area.file)
    assert inspection.crc_ok is False
    assert [problem.where.endswith("byte 4060") for problem in inspection.problems] == [True]


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (b"SWAPSPACE2", "no image: signature is SWAPSPACE2"),
        (b"SWAP-SPACE", "no image: signature is SWAP-SPACE"),
        (b"S2SUSPEND\0", "uswsusp"),
        (b"LINHIB0001", "2.6.37"),
        (b"\0" * 10, "no swap area"),
    ],
)
def test_an_area_without_an_image_is_refused_by_name(tmp_path: Path, signature: bytes, words: str) -> None:
    """Plain swap, other containers and no swap at all are refused by name, at the signature's byte."""
    device = bytearray(16 * 4096)
    device[4086:4096] = signature
    path = tmp_path / "area"
    path.write_bytes(device)
    with pytest.raises(FormatError, match=words) as caught:
        open_image(path)
    assert caught.value.offset == 4086
    with open_plain(path) as file:
        assert looks_like_swap(file) is (signature != b"\0" * 10)


def test_a_consumed_image_differs_from_plain_swap(tmp_path: Path) -> None:
    """A resume restores the swap signature and leaves the rest of the header, so a consumed image is detected."""
    device = bytearray(naive.build(some_pages(), naive.Layout()))
    device[4086:4096] = b"SWAPSPACE2"
    path = tmp_path / "area"
    path.write_bytes(device)
    with pytest.raises(FormatError, match="a resume consumed it or the kernel refused it"):
        open_image(path)


def test_old_kernels_hardware_signature_is_not_trusted(tmp_path: Path, opened: Opened) -> None:
    """`hw_sig` counts only under flag 8; without it the bytes are whatever mkswap left."""
    device = bytearray(naive.build(some_pages(), naive.Layout()))
    device[4056:4060] = b"\xff" * 4
    path = tmp_path / "area"
    path.write_bytes(device)
    assert opened(path).header.hw_sig is None
    device[4072] |= 8
    path.write_bytes(device)
    assert opened(path).header.hw_sig == 0xFFFFFFFF


def test_compressed_files_are_read_as_they_are(golden: Golden, opened: Opened) -> None:
    """A zstd-compressed image opens without being unpacked by hand."""
    image = opened(golden.packed("swap-6.1-lzo.img"))
    assert image.info.cr3 == int(golden.expected["swap-6.1-lzo.img"]["cr3"], 16)


@given(seed=st.integers(0, 1 << 30))
def test_memory_of_an_image_agrees_with_the_naive_parser(
    tmp_path_factory: pytest.TempPathFactory, seed: int, opened: Opened
) -> None:
    """Frames in any order and number, absent ones among them."""
    rng = np.random.default_rng(seed)
    pages = some_pages(int(rng.integers(1, 200)))
    path = tmp_path_factory.mktemp("memory") / "image"
    path.write_bytes(naive.build(pages, naive.Layout(compressor="lz4", shuffle_seed=seed)))
    image = opened(path)
    wanted = rng.integers(0, 600, 300)
    got, present = image.memory().gather(wanted)
    for pfn, page, there in zip(wanted.tolist(), got, present.tolist(), strict=True):
        assert there == (pfn in pages)
        assert page.tobytes() == (pages.get(pfn) or bytes(4096))
    image.close()
