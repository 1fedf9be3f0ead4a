# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of large machines: time and peak memory of the commands, and reads by frame.

    python benchmarks/large_images.py [--gib N ...] [--folder FOLDER]

The images are made here, sparse: 4 KiB pages of which nearly all are zero and stored (not compressed: holes of the
file), or units of such pages (LZO: one block each), a million ranges of frames, page tables that map all of them by
2 MiB. Each command runs in a process of its own.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hibernaut.memory.page import PAGE_SIZE, Bytes, Pfns
from hibernaut.swsusp import open_image
from hibernaut.swsusp.blocks import NewArea, allocator_for
from hibernaut.swsusp.codecs import codec_named
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import MAP_ENTRIES, UNIT_BYTES, UNIT_PAGES, Flags
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.pfns import pack_pfns
from hibernaut.swsusp.stream import Crc

BASE = 0xFFFF_8880_0000_0000
RUN = 15
"""Frames of a range; one is missing after each."""
MOST_MIB = 500
READS = 20_000
CHILD = """
import re, runpy, sys, time
from pathlib import Path
start = time.perf_counter()
sys.argv[0] = "hibernaut"
try:
    runpy.run_module("hibernaut", run_name="__main__")
except SystemExit as end:
    status = end.code
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(f"\\nPEAK {int(peak) // 1024} STATUS {status} SECONDS {time.perf_counter() - start:.3f}", file=sys.stderr)
"""


def frames_with_gaps(gib: int) -> Pfns:
    """Return frames of a machine: every sixteenth is not saved, but for the first 2 MiB."""
    pfns: Pfns = np.arange(gib << 18, dtype=np.int64)
    saved: Pfns = pfns[(pfns < 512) | (pfns % (RUN + 1) != RUN)]
    return saved


def tables_of(gib: int) -> dict[int, Bytes]:
    """Return frames and pages of tables that map a machine by 2 MiB, in its first 2 MiB."""
    words = {pfn: np.zeros(512, dtype=np.uint64) for pfn in range(16, 18 + gib)}
    words[16][273] = 17 << 12 | 0x63
    words[17][:gib] = (np.arange(18, 18 + gib, dtype=np.uint64) << np.uint64(12)) | np.uint64(0x63)
    for number in range(gib):
        large = (np.arange(512, dtype=np.uint64) + np.uint64(number * 512)) << np.uint64(21)
        words[18 + number][:] = large | np.uint64(0x80000000000001E3)
    return {pfn: page.view(np.uint8) for pfn, page in words.items()}


def make_image(path: Path, gib: int, compressor: str) -> int:
    """Write the image, sparse, and return the number of its pages."""
    pfns, tables = frames_with_gaps(gib), tables_of(gib)
    zero = np.zeros(len(pfns), dtype=np.bool_)
    meta = pack_pfns(pfns, zero)
    info = ImageInfo.blank(cr3=16 << 12, physical_pages=len(pfns)).with_pages(
        saved_pages=len(pfns), image_pages=len(pfns)
    )
    stream_pages = len(meta) + len(pfns)
    table_rows = {len(meta) + int(np.searchsorted(pfns, pfn)): page for pfn, page in tables.items()}
    crc = Crc()
    with path.open("wb") as out:
        out.seek(PAGE_SIZE)
        out.write(info.page)
        if compressor == "none":
            out.write(meta.data)
            for row, page in table_rows.items():
                out.seek((2 + row) * PAGE_SIZE)
                out.write(page.data)
            blocks = 1 + stream_pages
        else:
            codec = codec_named("lzo")
            blank = codec.compress(np.zeros(UNIT_BYTES, dtype=np.uint8))
            blank_block = (len(blank).to_bytes(8, "little") + blank).ljust(PAGE_SIZE, b"\0")
            blank_crc = crc32(bytes(UNIT_BYTES))
            busy = -(-(max(table_rows) + 1) // UNIT_PAGES)
            blocks = 1
            for unit in range(busy):
                rows = np.zeros((min(UNIT_PAGES, stream_pages - unit * UNIT_PAGES), PAGE_SIZE), dtype=np.uint8)
                part = meta[unit * UNIT_PAGES : (unit + 1) * UNIT_PAGES]
                rows[: len(part)] = part
                for row, page in table_rows.items():
                    if row // UNIT_PAGES == unit:
                        rows[row % UNIT_PAGES] = page
                packed = codec.compress(rows.reshape(-1))
                stored = len(packed).to_bytes(8, "little") + packed
                stored = stored.ljust(-(-len(stored) // PAGE_SIZE) * PAGE_SIZE, b"\0")
                out.write(stored)
                crc.add(crc32(rows.reshape(-1)), rows.nbytes)
                blocks += len(stored) // PAGE_SIZE
            whole, rest = divmod(stream_pages - busy * UNIT_PAGES, UNIT_PAGES)
            for first in range(0, whole, 4096):
                out.write(blank_block * min(4096, whole - first))
            for _ in range(whole):
                crc.add(blank_crc, UNIT_BYTES)
            blocks += whole
            if rest:
                packed = codec.compress(np.zeros(rest * PAGE_SIZE, dtype=np.uint8))
                out.write((len(packed).to_bytes(8, "little") + packed).ljust(PAGE_SIZE, b"\0"))
                crc.add(crc32(bytes(rest * PAGE_SIZE)), rest * PAGE_SIZE)
                blocks += 1
        first_map = 1 + blocks
        count = -(-blocks // MAP_ENTRIES)
        pages = np.zeros((count, MAP_ENTRIES + 1), dtype="<u8")
        entries = np.zeros(count * MAP_ENTRIES, dtype="<u8")
        entries[:blocks] = np.arange(1, 1 + blocks)
        pages[:, :MAP_ENTRIES] = entries.reshape(count, MAP_ENTRIES)
        pages[:-1, MAP_ENTRIES] = np.arange(first_map + 1, first_map + count)
        out.seek(first_map * PAGE_SIZE)
        out.write(pages.data)
        header = allocator_for(NewArea()).header.with_fields({"last_page": first_map + count - 1})
        flags = Flags.NOCOMPRESS_MODE if compressor == "none" else Flags.CRC32_MODE
        out.seek(0)
        block = header.with_image(image=first_map, flags=flags, crc32=None if compressor == "none" else crc.value).block
        out.write(block)
    return stream_pages


def run_command(*arguments: str) -> tuple[float, int]:
    """Run a command; return its seconds and its peak memory in MiB."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    told = re.search(r"PEAK (\d+) STATUS (\S+) SECONDS ([\d.]+)", done.stderr)
    if told is None or told[2] not in ("0", "None"):
        raise SystemExit(f"hibernaut {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return float(told[3]), int(told[1])


def measure_commands(path: Path, gib: int, compressor: str) -> None:
    """Print time and peak memory of each command."""
    out, index = path.with_name("out"), path.with_name("index")
    commands = {
        "inspect": ("inspect", str(path), "--no-machine"),
        "map": ("map", str(path)),
        "map --index, made": ("map", str(path), "--index", str(index)),
        "map --index, again": ("map", str(path), "--index", str(index)),
        "convert --to raw": ("convert", str(path), str(out), "--to", "raw"),
    }
    for name, command in commands.items():
        seconds, peak = run_command(*command)
        mark = "ok" if peak < MOST_MIB else "ABOVE"
        print(
            f"{gib:3} GiB, {compressor:4}: {name:28} {seconds:7.2f} s  {1000 * seconds / gib:7.1f} ms a GiB"
            f"  peak {peak:4} MiB (target below {MOST_MIB})  {mark}",
            flush=True,
        )
    out.unlink(missing_ok=True)
    measure_opening(path, gib, compressor, index)
    index.unlink(missing_ok=True)


def measure_opening(path: Path, gib: int, compressor: str, index: Path) -> None:
    """Print the time of opening without and with an index, taken in turns, and the rate of reads of 4 KiB by frame."""
    seconds: dict[Path | None, list[float]] = {None: [], index: []}
    for _ in range(3):
        for given, found in seconds.items():
            start = time.perf_counter()
            with open_image(path, index=given):
                found.append(time.perf_counter() - start)
    plain, indexed = (statistics.median(found) for found in seconds.values())
    print(
        f"{gib:3} GiB, {compressor:4}: opened in {plain:.2f} s, by an index of {index.stat().st_size >> 10} KiB in"
        f" {indexed:.2f} s",
        flush=True,
    )
    with open_image(path, index=index) as image:
        memory = image.memory()
        near = np.random.default_rng(1).integers(0, 1 << 14, READS) // (RUN + 1) * (RUN + 1)
        spread = image.frames.part(0, image.frames.total_pages)[:: max(1, image.frames.total_pages // READS)][:READS]
        spread = np.random.default_rng(2).permutation(spread)
        for what, pfns in (("of units just read", np.tile(near, 2)[READS:]), ("all over the image", spread)):
            listed = pfns.tolist()
            if what.startswith("of units"):
                for pfn in listed:
                    memory.page(pfn)
            start = time.perf_counter()
            for pfn in listed:
                memory.page(pfn)
            rate = len(listed) / (time.perf_counter() - start)
            print(f"{gib:3} GiB, {compressor:4}: reads of 4 KiB {what}: {rate:.0f} a second (target 20000)", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Benchmarks of images of large machines.")
    parser.add_argument("--gib", type=int, nargs="+", default=[16, 64], help="sizes of the machines")
    parser.add_argument("--only", choices=["none", "lzo"], help="this compressor only (default: both)")
    parser.add_argument("--folder", type=Path, help="folder for the images, on a file system with holes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "image"
        for compressor in (options.only,) if options.only else ("none", "lzo"):
            for gib in options.gib:
                start = time.perf_counter()
                make_image(path, gib, compressor)
                print(f"{gib:3} GiB, {compressor:4}: made in {time.perf_counter() - start:.1f} s", flush=True)
                measure_commands(path, gib, compressor)
                path.unlink()


if __name__ == "__main__":
    main()
