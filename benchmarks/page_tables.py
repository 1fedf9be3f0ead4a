# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: scan and translation against NumPy's own speed and against volatility3 and memprocfs.

`python benchmarks/page_tables.py` prints one table of ratios. Every number is the best of several runs of both sides,
taken in turn in this process, so that a busy machine hurts both alike. Peers: the dependency group `bench`; one that
cannot be run is reported as not measured, with the reason. memprocfs needs libusb-1.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.paging.tables import PageTables, Stop

BASE = 0xFFFF_8880_0000_0000
VMALLOC = 0xFFFF_C900_0000_0000
TABLE = 0x067
LEAF = 0x8000_0000_0000_0163
LARGE = LEAF | 0x80
HALF = 1 << 47
LEAVES = 300_000
ADDRESSES = 1_000_000
DUMP_PAGES = 1 << 18  # 1 GiB

Entries = NDArray[np.uint64]


def best(runs: int, *jobs: Callable[[], object]) -> list[float]:
    """Seconds of each job: the best of `runs`, the jobs taking turns."""
    seconds = [float("inf")] * len(jobs)
    for _ in range(runs):
        for number, job in enumerate(jobs):
            start = time.perf_counter()
            job()
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    return seconds


def row(what: str, ours: str, peer: str, ratio: float | None, target: str) -> None:
    """One line of the result table."""
    shown = "not measured" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    print(f"{what:<52} {ours:>20} {peer:>36} {shown:>12}   {target}")


def all_4k(order: str) -> tuple[PageTables, Entries]:
    """64 GiB mapped by 4K entries: 32768 PTE tables, in ascending frames, shuffled, or shuffled with gaps between."""
    tables = 32768
    upper = 2 + tables // 512
    stride = 2 if order == "gaps" else 1
    place = np.arange(tables) if order == "contiguous" else np.random.default_rng(1).permutation(tables)
    words = np.zeros((upper + tables * stride, 512), dtype=np.uint64)
    first = 1 << 24  # behind the 64 GiB
    words[0, 273] = (first + 1) << 12 | TABLE
    words[1, : upper - 2] = frames(first + 2 + np.arange(upper - 2), TABLE)
    words[2:upper] = frames(first + upper + place * stride, TABLE).reshape(-1, 512)
    for number in range(0, tables, 1024):
        leaves = frames(np.arange(number * 512, (number + 1024) * 512), LEAF)
        words[upper + place[number : number + 1024] * stride] = leaves.reshape(1024, 512)
    memory = SegmentMemory([Segment(first, words.view(np.uint8).reshape(-1, 4096))])
    return PageTables(memory, first << 12), words[upper:] if stride == 1 else words[upper::2].copy()


def frames(pfns: NDArray[np.int64], flags: int) -> Entries:
    """Entries that name these frames."""
    entries: Entries = (pfns.astype(np.uint64) << np.uint64(12)) | np.uint64(flags)
    return entries


def scan_whole(order: str) -> None:
    """(a) the rate of a whole scan over NumPy's sum of the same tables, and its peak memory."""
    tables, words = all_4k(order)
    spans = tables.scan()
    assert spans.of_state(Stop.PRESENT).pages.tolist() == [1 << 24]
    summed, scanned = best(40, words.sum, tables.scan)
    rate = words.nbytes / 1e9
    row(
        f"scan 64 GiB of 4K entries, tables {order}",
        f"{rate / scanned:.1f} GB/s",
        f"numpy sum, 1 thread: {rate / summed:.1f} GB/s",
        summed / scanned,
        {"contiguous": ">= 0.45", "shuffled": ">= 0.3"}.get(order) or "(no target: every table is gathered)",
    )
    tracemalloc.start()
    tables.scan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    row("   its peak memory (tracemalloc)", f"{peak / 2**20:.0f} MiB", "tables: 128 MiB", peak / words.nbytes, "< 3")


def write_dump(path: Path) -> int:
    """A raw 1 GiB dump: a direct map half of 2M and half of 4K pages, and 300 000 scattered 4K leaves; its CR3."""
    random = np.random.default_rng(2)
    words = np.memmap(path, dtype=np.uint64, mode="w+", shape=(DUMP_PAGES, 512))
    at = 0x4000
    words[at, 273] = (at + 1) << 12 | TABLE
    words[at + 1, 0] = (at + 2) << 12 | TABLE
    words[at + 2, :256] = frames(np.arange(256) * 512, LARGE)
    words[at + 2, 256:] = frames(at + 3 + np.arange(256), TABLE)
    words[at + 3 : at + 259] = frames(np.arange(1 << 17, 1 << 18), LEAF).reshape(256, 512)
    at_vmalloc = at + 259
    words[at, 402] = at_vmalloc << 12 | TABLE
    count = -(-LEAVES // 512)
    words[at_vmalloc, : -(-count // 512)] = frames(at_vmalloc + 1 + np.arange(-(-count // 512)), TABLE)
    pte = at_vmalloc + 1 + -(-count // 512)
    for number in range(0, count, 512):
        named = np.arange(number, min(count, number + 512))
        words[at_vmalloc + 1 + number // 512, : len(named)] = frames(pte + named, TABLE)
    leaves = words[pte : pte + count].reshape(-1)
    leaves[:LEAVES] = frames(random.integers(1, DUMP_PAGES, LEAVES), LEAF)
    words[pte : pte + count] = leaves.reshape(count, 512)
    words.flush()
    return at << 12


def volatility_layer(path: Path, cr3: int) -> Any:
    """The dump as volatility3's kernel layer."""
    from volatility3.framework import contexts
    from volatility3.framework.layers import intel, physical

    context = contexts.Context()
    context.config["file.location"] = path.as_uri()
    context.add_layer(physical.FileLayer(context, "file", "memory"))
    context.config["kernel.memory_layer"] = "memory"
    context.config["kernel.page_map_offset"] = cr3
    return intel.LinuxIntel32e(context, "kernel", "kernel")


def memprocfs_translate(path: Path, cr3: int) -> Callable[[int], int]:
    """Memprocfs's translation of one address of the dump; it has no call for many."""
    spec = importlib.util.find_spec("leechcorepyc")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("leechcorepyc is not installed")
    with contextlib.suppress(ImportError, OSError):  # a wheel that carries libusb, where the system has none
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
    # Its own import looks for the library in the wrong folder.
    ctypes.CDLL(str(Path(spec.submodule_search_locations[0]) / "leechcore.so"), mode=ctypes.RTLD_GLOBAL)
    import memprocfs

    vmm = memprocfs.Vmm(["-device", str(path), "-dtb", hex(cr3), "-norefresh"])
    translate: Callable[[int], int] = vmm.process_list()[0].memory.virt2phys
    assert translate(BASE + 0x123456) == 0x123456
    return translate


def enumerate_all(tables: PageTables, layer: Any) -> None:
    """(b) all kernel mappings of the dump: volatility3's own list, also of runs, covers the same bytes."""
    start = (1 << 64) - HALF
    spans = tables.scan(start).of_state(Stop.PRESENT)
    leaves = int((spans.pages >> (9 * (spans.level.astype(np.int64) - 1))).sum())
    found = sum(length for _, length, _, _, _ in layer.mapping(HALF, HALF, ignore_errors=True))
    assert found == 4096 * int(spans.pages.sum())
    [ours] = best(9, lambda: tables.scan(start))
    [theirs] = best(2, lambda: sum(1 for _ in layer.mapping(HALF, HALF, ignore_errors=True)))
    row(
        f"all kernel mappings, {leaves} leaves, {len(spans)} spans",
        f"{ours * 1e3:.1f} ms",
        f"volatility3: {theirs:.1f} s",
        theirs / ours,
        ">= 100",
    )


def translate_many(tables: PageTables, layer: Any, path: Path) -> None:
    """(c) a million random direct-map addresses; the peers take them one by one, as they have no other way."""
    random = np.random.default_rng(4)
    paddrs = random.integers(0, DUMP_PAGES << 12, ADDRESSES)
    vaddrs = paddrs.astype(np.uint64) + np.uint64(BASE)
    asked = vaddrs.tolist()
    assert (tables.translate(vaddrs).pfns == paddrs >> 12).all()
    [ours] = best(9, lambda: tables.translate(vaddrs))
    shown = f"{ADDRESSES / ours / 1e6:.1f} M/s"
    part = [vaddr % (1 << 48) for vaddr in asked[: ADDRESSES // 5]]
    assert [layer.translate(vaddr)[0] for vaddr in part[:100]] == paddrs[:100].tolist()
    [theirs] = best(3, lambda: [layer.translate(vaddr) for vaddr in part])
    theirs *= ADDRESSES / len(part)
    row(
        f"translate {ADDRESSES} random direct-map addresses",
        shown,
        f"volatility3 (a fifth of them): {ADDRESSES / theirs / 1e6:.2f} M/s",
        theirs / ours,
        ">= 50",
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            translate = memprocfs_translate(path, tables.cr3)
    except (ImportError, OSError, RuntimeError) as error:
        row("   the same", shown, f"memprocfs: {error}"[:60], None, ">= 5")
        return
    assert [translate(vaddr) for vaddr in asked[:100]] == paddrs[:100].tolist()
    ours, theirs = best(5, lambda: tables.translate(vaddrs), lambda: [translate(vaddr) for vaddr in asked])
    row("   the same", shown, f"memprocfs: {ADDRESSES / theirs / 1e6:.1f} M/s", theirs / ours, ">= 5")


def main() -> None:
    """Print the table."""
    print(f"{'what':<52} {'hibernaut':>20} {'against':>36} {'ratio':>12}   target")
    for order in ("contiguous", "shuffled", "gaps"):
        scan_whole(order)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dump.raw"
        cr3 = write_dump(path)
        pages = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 4096)
        tables = PageTables(SegmentMemory([Segment(0, pages)]), cr3)
        try:
            layer = volatility_layer(path, cr3)
        except ImportError as error:
            row("all kernel mappings; translation", "", f"volatility3: {error}", None, ">= 100; >= 50")
            return
        enumerate_all(tables, layer)
        translate_many(tables, layer, path)


if __name__ == "__main__":
    main()
