# SPDX-License-Identifier: GPL-2.0-or-later
"""Seeds: small files of each format, by the builders that the tests have. Each is accepted by its reader."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import uuid
import zlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cramjam
import zstandard

from hibernaut.hibernation import Remap
from hibernaut.hibernation.trace import trace_text
from hibernaut.linux.layout import HoleKind, HoleSpec
from hibernaut.swsusp.image import open_image
from tests.kernel.test_btf import some_types
from tests.kernel.vmlinux import bzimage, kernel_image
from tests.machines import BASE4
from tests.memory.naive import Load, avml, elf_core, flattened, framed, kdump, lime, note, page_of, qemu_cpu
from tests.paging.layouts import PSE, TABLE_FLAGS, TableLayout, inverted
from tests.report.machine_files import trace_by
from tests.swsusp import naive
from tests.swsusp.userland import Userland
from tests.swsusp.userland import build as build_userland
from tests.volumes.disks import SECTOR, mbr_entry, write_table

__all__ = ["MAGICS", "REPOSITORY", "Seeds"]

Seeds = dict[str, bytes]
"""Files by name."""
REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = 4096
MAGICS = {
    "2.6.24": 0x0123456789ABCDEF,
    "4.8": 0x123456789ABCDEF0,
    "4.10": 0x23456789ABCDEF01,
    "5.13": 0x23456789ABCDEF02,
    "next": 0x23456789ABCDEF03,
}
"""`RESTORE_MAGIC` by the kernel that brings it."""
PAGES: dict[int, bytes | None] = {pfn: None if pfn % 3 == 2 else page_of(pfn) for pfn in range(8, 14)}
VMCOREINFO = (
    b"OSRELEASE=6.1.0-56-amd64\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82a15700\n"
    b"SYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"
    b"NUMBER(sme_mask)=0\nKERNELOFFSET=0\nCRASHTIME=1700000000\n"
)


def images(magic: int) -> Seeds:
    """Return an image of each compressor, in a tidy and in a shuffled layout."""
    e820 = {0: b"", 1: bytes(range(16))}.get(magic & 0xF, struct.pack("<Q", 0xBA571FD2))
    return {
        name: naive.build(PAGES, naive.Layout(compressor=name, magic=magic, e820=e820, shuffle_seed=seed))
        for name, seed in (("none", 3), ("lzo", None), ("lz4", 5))
    }


def used_up_images() -> Seeds:
    """Return intact images, a used-up one, and one whose map page is lost."""
    found = images(MAGICS["5.13"])
    used_up = bytearray(found["lzo"])
    used_up[4086:4096] = b"SWAPSPACE2"
    lost = bytearray(found["none"])
    (map_block,) = struct.unpack_from("<Q", lost, 4064)
    lost[map_block * PAGE : (map_block + 1) * PAGE] = b"\xff" * PAGE
    return {**found, "used-up": bytes(used_up), "lost-map": bytes(lost)}


def userland_images() -> Seeds:
    """Return images of suspend-utils: plain, with MD5, and LZO in two maps of extents."""
    layouts = {
        "plain": Userland(extent_pages=2),
        "md5": Userland(flags=1, spare=True),
        "lzo": Userland(flags=3, buffer_pages=4, per_page=1, extent_pages=2),
    }
    return {name: bytes(build_userland(PAGES, layout).device) for name, layout in layouts.items()}


def indices() -> Seeds:
    """Return the index files of two images (`index_image`), as the library writes them."""
    found: Seeds = {}
    with TemporaryDirectory() as folder:
        path, index = Path(folder) / "image", Path(folder) / "index"
        path.write_bytes(index_image())
        open_image(path, index=index).close()
        found["lzo"] = index.read_bytes()
    return found


@cache
def index_image() -> bytes:
    """Return the image that the index files belong to."""
    return images(MAGICS["5.13"])["lzo"]


def elf_cores() -> Seeds:
    """Return cores of QEMU and kdump, one with many headers, one cut inside a page."""
    two = [Load(0, page_of(0) + page_of(1)), Load(1 << 32, page_of(1 << 20), vaddr=0xFFFF888100000000)]
    return {
        "qemu": elf_core(two, qemu_cpu(0x1000)),
        "kdump": elf_core(two, note(b"VMCOREINFO", 0, VMCOREINFO) + note(b"CORE", 1, bytes(336))),
        "many": elf_core(two, many=True, pad=12),
        "parts": elf_core([Load(0x10, page_of(0)[:0xFF0]), Load(0x1000, page_of(1), memsz=0x2000)]),
    }


def lime_dumps() -> Seeds:
    """Return dumps of one range and of two that share a page."""
    return {
        "one": lime([(0x3000, page_of(3))]),
        "two": lime([(0x3000, page_of(3) + page_of(4)[:100]), (0x4064, page_of(4)[100:]), (1 << 33, page_of(9))]),
    }


def avml_dumps() -> Seeds:
    """Return dumps in plain, compressed and skipped chunks."""
    low, high = page_of(3) + page_of(4), page_of(1 << 20)
    extra = b"\xfe\x03\0\0xyz"
    return {
        "plain": avml([(0x3000, low, framed(low, (1000, 5000), plain=True))]),
        "packed": avml([(0x3000, low, framed(low, (PAGE,), extra=extra)), (1 << 32, high, framed(high))]),
        "library": avml([(0x3000, low, bytes(cramjam.snappy.compress(low)))]),
    }


def kdumps() -> Seeds:
    """Return dumps of each compressor."""
    frames = {pfn: page_of(pfn) for pfn in (0, 1, 5, 9)}
    flags = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
    return {name: kdump(frames, flags=number, vmcoreinfo=VMCOREINFO) for name, number in flags.items()}


def frames_of(layout: TableLayout, pages: int = 16) -> bytes:
    """Return memory from frame 0 on, with the tables of a layout in it."""
    out = bytearray(pages * PAGE)
    for pfn, entries in layout.tables.items():
        for index, entry in entries.items():
            struct.pack_into("<Q", out, pfn * PAGE + 8 * index, entry)
    return bytes(out)


def table_memories() -> Seeds:
    """Return memory whose frame 0 is a root: small pages, large ones, holes, a loop, tables of 5 levels."""
    small = TableLayout(root=0, next_pfn=1)
    small.fill(BASE4, 1, 0, 16)
    small.put(BASE4 + (20 << 12), 1, inverted(20, 0x162))
    large = TableLayout(root=0, next_pfn=1)
    large.fill(BASE4, 2, 0, 1024)
    large.put(BASE4 + (1 << 30), 3, inverted(0x40000, PSE))
    large.put(0x7FFF00000000, 1, 0x3FFFFFFFF00)
    loop = TableLayout(root=0, next_pfn=1)
    loop.fill(BASE4, 1, 0, 8)
    loop.tables[0][300] = TABLE_FLAGS
    five = TableLayout(levels=5, root=0, next_pfn=1)
    five.fill(0xFF11000000000000, 1, 0, 16)
    return {
        "small": frames_of(small, 8),
        "large": frames_of(large, 8),
        "loop": frames_of(loop, 8),
        "five": frames_of(five, 8),
    }


def raw_memories() -> Seeds:
    """Return raw memory with a root in its midst, and with VMCOREINFO."""
    layout = TableLayout(root=4, next_pfn=5)
    layout.fill(BASE4, 1, 0, 16)
    named = bytearray(frames_of(layout))
    named[9 * PAGE : 9 * PAGE + len(VMCOREINFO)] = VMCOREINFO
    return {"tables": frames_of(layout), "vmcoreinfo": bytes(named)}


def disks() -> Seeds:
    """Return disks with an MBR, logical partitions, and GUID partition tables of both sector sizes."""
    mbr = bytearray(16 * SECTOR)
    write_table(mbr, 0, [mbr_entry(0x82, 2, 4), mbr_entry(0x83, 6, 500), mbr_entry(0, 0, 0)])
    logical = bytearray(24 * SECTOR)
    write_table(logical, 0, [mbr_entry(0x05, 4, 100)])
    write_table(logical, 4 * SECTOR, [mbr_entry(0x83, 1, 2), mbr_entry(0x05, 6, 8)])
    write_table(logical, 10 * SECTOR, [mbr_entry(0x82, 1, 4)])
    found = {"mbr": bytes(mbr), "logical": bytes(logical)}
    for sector in (512, 4096):
        gpt = bytearray(6 * sector)
        write_table(gpt, 0, [mbr_entry(0xEE, 1, 0xFFFFFFFF)])
        entry = uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f").bytes_le + uuid.UUID(int=7).bytes_le
        entries = (entry + struct.pack("<QQQ", 3, 5, 0) + "swap".encode("utf-16-le")).ljust(512, b"\0")
        gpt[2 * sector : 2 * sector + 512] = entries
        gpt[sector : sector + 8] = b"EFI PART"
        struct.pack_into("<QIII", gpt, sector + 72, 2, 4, 128, zlib.crc32(entries))
        found[f"gpt-{sector}"] = bytes(gpt)
    return found


def lvm_volumes() -> Seeds:
    """Return a physical volume with one linear and one striped logical volume."""
    text = (
        b'vg {\nid = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg"\nseqno = 1\nformat = "lvm2"\n'
        b'status = ["RESIZEABLE", "READ", "WRITE"]\nextent_size = 8\nphysical_volumes {\npv0 {\n'
        b'id = "000000-1111-2222-3333-4444-5555-666666"\nstatus = ["ALLOCATABLE"]\npe_start = 16\npe_count = 4\n'
        b'}\n}\nlogical_volumes {\nswap {\nid = "a"\nstatus = ["READ", "WRITE", "VISIBLE"]\nsegment_count = 1\n'
        b'segment1 {\nstart_extent = 0\nextent_count = 2\ntype = "striped"\nstripe_count = 1\n'
        b'stripes = [\n"pv0", 0\n]\n}\n}\nwide {\nid = "b"\nstatus = ["READ", "VISIBLE"]\nsegment_count = 1\n'
        b'segment1 {\nstart_extent = 0\nextent_count = 2\ntype = "striped"\nstripe_count = 2\nstripe_size = 8\n'
        b'stripes = [\n"pv0", 2,\n"pv0", 3\n]\n}\n}\n}\n}\n\0'
    )
    out = bytearray(8192 + 4 * PAGE)
    struct.pack_into("<8sQII8s", out, 512, b"LABELONE", 1, 0, 32, b"LVM2 001")
    struct.pack_into("<32sQ", out, 544, b"00000011112222333344445555666666", len(out))
    struct.pack_into("<6Q", out, 584, 8192, 0, 0, 0, 4096, 4096)
    struct.pack_into("<I16sIQQ", out, 4096, 0, b" LVM2 x[5A%r0N*>", 1, 4096, 4096)
    checksum = ~zlib.crc32(text, 0xF597A6CF ^ 0xFFFFFFFF) & 0xFFFFFFFF
    struct.pack_into("<QQII", out, 4136, 512, len(text), checksum, 0)
    out[4608 : 4608 + len(text)] = text
    return {"linear": bytes(out)}


def virtual_disks() -> Seeds:
    """Return a VDI with its blocks out of order, a fixed VHD, and the description of a VMDK of zeroes."""
    vdi = bytearray(1024 + 3 * 1024)
    vdi[:40] = b"<<< QEMU VM Virtual Disk Image >>>\n".ljust(40, b"\0")
    struct.pack_into("<IIIII", vdi, 64, 0xBEDA107F, 0x10001, 0x190, 1, 0)
    struct.pack_into("<II", vdi, 340, 512, 1024)
    struct.pack_into("<IIII", vdi, 360, 512, 0, 0, 0)
    struct.pack_into("<QIIII", vdi, 368, 4 * 1024, 1024, 0, 4, 3)
    struct.pack_into("<4I", vdi, 512, 2, 0xFFFFFFFF, 0, 1)
    footer = struct.pack(">8sIIQI4sI4sQQIIII16s", b"conectix", 2, 0x10000, 0xFFFFFFFFFFFFFFFF, 0, b"qemu", 1, b"Wi2k",
                         2048, 2048, 0, 2, 0, 0, bytes(16))  # fmt: skip
    vmdk = (
        b'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="custom"\n\n'
        b'RW 64 ZERO\nRW 8 ZERO\n\nddb.adapterType = "ide"\n'
    )
    return {"vdi": bytes(vdi), "vhd": page_of(1)[:2048] + footer.ljust(512, b"\0"), "vmdk": vmdk}


def compressed_files() -> Seeds:
    """Return a small dump in each compression that a source may have, and in makedumpfile's flattened form."""
    dump = lime([(0x3000, page_of(3) + bytes(PAGE))])
    return {
        "zstd": zstandard.compress(dump) + zstandard.compress(b""),
        "gzip": gzip.compress(dump, mtime=0),
        "xz": lzma.compress(dump),
        "flattened": flattened(dump, 3000),
    }


def vmcoreinfos() -> Seeds:
    """Return texts of kernels: of 4 levels, of 5, with encryption."""
    return {
        "four": VMCOREINFO,
        "five": VMCOREINFO.replace(b"l5_enabled)=0", b"l5_enabled)=1"),
        "sme": VMCOREINFO.replace(b"sme_mask)=0", b"sme_mask)=800000000000"),
        "pages": VMCOREINFO.ljust(PAGE, b"\0") + b"OSRELEASE=\n".ljust(PAGE, b"\0"),
    }


def kernels() -> Seeds:
    """Return kernel images with kallsyms in both orders, and bzImages of each compressor."""
    symbols = [b"T" + name for name in (b"swsusp_save", b"set_direct_map_invalid_noflush", b"_stext")]
    symbols += [b"tpadding_%d" % number for number in range(1100)]
    image = kernel_image(symbols)
    return {
        "kallsyms": image,
        "seqs": kernel_image(symbols, align=4, seqs=True),
        "gzip": bzimage(gzip.compress(image, mtime=0)),
        "bzip2": bzimage(bz2.compress(image)),
        "lzma": bzimage(lzma.compress(image, lzma.FORMAT_ALONE, preset=0)),
        "xz": bzimage(lzma.compress(image, preset=0)),
        "zstd": bzimage(zstandard.compress(image)),
    }


def type_sections() -> Seeds:
    """Return BTF with a record of each kind."""
    return {"every-kind": some_types().content()}


def table_entries() -> Seeds:
    """Return not-present entries: swap slots of both layouts, frames, markers."""
    words = (0x03FFFFFFFFFFFF00, 0xFBFFFFFFFFFFE000, 0x10A, 0x400000000012, inverted(0x1234, 0x162), 1 << 63, 0)
    return {"entries": struct.pack(f"<{len(words)}Q", *words)}


def lzo_rle_streams() -> Seeds:
    """Return streams of LZO-RLE: literals, a match, a run of zeroes, the end mark."""
    return {
        "literals": bytes([17 + 8]) + b"abcdefgh" + b"\x11\0\0",
        "match": bytes([17 + 8]) + b"abcdefgh" + b"\x4c\x00" + b"\x11\0\0",
        "zeroes": b"\x11\x01" + bytes([17 + 4]) + b"abcd" + b"\x18\xfc\xff\x08" + b"\x11\0\0",
    }


def saved_runs() -> Seeds:
    """Return the saved runs of docs/answers, the shortest ones."""
    paths = sorted((REPOSITORY / "docs/answers").glob("*.json"), key=lambda path: path.stat().st_size)
    return {path.stem: path.read_bytes() for path in paths[:12]}


def results_files() -> Seeds:
    """Return files of a sweep's results, from the records of the tests."""
    path = REPOSITORY / "tests/exploration/records_before_memos.jsonl"
    with path.open() as file:
        lines = [json.loads(line)["record"] for line in file]
    shortest = sorted(lines, key=len)[:4]
    return {"four": "\n".join(["{}", *shortest, ""]).encode(), "one": f"{{}}\n{shortest[0]}\n".encode()}


def machine_files() -> Seeds:
    """Return files of a machine's facts."""
    facts = {"e820_checksum": "0xba571fd2", "physical_pages": 65403, "hw_sig": 7, "release": "6.1.0-56-amd64"}
    return {
        "facts": json.dumps(facts).encode(),
        "md5": json.dumps({"e820_md5": "0" * 32, "build": "#1 SMP", "e820_trimmed_checksum": 1}).encode(),
    }


def traces() -> Seeds:
    """Return the trace of the copy on a simulated machine, with few runs of frames."""
    hole = HoleSpec(0x2000, 1, HoleKind.NOT_PRESENT)
    return {"remap": trace_text(trace_by(Remap(), hole)).encode()}
