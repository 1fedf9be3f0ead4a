# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory and work against the size of the file, not of what it claims: tables, counts of pages, decompression bombs.

Others of this kind stand beside their readers: tests/swsusp/test_hostile.py, tests/memory/test_hostile_dumps.py,
tests/kernel/test_hostile_lists.py, tests/paging/test_hostile_tables.py.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.exploration.results import read_records
from hibernaut.kernel import kallsyms
from hibernaut.kernel.bzimage import unpack_bzimage
from hibernaut.kernel.symbol_names import names_of_system_map
from hibernaut.linux.roots import find_roots
from hibernaut.memory.segments import SegmentMemory
from hibernaut.paging import scan as scan_module
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from hibernaut.swsusp.salvage import SalvagedMemory, salvage_image
from hibernaut.volumes import compressed
from hibernaut.volumes.files import open_plain, read_at_most
from hibernaut.volumes.partitions import partitions_of
from tests.allocation import at_most
from tests.kernel.vmlinux import bzimage, kernel_image
from tests.machines import BASE4
from tests.memory.naive import IDENTIFIER, PAGE, Load, elf_core, kdump, page_of
from tests.paging.layouts import TABLE_FLAGS, canonical_pages, segments
from tests.swsusp import naive
from tests.volumes.disks import SECTOR, mbr_entry, write_table

MIB = 1 << 20


@pytest.mark.parametrize("levels", [4, 5])
def test_a_table_that_names_itself_in_every_slot_of_every_level(levels: int) -> None:
    """512^4 or 512^5 paths through one page: few spans cover all addresses, in little memory."""
    tables = PageTables(SegmentMemory([*segments(np.full((1, 512), TABLE_FLAGS, dtype=np.uint64))]), 0, levels)
    with at_most(8 * MIB):
        spans = tables.scan()
        assert int(spans.pages.sum()) == canonical_pages(levels)
        assert len(spans) < 100
        assert tables.walk(BASE4).entry == TABLE_FLAGS
        assert find_roots(tables.memory) == []


@pytest.mark.parametrize("levels", [4, 5])
def test_one_table_in_every_slot_of_every_level(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One table a level, named by all slots of the one above: each is read once for each time that it is expanded."""
    words = np.zeros((levels, 512), dtype=np.uint64)
    for pfn in range(levels):
        words[pfn] = (pfn + 1) << 12 | TABLE_FLAGS
    words[levels - 1] = (np.arange(512, dtype=np.uint64) << np.uint64(12)) | np.uint64(TABLE_FLAGS)
    states, counted = scan_module.entry_states, 0

    def counting(entries: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], level: Level) -> object:
        nonlocal counted
        counted += entries.size
        return states(entries, level)

    monkeypatch.setattr(scan_module, "entry_states", counting)
    with at_most(32 * MIB):
        spans = PageTables(SegmentMemory([*segments(words)]), 0, levels).scan()
    assert int(spans.pages.sum()) == canonical_pages(levels)
    assert 512 * levels <= counted < 512 * 16 * levels * 2


def claiming(**counts: int) -> bytes:
    """Return an image that says that it has so many pages."""
    device = bytearray(naive.build({pfn: page_of(pfn) for pfn in range(8, 40)}, naive.Layout(compressor="lzo")))
    (first_map,) = struct.unpack_from("<Q", device, 4064)
    (info,) = struct.unpack_from("<Q", device, first_map * PAGE)
    for name, value in counts.items():
        struct.pack_into("<Q", device, info * PAGE + {"stored": 416, "pages": 424, "size": 432}[name], value)
    return bytes(device)


@pytest.mark.parametrize("pages", [1 << 40, (1 << 45) - 1, 1 << 45, (1 << 51) - 1])
def test_an_image_of_2_45_pages(tmp_path: Path, pages: int) -> None:
    """Counts that agree with each other and not with the map are refused; a salvage reads what is there."""
    stored = pages - 1 - -(-pages // 513)
    path = tmp_path / "image"
    path.write_bytes(claiming(pages=pages, size=pages * PAGE % (1 << 64), stored=stored))
    with at_most(32 * MIB), pytest.raises(CorruptImage):
        open_image(path)
    with at_most(128 * MIB):
        try:
            with salvage_image(path) as image:
                found = SalvagedMemory(image).ranges.total_pages
        except HibernautError:
            found = 0
    assert found <= 32


def test_a_segment_of_2_45_pages(tmp_path: Path) -> None:
    """Bytes of a header that the file does not have add no page."""
    path = tmp_path / "core"
    path.write_bytes(elf_core([Load(0, page_of(0), memsz=(1 << 57) - 1), Load(1 << 20, page_of(256))]))
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 64 + 56 + 32, (1 << 57) - 1)
    (tmp_path / "cut").write_bytes(data)
    with at_most(16 * MIB), open_memory(path) as source:
        assert source.memory.ranges.total_pages == 2
    with at_most(16 * MIB):
        try:
            with open_memory(tmp_path / "cut") as source:
                found = source.memory.ranges.total_pages
        except HibernautError:
            found = 0
    assert found <= len(data) // PAGE


BOMB_BYTES = 300 * MIB


def zeroes(pack: Callable[[bytes], bytes], flush: Callable[[], bytes]) -> bytes:
    """Return a stream of `BOMB_BYTES` zero bytes, packed piece by piece."""
    return b"".join(pack(bytes(MIB)) for _ in range(BOMB_BYTES // MIB)) + flush()


def gzip_bomb() -> bytes:
    """Return 300 MiB of zeroes in some 300 KiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return zeroes(packer.compress, packer.flush)


def xz_bomb() -> bytes:
    """Return 300 MiB of zeroes in some 45 KiB."""
    packer = lzma.LZMACompressor(preset=0)
    return zeroes(packer.compress, packer.flush)


def zstd_bomb() -> bytes:
    """Return 300 MiB of zeroes in some 28 KiB."""
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return zeroes(packer.compress, packer.flush)


@pytest.mark.parametrize("bomb", [gzip_bomb, xz_bomb, zstd_bomb])
def test_a_bomb_around_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: Callable[[], bytes]) -> None:
    """Unpacking ends at the limit, in bounded memory and with no file left; zeroes take no space below it."""
    path = tmp_path / "bomb"
    path.write_bytes(bomb())
    assert path.stat().st_size < MIB
    monkeypatch.setenv("HIBERNAUT_UNPACK_LIMIT", "100M")
    with at_most(32 * MIB), pytest.raises(FormatError, match="unpacks to more than 104857600 bytes"):
        open_memory(path)
    monkeypatch.setenv("HIBERNAUT_UNPACK_LIMIT", "301M")
    with at_most(32 * MIB), open_plain(path) as file:
        assert file.size_bytes == BOMB_BYTES
        assert file.data_extents() == []


def test_a_flattened_dump_that_writes_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record may name any offset below a limit, ours or the file system's; the rest of the file is a hole."""
    path = tmp_path / "flat"

    def too_large(_fd: int, _data: object, offset: int = 0) -> None:
        raise OSError(errno.EFBIG, "File too large", str(offset))

    for offset, words in ((1 << 62, "impossible record"), (1 << 49, "impossible record"), (1 << 40, "")):
        if offset == 1 << 49:
            monkeypatch.setattr(compressed, "write_all", too_large)
        record = struct.pack(">qq", offset, 8) + b"8 bytes!" + struct.pack(">qq", -1, -1)
        path.write_bytes(struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(PAGE, b"\0") + record)
        with at_most(8 * MIB):
            if words:
                with pytest.raises(FormatError, match=words):
                    open_plain(path)
                monkeypatch.undo()
                continue
            with open_plain(path) as file:
                assert file.size_bytes == offset + 8


PAGE_BOMBS = {1: zlib.compress(bytes(64 * MIB)), 0x20: zstandard.compress(bytes(64 * MIB))}


@pytest.mark.parametrize("flags", PAGE_BOMBS)
def test_a_bomb_in_a_page_of_kdump(tmp_path: Path, flags: int) -> None:
    """A page that unpacks to 64 MiB is damaged; no more than a page of it is unpacked."""
    path = tmp_path / "dump"
    path.write_bytes(kdump({3: bytes(PAGE)}, flags=flags, packed=[PAGE_BOMBS[flags]]))
    with open_memory(path) as source, at_most(4 * MIB), pytest.raises(CorruptImage):
        source.memory.run(3, 1)


def test_a_bomb_in_a_chunk_of_avml(tmp_path: Path) -> None:
    """A chunk of Snappy that claims 4 GiB."""
    body = struct.pack("<I", 0) + b"\xff\xff\xff\xff\x0f" + b"\xfe\x01\0" * 100
    stream = IDENTIFIER + bytes([0]) + len(body).to_bytes(3, "little") + body
    path = tmp_path / "dump"
    head = struct.pack("<IIQQ8x", 0x4C4D5641, 2, 0, (1 << 32) - 1)
    path.write_bytes(head + stream + struct.pack("<Q", len(stream)))
    with at_most(8 * MIB), pytest.raises(HibernautError) as error, open_memory(path) as source:
        source.memory.run(0, 1)
    assert "\n" not in str(error.value)


KERNEL_BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(b"\x7fELF" + bytes(200 * MIB)),
    "bzip2": lambda: bz2.compress(b"\x7fELF" + bytes(200 * MIB)),
    "xz": lambda: lzma.compress(b"\x7fELF" + bytes(200 * MIB), preset=0),
    "lzma": lambda: lzma.compress(b"\x7fELF" + bytes(200 * MIB), lzma.FORMAT_ALONE, preset=0),
    "zstd": lambda: zstandard.compress(b"\x7fELF" + bytes(200 * MIB)),
}


@pytest.mark.parametrize("name", KERNEL_BOMBS)
def test_a_bomb_in_a_bzimage(tmp_path: Path, name: str) -> None:
    """A kernel of many times its payload is refused, and little more than may be is unpacked."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(KERNEL_BOMBS[name]()))
    with at_most(160 * MIB), pytest.raises(FormatError, match=r"the bzImage's payload is damaged: it unpacks to more"):
        unpack_bzimage(path)


def test_a_dictionary_that_a_payload_claims(tmp_path: Path) -> None:
    """LZMA's header names the size of its dictionary: 4 GiB are refused."""
    payload = bytearray(lzma.compress(b"\x7fELF" + bytes(1000), lzma.FORMAT_ALONE, preset=0))
    payload[:5] = b"\x5d\x00\x00\x00\xf0"
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(bytes(payload)))
    with pytest.raises(FormatError, match="the bzImage's payload is damaged"):
        unpack_bzimage(path)


def hostile_kallsyms(units: int) -> bytes:
    """Return an image with a token table, in which names and a number of them may begin at every eighth byte."""
    tokens = [bytes([code]) if 0x21 <= code < 0x7F else b"" for code in range(256)]
    tokens[0] = b"a"
    starts = np.cumsum([0, *(len(token) + 1 for token in tokens[:-1])]).astype("<u2")
    table = b"".join(token + b"\0" for token in tokens)
    return b"\x7fELF\0\0\0\0" + (b"\x07T" + bytes(6)) * units + table + starts.tobytes()


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Names that are walked in `hostile_kallsyms` during a test, by call; each has eight bytes."""
    found: list[int] = []
    bounds = kallsyms._bounds

    def counting(names: bytes | memoryview, count: int) -> list[int]:
        found.append(min(count, len(names) // 8))
        return bounds(names, count)

    monkeypatch.setattr(kallsyms, "_bounds", counting)
    return found


def test_names_that_may_begin_anywhere(walked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Work has a bound in places and one in names: without them, all names would be walked."""
    image = hostile_kallsyms(4000)

    def names_walked() -> int:
        walked.clear()
        with pytest.raises(FormatError, match="no kallsyms"):
            kallsyms.names_in_image(image)
        return sum(walked)

    assert names_walked() > 3000
    with monkeypatch.context() as patch:
        patch.setattr(kallsyms, "MOST_STARTS", 500)
        assert 500 < names_walked() < 500 + 4 * kallsyms.MARKER_SYMBOLS
    monkeypatch.setattr(kallsyms, "MOST_WALKED", 50_000)
    assert 100 < names_walked() < 4 * kallsyms.MARKER_SYMBOLS
    with pytest.raises(FormatError, match="no kallsyms"):
        kallsyms.names_in_image(b"\x7fELF" + kallsyms.DIGITS * 5000)


def test_names_without_markers_are_not_walked(walked: list[int]) -> None:
    """Each name is walked once on the way to the second marker; the rest only where two markers are behind them."""
    with pytest.raises(FormatError, match="no kallsyms"):
        kallsyms.names_in_image(hostile_kallsyms(2000))
    assert 0 < sum(walked) <= 2001 + kallsyms.MARKER_SYMBOLS
    assert len(kallsyms.names_in_image(kernel_image([b"Tfunction_%d" % number for number in range(1100)]))) == 1100


def test_places_of_digits_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that consists of the digits of a token table is given up, wherever its table lies."""
    image = kernel_image([b"Tfunction_%d" % number for number in range(1100)])
    digits = b"\x7fELF" + kallsyms.DIGITS * 50
    assert len(kallsyms.names_in_image(digits + image)) == 1100
    monkeypatch.setattr(kallsyms, "MOST_DIGITS", 20)
    with pytest.raises(FormatError, match="no kallsyms"):
        kallsyms.names_in_image(digits + image)


def test_reading_at_most_so_much_takes_no_more_than_there_is(tmp_path: Path) -> None:
    """`IO.read` makes a buffer for all the bytes that it is asked for, however short the file is."""
    path = tmp_path / "short"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file, at_most(4 * MIB):
        assert read_at_most(file, 4) == b"0123"
        assert read_at_most(file, 1 << 40) == b"456789"
        assert read_at_most(file, 1 << 40) == b""
    with at_most(4 * MIB), pytest.raises(FormatError, match="0 symbols in it"):
        names_of_system_map(path)


def test_a_gpt_without_room_for_its_copy(tmp_path: Path) -> None:
    """A disk that is shorter than a sector of 4096 bytes has no copy of the header before its start."""
    disk = bytearray(SECTOR)
    write_table(disk, 0, [mbr_entry(0xEE, 1, 0xFFFFFFFF)])
    path = tmp_path / "disk"
    path.write_bytes(disk)
    with open_plain(path) as file, pytest.raises(FormatError, match="no GPT header"):
        partitions_of(file)


def test_an_area_with_a_header_and_nothing_else(tmp_path: Path) -> None:
    """A salvage of an image that is not compressed, of which no row is left."""
    device = bytearray(4 * PAGE)
    struct.pack_into("<QI10s10s", device, 4064, 2, 2, b"SWAPSPACE2", b"S1SUSPEND\0")
    path = tmp_path / "image"
    path.write_bytes(device)
    with salvage_image(path) as image:
        assert image.problems
        assert SalvagedMemory(image).ranges.total_pages == 0


def test_the_name_of_a_way_is_text(tmp_path: Path) -> None:
    """Records are written again as UTF-8, which a lone surrogate cannot be."""
    path = tmp_path / "results"
    path.write_text('{}\n{"unit":[],"regions":[],"places":[],"ways":{"\\ud800":{}}}\n')
    with pytest.raises(FormatError, match="line 2 is not a record of this sweep: ways is not Unicode text"):
        list(read_records(path))
