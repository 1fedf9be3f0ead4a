# SPDX-License-Identifier: GPL-2.0-or-later
"""The targets: one a reader. Each reads all that a command would read of a file."""

from __future__ import annotations

import contextlib
import functools
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.replay import replay
from hibernaut.exploration.results import read_records
from hibernaut.hibernation.trace import read_trace
from hibernaut.kernel.btf import Btf
from hibernaut.kernel.btf_layouts import member_offsets
from hibernaut.kernel.bzimage import bzimage_release, unpack_bzimage
from hibernaut.kernel.kallsyms import names_in_image
from hibernaut.kernel.lzo_rle import decompress_lzo_rle
from hibernaut.kernel.resuming_machine import resuming_machine
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.gaps import find_gaps
from hibernaut.linux.not_present import meaning_of, not_present_entry, swap_flags
from hibernaut.linux.roots import find_roots
from hibernaut.memory import declarations as c
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.raw import RawMemory
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfos, is_vmcoreinfo, page_table_root, parse_vmcoreinfo, sme_mask
from hibernaut.paging.tables import PageTables, Stop
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from hibernaut.swsusp.area import locate_area
from hibernaut.swsusp.checker import inspect_image
from hibernaut.swsusp.checks import ResumingMachine
from hibernaut.swsusp.declarations import HEADER, INFO
from hibernaut.swsusp.index_file import INDEX_HEADER
from hibernaut.swsusp.rules import ImageRules, image_rules_for_release
from hibernaut.swsusp.salvage import SalvagedMemory, salvage_image, scan_area
from hibernaut.swsusp.uswsusp_declarations import IMAGE_HEADER, USWSUSP_TAIL
from hibernaut.swsusp.verdict import verdict_on
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.layers import layers
from hibernaut.volumes.partitions import find_partition, has_partition_table, partitions_of
from tests.fuzz import mend, seeds
from tests.fuzz.mutate import Place, fields_of, mutate_bytes, mutate_json, words_of
from tests.fuzz.seeds import MAGICS, Seeds

__all__ = ["MIB", "TARGETS", "Target"]

MIB = 1 << 20
PAGE = 4096
PROBED = (0, 0x1000, 0x7FFF00000000, 0xFFFF888000000000, 0xFFFF888000014000, 0xFF11000000000000, 0xFFFFFFFF81000000)
"""Addresses that are looked up in tables."""

RELEASES = ("3.10", "6.12")
"""Releases whose kernels are asked for their verdict on an image, one an execution."""

Option = TypeVar("Option")


def _no_places(_data: bytes) -> list[Place]:
    return []


def _no_mending(_data: bytearray) -> None:
    return


@dataclass(frozen=True)
class Target:
    """A reader under fire.

    Attributes:
        name: name of the target, and of the folder of its corpus.
        seeds: returns files that the reader accepts.
        run: reads everything of a file.
        places: returns the places of the numbers in a file.
        mend: makes marks and checksums right after a mutation.
        raises: exceptions that the reader may raise.
        base_bytes: memory that reading may take, whatever the size of the file.
        factor: bytes of memory that reading may take for each byte of the file.
        most_bytes: size of the largest file that a mutation makes.
        is_json: whether files are JSON, whose values are mutated.
    """

    name: str
    seeds: Callable[[], Seeds]
    run: Callable[[Path], object]
    places: Callable[[bytes], list[Place]] = _no_places
    mend: Callable[[bytearray], None] = _no_mending
    raises: tuple[type[Exception], ...] = (HibernautError,)
    base_bytes: int = 64 * MIB
    factor: int = 64
    most_bytes: int = 1 << 17
    is_json: bool = False

    def mutated(self, data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
        """Return a mutation of a file, repaired seven times out of eight."""
        if self.is_json and rng.random() < 0.9:
            return mutate_json(data, rng, others, self.most_bytes)
        out = mutate_bytes(data, rng, self.places(data), others, self.most_bytes)
        return self.repaired(out) if rng.random() < 0.875 else out

    def repaired(self, data: bytes) -> bytes:
        """Return a file with its marks and checksums right again."""
        out = bytearray(data)
        self.mend(out)
        return bytes(out)


def _choice(data: bytes, options: Sequence[Option]) -> Option:
    """Return one of the options, always the same for a file: a reader of several kinds reads it as one of them."""
    return options[zlib.crc32(data) % len(options)]


@functools.cache
def _rules_of(release: str) -> ImageRules:
    return image_rules_for_release(release)


def _read_all(memory: PhysicalMemory) -> None:
    """Read all pages in order, and some by their number."""
    total = memory.ranges.total_pages
    for _, pages in memory.stored_blocks(64):
        pages[:, ::1024].any()
    some = [pfn for start, length in memory.ranges for pfn in (start - 1, start, start + length - 1, start + length)]
    memory.gather(np.array([pfn for pfn in some[:64] if pfn >= 0], dtype=np.int64))
    assert total >= memory.occupied().total_pages


def _image(path: Path) -> None:
    with open_plain(path) as file:
        found = inspect_image(file)
        verdict_on(found, _rules_of(_choice(path.read_bytes(), RELEASES)), ResumingMachine("an unknown machine"))
        if found.image is not None and not found.problems:
            _read_all(found.image.memory())


def _salvage(path: Path) -> None:
    if _choice(path.read_bytes(), (False, True)):
        with open_plain(path) as file:
            scan_area(locate_area(file))
        return
    with salvage_image(path, used_up=True) as image:
        _read_all(SalvagedMemory(image))
        assert image.findings is not None
        assert image.blocks is not None


def _index(path: Path) -> None:
    image = path.with_name("image-of-the-index")
    if not image.exists():
        image.write_bytes(seeds.index_image())
    with open_image(image, index=path) as opened:
        _read_all(opened.memory())


def _dump(path: Path) -> None:
    with open_memory(path) as source:
        _read_all(source.memory)


def _raw(path: Path) -> None:
    with open_memory(path) as source:
        memory = source.memory
        levels = _choice(path.read_bytes(), (None, 4, 5, 0))
        if levels == 0:
            find_vmcoreinfos(memory)
            return
        for root in find_roots(memory, levels):
            found = None
            with contextlib.suppress(FormatError):
                found = DirectMap.find(memory, root.cr3, root.levels)
            if isinstance(memory, RawMemory):
                with contextlib.suppress(FormatError):
                    find_gaps(memory, root.cr3, root.levels, found, source.name)


def _tables(path: Path) -> None:
    data = path.read_bytes()
    pages = np.frombuffer(data, dtype=np.uint8, count=len(data) // PAGE * PAGE).reshape(-1, PAGE)
    if not len(pages):
        return
    memory = SegmentMemory([Segment(0, pages)])
    levels, walks = _choice(data, ((4, False), (5, False), (4, True), (5, True)))
    tables = PageTables(memory, 0, levels)
    if walks:
        for vaddr in PROBED:
            meaning_of(tables, tables.walk(vaddr))
        return
    with contextlib.suppress(FormatError):
        spans = tables.scan()
        assert int(spans.pages.sum()) == 1 << 9 * levels


def _partitions(path: Path) -> None:
    with open_plain(path) as disk:
        has_partition_table(disk)
        for number in partitions_of(disk):
            find_partition(disk, number)
    _layers(path)


def _layers(path: Path) -> None:
    for layer in layers(path, [b"passphrase"]):
        assert layer.size_bytes is not None
        assert "\n" not in (layer.problem or "")
        if layer.volume is not None:
            layer.volume.pread(0, PAGE)


def _vmcoreinfo(path: Path) -> None:
    data = path.read_bytes()
    is_vmcoreinfo(data)
    facts = parse_vmcoreinfo(data)
    page_table_root(facts)
    sme_mask(facts)
    pages = np.frombuffer(data.ljust(-(-len(data) // PAGE) * PAGE or PAGE, b"\0"), dtype=np.uint8).reshape(-1, PAGE)
    for text in find_vmcoreinfos(SegmentMemory([Segment(3, pages)])):
        assert is_vmcoreinfo(text)
        page_table_root(parse_vmcoreinfo(text))


def _kernel(path: Path) -> None:
    data = path.read_bytes()
    if data.startswith(b"\x7fELF"):
        names_in_image(data, str(path))
        return
    with contextlib.suppress(FormatError):
        bzimage_release(path)
    names_in_image(unpack_bzimage(path), str(path))


def _btf(path: Path) -> None:
    btf = Btf(path.read_bytes())
    for number in range(btf.first, min(btf.end, btf.first + 512)):
        for question in (btf.name, btf.target, btf.size_bytes, btf.members, btf.enumerators, btf.parameters, btf.array):
            with contextlib.suppress(FormatError):
                question(number)
        with contextlib.suppress(FormatError):
            member_offsets(btf, number)
    btf.find("outer")
    with contextlib.suppress(FormatError):
        btf.find_enumerator("RED")


@functools.cache
def _table_of_entry() -> tuple[bytearray, PageTables]:
    """Return a page table whose first entry can be set, and tables that lead to it from address 0 and the last half."""
    content = bytearray(4 * PAGE)
    for pfn in range(3):
        for index in (0, 256, 511):
            struct.pack_into("<Q", content, pfn * PAGE + 8 * index, (pfn + 1) << 12 | 7)
    pages = np.frombuffer(content, dtype=np.uint8).reshape(-1, PAGE)
    return content, PageTables(SegmentMemory([Segment(0, pages)]), 0, 4)


def _entries(path: Path) -> None:
    content, tables = _table_of_entry()
    data = path.read_bytes()
    for at in range(0, min(len(data), 1024) - 7, 8):
        content[3 * PAGE : 3 * PAGE + 8] = data[at : at + 8]
        for vaddr in (0, 0xFFFF800000000000):
            walk = tables.walk(vaddr)
            if walk.stop == Stop.NOT_PRESENT:
                found = not_present_entry(walk, tables.memory.ranges)
                assert all(one.pfn >= 0 for one in found.frames)
                assert all(0 <= one.area < 32 and one.slot >= 0 for one in found.slots)
                swap_flags(walk.entry)


def _lzo_rle(path: Path) -> None:
    assert len(decompress_lzo_rle(path.read_bytes(), PAGE)) <= PAGE


def _replay(path: Path) -> None:
    replay(path)


def _results(path: Path) -> None:
    for _, record in read_records(path):
        record.line().encode()
        "".join(record.ways).encode()


def _machine(path: Path) -> None:
    content = path.read_bytes()
    if content.lstrip()[:1] == b"{":
        resuming_machine(str(path))


def _trace(path: Path) -> None:
    read_trace(path)


def _image_places(data: bytes) -> list[Place]:
    """Return the numbers of header, swap map, info page, unit lengths and list of frames, where the header has them."""
    places = fields_of(HEADER)
    if len(data) < PAGE:
        return places
    (block,) = struct.unpack_from("<Q", data, 4064)
    if (block + 1) * PAGE > len(data):
        return places
    words = struct.unpack_from("<512Q", data, block * PAGE)
    entries = [word for word in words[:24] if 0 < word < len(data) // PAGE]
    places += words_of(block * PAGE, len(entries) + 1) * 2 + [(block * PAGE + 4088, 8)] * 4
    if entries:
        places += fields_of(INFO, entries[0] * PAGE) * 2
    for entry in entries[1:]:
        places += words_of(entry * PAGE, 10)
    return places


def _userland_places(data: bytes) -> list[Place]:
    places = fields_of(USWSUSP_TAIL)
    if len(data) < PAGE:
        return places
    (header,) = struct.unpack_from("<q", data, 4068)
    if not 0 < header <= len(data) - PAGE:
        return places
    places += fields_of(IMAGE_HEADER, header) * 4
    (extents,) = struct.unpack_from("<q", data, header + 16)
    if 0 < extents <= len(data) - PAGE:
        places += words_of(extents, 16) * 2 + [(extents + 4080, 8)] * 4
        (first,) = struct.unpack_from("<q", data, extents)
        if 0 < first <= len(data) - PAGE:
            places += fields_of(INFO, first) + words_of(first + PAGE, 10)
    return places


def _elf_places(data: bytes) -> list[Place]:
    places = fields_of(c.ELF_HEADER)
    if len(data) < 64:
        return places
    (at,) = struct.unpack_from("<Q", data, 32)
    (count,) = struct.unpack_from("<H", data, 56)
    for number in range(min(count, 4)):
        places += fields_of(c.PROGRAM_HEADER, at + number * 56)
    places += fields_of(c.SECTION_HEADER, 64)
    notes = at + min(count, 4) * 56
    return places + words_of(notes, 8, 4)


def _lime_places(data: bytes) -> list[Place]:
    places: list[Place] = []
    at = 0
    while at + 32 <= len(data) and len(places) < 200:
        places += fields_of(c.LIME_RANGE, at)
        start, last = struct.unpack_from("<QQ", data, at + 8)
        if not start <= last:
            break
        at += 32 + last - start + 1
    return places


def _avml_places(data: bytes) -> list[Place]:
    places = fields_of(c.LIME_RANGE)
    at = 42
    while at + 8 <= len(data) and len(places) < 200:
        places += [(at, 1), (at + 1, 2), (at + 3, 1), (at + 4, 4), *words_of(at + 8, 8, 1)]
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "little")
    return [*places, (max(len(data) - 8, 0), 8)]


def _kdump_places(data: bytes) -> list[Place]:
    places = [place for place in fields_of(c.KDUMP_HEADER) if place[0] >= 424] * 2
    places += fields_of(c.KDUMP_SUB_HEADER, PAGE) * 2
    places += words_of(2 * PAGE, 4, 1) + words_of(3 * PAGE, 4, 1)
    for row in range(4):
        places += fields_of(c.KDUMP_PAGE, 4 * PAGE + 24 * row) * 2
    return [place for place in places if sum(place) <= len(data)]


def _table_places(data: bytes) -> list[Place]:
    words = np.frombuffer(data, dtype="<u8", count=len(data) // 8)
    used = np.flatnonzero(words)[:200] * 8
    return words_of(0, 4) + [(int(at), 8) for at in used]


def _disk_places(data: bytes) -> list[Place]:
    places: list[Place] = []
    for record in range(0, min(len(data), 24 * 512), 512):
        if data[record + 510 : record + 512] == b"\x55\xaa":
            for at in range(record + 446, record + 510, 16):
                places += [(at + 4, 1), (at + 8, 4), (at + 12, 4)]
    for sector in (512, 4096):
        if data[sector : sector + 8] == b"EFI PART":
            places += words_of(sector + 24, 4) + [(sector + 72, 8), (sector + 80, 4), (sector + 84, 4)] * 4
            for number in range(4):
                places += words_of(2 * sector + 128 * number + 32, 3)
    return places


def _lvm_places(_data: bytes) -> list[Place]:
    return [*words_of(520, 3, 4), *words_of(576, 7), *words_of(4116, 1, 4), *words_of(4120, 4), (4156, 4), (4160, 4)]


def _container_places(data: bytes) -> list[Place]:
    places = words_of(64, 5, 4) + words_of(340, 16, 4) + words_of(512, 4, 4)
    return places + words_of(max(len(data) - 512, 0) + 8, 12, 4)


def _btf_places(data: bytes) -> list[Place]:
    return [(0, 2), (2, 1), *words_of(4, 5, 4), *words_of(24, min(max(len(data) - 24, 0) // 4, 140), 4)]


def _index_places(_data: bytes) -> list[Place]:
    return fields_of(INDEX_HEADER) + words_of(INDEX_HEADER.itemsize, 1, 4) + words_of(INDEX_HEADER.itemsize + 4, 8)


def _kernel_places(data: bytes) -> list[Place]:
    if data.startswith(b"\x7fELF"):
        at = (len(data) - 8000) // 8 * 8
        return words_of(8008, 40, 4) + words_of(max(at - 512, 0), 128, 2)
    return [(0x1F1, 1), (0x206, 2), (0x20E, 2), (0x248, 4), (0x24C, 4), *words_of(2080, 32, 1)]


def _compressed_places(data: bytes) -> list[Place]:
    return words_of(0, min(len(data), 24), 1) + [(at, 8) for at in (4096, 4104) if at + 8 <= len(data)]


def _entry_places(data: bytes) -> list[Place]:
    return words_of(0, len(data) // 8)


TARGETS: dict[str, Target] = {
    one.name: one
    for one in (
        *(
            Target(f"image-{name}", functools.partial(seeds.images, magic), _image, _image_places, mend.mend_image)
            for name, magic in MAGICS.items()
        ),
        Target("salvage", seeds.used_up_images, _salvage, _image_places),
        Target("uswsusp", seeds.userland_images, _image, _userland_places, mend.mend_userland),
        Target("index", seeds.indices, _index, _index_places, mend.mend_index),
        Target("elf", seeds.elf_cores, _dump, _elf_places, mend.mend_elf),
        Target("lime", seeds.lime_dumps, _dump, _lime_places, mend.mend_lime),
        Target("avml", seeds.avml_dumps, _dump, _avml_places, mend.mend_avml),
        Target("kdump", seeds.kdumps, _dump, _kdump_places, mend.mend_kdump),
        Target("raw", seeds.raw_memories, _raw, _table_places),
        Target("tables", seeds.table_memories, _tables, _table_places),
        Target("partitions", seeds.disks, _partitions, _disk_places, mend.mend_partitions),
        Target("lvm", seeds.lvm_volumes, _layers, _lvm_places, mend.mend_lvm),
        Target("containers", seeds.virtual_disks, _layers, _container_places),
        Target("compressed", seeds.compressed_files, _dump, _compressed_places, base_bytes=320 * MIB),
        Target("vmcoreinfo", seeds.vmcoreinfos, _vmcoreinfo),
        Target("kernel", seeds.kernels, _kernel, _kernel_places, base_bytes=400 * MIB),
        Target("btf", seeds.type_sections, _btf, _btf_places, mend.mend_btf),
        Target("swap-entries", seeds.table_entries, _entries, _entry_places),
        Target("lzo-rle", seeds.lzo_rle_streams, _lzo_rle, raises=(HibernautError, ValueError), most_bytes=PAGE),
        Target("replay", seeds.saved_runs, _replay, is_json=True),
        Target("results", seeds.results_files, _results, is_json=True),
        Target("machine", seeds.machine_files, _machine, is_json=True),
        Target("trace", seeds.traces, _trace, is_json=True),
    )
}
"""The targets by name."""
