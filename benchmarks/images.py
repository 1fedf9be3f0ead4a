# SPDX-License-Identifier: GPL-2.0-or-later
"""Images: reading, converting and writing, as ratios against what the codec alone and a plain write can do.

    python benchmarks/images.py [--pages N] [--big] [--in-c]

Every ratio is measured in this run: medians of five rounds, ours and the limit in turns, on all cores. The limit of
reading is the codec on all cores, from units in memory into an array of the same size whose pages are there already,
and the CRC; that of converting is the slower of this and a plain synced write of the same bytes; that of writing is the
codec with the CRC, into an array. Each is also compared with a plain loop: the same calls of the codec, and one read or
write for each task of a file as large, without anything else (no list of frames, no map, no order). The pages are those
of the golden image `swap-6.1-lzo.img`, repeated, or text and noise where there is no golden data. `--big` also converts
an image of 4 GiB in a process of its own and tells its peak memory. `--in-c` measures a program in C instead that does
the same with the same libraries, `images.c`: what the codec alone leaves to any program here. It needs gcc and the
Debian packages liblzo2-dev, liblz4-dev and libisal-dev.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.kernel.core_file import CoreFormat, convert
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, aligned_pages
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.parallel import worker_count
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from hibernaut.swsusp.codecs import Codec, CompressorName, codec_named
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import LENGTH_BYTES, UNIT_BYTES
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.stream import BATCH_UNITS
from hibernaut.swsusp.units import pack_units, packed_room
from hibernaut.swsusp.writer import NewArea, write_image
from hibernaut.volumes.output import DIRECT_WRITERS

ROUNDS = 5
PLAINLY = "     against a loop of codec, reads and writes"
REPOSITORY = Path(__file__).resolve().parent.parent


class Repeated(PhysicalMemory):
    """So many frames that hold a few thousand pages again and again."""

    def __init__(self, pages: Bytes, nr_pages: int) -> None:
        self._pages = pages
        self._ranges = FrameRanges.of([(0, nr_pages)])

    @property
    def ranges(self) -> FrameRanges:
        """All frames from 0 on."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """A view, up to where the pages begin again."""
        at = pfn % len(self._pages)
        return self._pages[at : at + min(nr_pages, self._ranges.end - pfn)]

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """One indexed copy."""
        pfns = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(pfns), PAGE_SIZE), dtype=np.uint8) if out is None else out
        np.take(self._pages, pfns % len(self._pages), axis=0, out=pages, mode="clip")
        return pages, np.ones(len(pfns), dtype=np.bool_)


def sample_pages() -> tuple[str, Bytes]:
    """Pages as a real machine has them."""
    folder = Path(os.environ.get("HIBERNAUT_GOLDEN") or REPOSITORY.parent / "shared" / "golden")
    packed = folder / "swap-6.1-lzo.img.zst"
    if packed.exists():
        with open_image(packed) as image:
            return "pages of a real 6.1", image.read_all()
    rng = np.random.default_rng(1)
    pages = rng.integers(0, 256, (16384, PAGE_SIZE), dtype=np.uint8)
    pages[::2, 600:] = 0
    pages[1::4] = np.frombuffer(b"some words, and again ".ljust(32, b".") * 128, dtype=np.uint8)
    return "simulated pages", pages


@dataclass(frozen=True)
class Job:
    """Work to be timed.

    Attributes:
        work: the work.
        output: file that it writes, removed before, so that freeing an old one does not count.
    """

    work: Callable[[], object]
    output: Path | None = None

    def seconds(self) -> float:
        """Return the duration of the work."""
        if self.output is not None:
            self.output.unlink(missing_ok=True)
        start = time.perf_counter()
        self.work()
        return time.perf_counter() - start


def alternate(*jobs: Job) -> list[float]:
    """Median seconds of pieces of work, taken in turns so that all see the same machine, none always after the same."""
    for job in jobs:
        job.seconds()  # not measured: pages of buffers and of the cache
    seconds: list[list[float]] = [[] for _ in jobs]
    for number in range(ROUNDS):
        for place in np.roll(np.arange(len(jobs)), number):
            seconds[place].append(jobs[place].seconds())
    return [statistics.median(one) for one in seconds]


def on_all_cores(work: Callable[[int], object], count: int, more_threads: int = 0) -> None:
    """Nothing but the work: each thread takes every n-th item."""
    threads = worker_count() + more_threads

    def share(first: int) -> None:
        for item in range(first, count, threads):
            work(item)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))


def packed_units(path: Path) -> tuple[Codec, list[bytes], int]:
    """The compressed units of an image, in memory."""
    with open_image(path) as image:
        index = image.stream.index
        entries = image.swap_map.entries
        units = []
        for unit in range(len(index)):
            blocks = entries[index.first_entry[unit] : index.first_entry[unit + 1]]
            raw = np.empty(len(blocks) * PAGE_SIZE, dtype=np.uint8)
            image.area.read_blocks(blocks, raw)
            units.append(raw[8 : 8 + int(index.compressed_bytes[unit])].tobytes())
        assert image.compressor != "none"
        return codec_named(image.compressor), units, image.stream.rows * PAGE_SIZE


def decompression(codec: Codec, units: list[bytes], out: Bytes) -> Callable[[], None]:
    """The limit of reading: each unit decompressed to its place in an array that is there already, and its CRC."""
    stored = [np.frombuffer(unit, dtype=np.uint8) for unit in units]
    flat = out.reshape(-1)
    targets = [flat[at : at + UNIT_BYTES] for at in range(0, len(flat), UNIT_BYTES)]
    places = [
        (one.ctypes.data, len(one), target.ctypes.data, len(target))
        for one, target in zip(stored, targets, strict=True)
    ]
    at_address = codec.system.decompress_at if codec.system else None

    def unit(number: int) -> None:
        if at_address is None:
            codec.decompress_into(stored[number], targets[number])
        else:
            at_address(*places[number])
        crc32(targets[number])

    return lambda: on_all_cores(unit, len(units))


def compression(codec: Codec, rows: Bytes) -> Callable[[], None]:
    """The limit of writing: each unit compressed into an array that is there already, and the CRC of its pages."""
    flat = rows.reshape(-1)
    units = [flat[at : at + UNIT_BYTES] for at in range(0, len(flat), UNIT_BYTES)]
    most = 160 << 10
    room = np.ones((len(units), most), dtype=np.uint8)
    places = [(one.ctypes.data, len(one), target.ctypes.data, most) for one, target in zip(units, room, strict=True)]
    at_address = codec.system.compress_at if codec.system else None

    def unit(number: int) -> None:
        if at_address is None:
            room[number, 0] = len(codec.compress(units[number])) & 0xFF
        else:
            at_address(*places[number])
        crc32(units[number])

    return lambda: on_all_cores(unit, len(units))


def batches(count: int) -> list[range]:
    """The numbers of units, as many at a time as a task has."""
    return [range(first, min(first + BATCH_UNITS, count)) for first in range(0, count, BATCH_UNITS)]


def stored_units(units: list[bytes]) -> list[bytes]:
    """Units as an image has them: each with its length before it, in whole blocks."""
    parts = [len(unit).to_bytes(LENGTH_BYTES, "little") + unit for unit in units]
    return [part + bytes(-len(part) % PAGE_SIZE) for part in parts]


def with_file_read(
    codec: Codec, units: list[bytes], stream: Path, room: Bytes, out: Path | None = None
) -> Callable[[], None]:
    """The codec and the CRC, with one read of a file for each task: into an array, or into another file."""
    ends = np.cumsum([len(unit) for unit in stored_units(units)]).tolist()
    starts = [0, *ends]
    tasks = batches(len(units))
    flat = room.reshape(-1)
    local = threading.local()

    def task(source: int, target: int | None, number: int) -> None:
        which = tasks[number]
        first, last = starts[which[0]], ends[which[-1]]
        if not hasattr(local, "buffer"):
            local.buffer = aligned_pages(BATCH_UNITS * (UNIT_BYTES + (UNIT_BYTES >> 2)) // PAGE_SIZE).reshape(-1)
            local.pages = aligned_pages(BATCH_UNITS * UNIT_BYTES // PAGE_SIZE).reshape(-1)
        assert os.preadv(source, [local.buffer[: last - first].data], first) == last - first
        place = which[0] * UNIT_BYTES
        pages = flat[place : place + len(which) * UNIT_BYTES]
        if target is not None:
            pages = local.pages[: len(pages)]
        for row, unit in enumerate(which):
            at = starts[unit] - first + LENGTH_BYTES
            plain = pages[row * UNIT_BYTES : (row + 1) * UNIT_BYTES]
            packed = local.buffer[at : at + len(units[unit])]
            if codec.system is None:
                codec.decompress_into(packed, plain)
            else:
                codec.system.decompress_at(packed.ctypes.data, len(packed), plain.ctypes.data, len(plain))
            crc32(plain)
        if target is not None:
            assert os.pwrite(target, pages.data, place) == len(pages)

    def work() -> None:
        source = os.open(stream, os.O_RDONLY)
        target = None if out is None else direct_file(out, len(flat))
        on_all_cores(lambda number: task(source, target, number), len(tasks), 0 if out is None else DIRECT_WRITERS)
        os.close(source)
        if target is not None:
            os.fsync(target)
            os.close(target)

    return work


def with_file_written(codec: Codec, rows: Bytes, out: Path) -> Callable[[], None]:
    """The codec and the CRC, with one write to a file for each task, past the page cache, synced at the end."""
    flat = rows.reshape(-1)
    tasks = batches(-(-len(flat) // UNIT_BYTES))
    room_pages = packed_room(codec, BATCH_UNITS, UNIT_BYTES) // PAGE_SIZE
    local = threading.local()

    def task(target: int, number: int) -> None:
        if not hasattr(local, "room"):
            local.room = aligned_pages(room_pages).reshape(-1)
        place = tasks[number][0] * UNIT_BYTES
        plain = flat[place : place + len(tasks[number]) * UNIT_BYTES]
        stored, _, _ = pack_units(codec, plain, UNIT_BYTES, local.room)
        assert os.pwrite(target, local.room[:stored].data, place) == stored

    def work() -> None:
        target = direct_file(out, len(flat))
        on_all_cores(lambda number: task(target, number), len(tasks), DIRECT_WRITERS)
        os.fsync(target)
        os.close(target)

    return work


def direct_file(path: Path, size_bytes: int) -> int:
    """Descriptor of a new file of so many bytes that is written past the page cache."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    os.ftruncate(target, size_bytes)
    return target


def read_all(path: Path, out: Bytes) -> None:
    """Everything into memory that is there already, CRC checked."""
    with open_image(path) as image:
        image.read_all(out)


def run_convert(path: Path, out: Path, form: CoreFormat) -> None:
    """Convert as `hibernaut convert` does, in this process."""
    with open_memory(path) as source:
        convert(source, out, form)


def plain_write(path: Path, data: Bytes) -> None:
    """The same bytes by plain writes of 4 MiB, synced as the converter syncs."""
    with path.open("wb", buffering=0) as out:
        flat = data.reshape(-1)
        for at in range(0, len(flat), 4 << 20):
            out.write(flat[at : at + (4 << 20)].data)
        os.fsync(out.fileno())


def report(name: str, ours: float, limit: float, size_bytes: int, target: float = 0.9) -> None:
    """One line: rates and their ratio."""
    ratio = limit / ours
    mark = "ok" if ratio >= target else "BELOW"
    print(
        f"{name:44} {size_bytes / ours / 1e6:8.0f} MB/s   limit {size_bytes / limit / 1e6:8.0f} MB/s"
        f"   ratio {ratio:5.2f}  target {target:.2f}  {mark}",
        flush=True,
    )


def measure(compressor: CompressorName, pages: Bytes, frames: int, folder: Path) -> None:
    """Reading, converting and writing with one compressor."""
    memory = Repeated(pages, frames)
    path, out, other = folder / "image", folder / "out", folder / "plain"
    pfns = np.arange(frames, dtype=np.int64)
    info = ImageInfo.blank(cr3=0, physical_pages=frames)

    def write() -> None:
        write_image(path, memory, pfns, info, NewArea(), compressor=compressor, zero_pages=False)

    write()
    codec, units, size_bytes = packed_units(path)

    room = np.ones((size_bytes // PAGE_SIZE, PAGE_SIZE), dtype=np.uint8)
    other_room = np.ones_like(room)
    limit_of_reading = decompression(codec, units, other_room)
    stream = folder / "stream"
    stream.write_bytes(b"".join(stored_units(units)))
    ours, limit, plainly = alternate(
        Job(lambda: read_all(path, room)),
        Job(limit_of_reading),
        Job(with_file_read(codec, units, stream, other_room)),
    )
    report(f"{compressor}: image -> pages in memory, CRC checked", ours, limit, size_bytes)
    report(PLAINLY, ours, plainly, size_bytes)

    plain, _ = memory.gather(pfns)
    ours, codec_alone, written, plainly = alternate(
        Job(lambda: run_convert(path, out, "raw"), out),
        Job(limit_of_reading),
        Job(lambda: plain_write(other, plain), other),
        Job(with_file_read(codec, units, stream, other_room, other), other),
    )
    which = "codec" if codec_alone > written else "plain write"
    report(f"{compressor}: convert to a file (limit: {which})", ours, max(codec_alone, written), size_bytes)
    report(PLAINLY, ours, plainly, size_bytes)

    ours, limit, plainly = alternate(
        Job(write, path), Job(compression(codec, plain)), Job(with_file_written(codec, plain, other), other)
    )
    report(f"{compressor}: memory -> image", ours, limit, size_bytes)
    report(PLAINLY, ours, plainly, size_bytes)


CHILD = """
import re, sys
from pathlib import Path
from hibernaut.kernel.core_file import convert
from hibernaut.sources import open_memory
with open_memory(Path(sys.argv[1])) as source:
    convert(source, Path(sys.argv[2]), sys.argv[3])
# Not ru_maxrss: that begins with what the parent had.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def big(pages: Bytes, folder: Path) -> None:
    """Peak memory of converting an image of 4 GiB, in a process of its own."""
    frames = 1 << 20
    memory = Repeated(pages, frames)
    pfns = np.arange(frames, dtype=np.int64)
    info = ImageInfo.blank(cr3=0, physical_pages=frames)
    write_image(folder / "big", memory, pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    for form in ("raw", "lime", "elf"):
        start = time.perf_counter()
        told = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder / "big"), str(folder / "big.out"), form],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
        peak = int(told.stdout.split()[-1])
        mark = "ok" if peak < 400 else "ABOVE"
        print(
            f"convert 4 GiB to {form:4}: peak {peak} MiB (target below 400)  {mark}   {4096 / seconds:.0f} MiB/s",
            flush=True,
        )


def in_c(pages: Bytes, frames: int, folder: Path, compressors: Sequence[str]) -> None:
    """The speed of a program in C, to that of the codec alone in C."""
    if shutil.which("gcc") is None:
        sys.exit("gcc is not installed (Debian package gcc)")
    program, data = folder / "images", folder / "pages"
    source = Path(__file__).with_name("images.c")
    libraries = ["-lpthread", "-llzo2", "-llz4", "-lisal"]
    built = subprocess.run(
        ["gcc", "-O2", "-Wall", "-o", str(program), str(source), *libraries],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        sys.exit(f"images.c does not compile: {next(iter(built.stderr.splitlines()), '')}")
    Repeated(pages, frames).gather(np.arange(frames, dtype=np.int64))[0].tofile(data)
    for compressor in compressors:
        told = subprocess.run(
            [str(program), compressor, str(data), str(folder / "out"), str(ROUNDS)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds: dict[str, list[float]] = {}
        for line in told.stdout.splitlines():
            seconds.setdefault(line.split()[0], []).append(float(line.split()[1]))
        median = {name: statistics.median(some) for name, some in seconds.items()}
        for name, of in (("read", "decompress"), ("write", "compress"), ("write-alike", "compress")):
            report(f"{compressor}: {name}, in C", median[name], median[of], frames * PAGE_SIZE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Benchmarks of reading and writing images.")
    parser.add_argument("--pages", type=int, default=1 << 17, help="size of the machine (default: 512 MiB)")
    parser.add_argument("--big", action="store_true", help="also convert a 4 GiB image and tell its peak memory")
    parser.add_argument("--only", choices=["lzo", "lz4"], help="measure this compressor only (default: both)")
    parser.add_argument("--in-c", action="store_true", help="measure a program in C instead")
    options = parser.parse_args(arguments)
    what, pages = sample_pages()
    print(f"{what}, {options.pages * PAGE_SIZE >> 20} MiB, {worker_count()} cores, {codec_named('lzo').library}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compressors: tuple[CompressorName, ...] = (options.only,) if options.only else ("lzo", "lz4")
        if options.in_c:
            in_c(pages, options.pages, folder, compressors)
            return
        for compressor in compressors:
            measure(compressor, pages, options.pages, folder)
        if options.big:
            big(pages, folder)


if __name__ == "__main__":
    main()
