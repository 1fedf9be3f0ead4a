"""Simulated machines from 1 GiB to 1 TiB: what they cost, and how fast plainly present pages are copied.

    python benchmarks/machine.py [--gib N ...] [--largest PMD|PUD] [--copy-only]

Every size runs in a process of its own, which builds the machine, audits it, hibernates it by each way, resumes and
checks it. Pages are by formula and the image is dropped, so that what is measured is the model's own cost. The peak is
that of resident memory, less what the process has after its imports.

The copy is `Snapshot.chunks` from a mapped dump that lies in the page cache, against NumPy copying the same runs of
frames out of the same mapping, in turns in one process, best of several rounds on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from hibernaut import open_memory
from hibernaut.hibernate import Fixmap, Remap, Way, check_resumed, hibernate, resume
from hibernaut.hibernate.audit import audit
from hibernaut.hibernate.snapshot import CHUNK_PAGES, Snapshot
from hibernaut.linux.build import HoleSpec, Layout, build_machine, hole_2m, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.memory.physical import PAGE_SIZE, PhysicalMemory
from hibernaut.paging.entries import Level

SIZES_GIB = (1, 4, 16, 64, 256, 1024)
HOLES_A_GIB, MOST_HOLES, FIXED_HOLES = 10, 10_000, 100
WAYS: tuple[Way, ...] = (Fixmap(), Remap())
STAGES = ("build", "audit", "Fixmap", "and resume", "Remap", "and resume")
ROUNDS = 7
REPOSITORY = Path(__file__).resolve().parent.parent
_T = TypeVar("_T")


def layout_with(gib: int, holes: int, largest: Level) -> Layout:
    """So many holes, 4K and 2M in turns, spread over three quarters of RAM; its tables and free pages lie below."""
    end = gib * Level.PUD.pages
    first, step = end // 8, end * 3 // 4 // holes
    found: list[HoleSpec] = []
    for number in range(holes):
        at = (first + step * number) // Level.PMD.pages * Level.PMD.pages
        found.append(hole_2m(at) if number % 2 else hole_4k(at + 7))
    return Layout(
        ((0, 0xA0), (0x100, end - 0x100)),
        holes=tuple(found),
        largest=largest,
        free_pages=2 * gib + holes + 256,
    )


def resident_peak() -> int:
    """Bytes of resident memory at most so far. Not ru_maxrss: that begins with what the parent had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def live_through(layout: Layout) -> dict[str, object]:
    """Everything once: seconds of each stage, in the order of `STAGES`, and bytes of peak memory."""
    before = resident_peak()
    seconds: list[float] = []

    def timed(work: Callable[[], _T]) -> _T:
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
        return result

    def resumed(machine: Machine, snapshot: Snapshot) -> int:
        return len(check_resumed(machine, snapshot, resume(snapshot)))

    machine = timed(lambda: build_machine(layout))
    timed(lambda: audit(machine))
    findings = 0
    for way in WAYS:
        twin = machine.fork()
        snapshot = timed(partial(hibernate, twin, way))
        findings += timed(partial(resumed, machine, snapshot))
    return {"seconds": seconds, "peak": resident_peak() - before, "findings": findings}


def in_own_process(gib: int, holes: int, largest: Level) -> dict[str, object]:
    """`live_through` in a fresh process."""
    told = subprocess.run(
        [sys.executable, __file__, "--child", str(gib), str(holes), largest.name],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, object] = json.loads(told.stdout)
    return result


def curve(title: str, sizes: Sequence[int], holes_of_size: Sequence[int], largest: Level) -> None:
    """One table: a line a size."""
    print(f"\n{title}, largest page {largest.size}; seconds")
    print(f"{'RAM':>9} {'holes':>6} {''.join(f'{name:>11}' for name in STAGES)} {'peak':>9} {'KiB a GiB':>10}")
    for gib, holes in zip(sizes, holes_of_size, strict=True):
        result = in_own_process(gib, holes, largest)
        seconds, peak = result["seconds"], result["peak"]
        assert isinstance(seconds, list)
        assert isinstance(peak, int)
        mark = "" if not result["findings"] else f"   {result['findings']} FINDINGS"
        columns = "".join(f"{one:11.3f}" for one in seconds)
        print(
            f"{gib:5} GiB {holes:6} {columns} {peak / 2**20:5.0f} MiB {peak / 1024 / gib:10.1f}{mark}",
            flush=True,
        )


def simulated_dump(folder: Path) -> tuple[Path, int]:
    """A raw dump of a simulated machine of 1 GiB with a few holes, and its CR3."""
    machine = build_machine(layout_with(1, 100, Level.PMD))
    path = folder / "ram.raw"
    with path.open("wb") as out:
        for pfn, pages in machine.memory.blocks():
            out.seek(pfn * PAGE_SIZE)
            out.write(np.ascontiguousarray(pages).data)
    return path, machine.cr3


def copied_by_us(snapshot: Snapshot) -> int:
    """All pages in order, as a writer gets them; how many."""
    return sum(len(pages) for _, pages in snapshot.chunks())


def copied_by_numpy(snapshot: Snapshot, memory: PhysicalMemory) -> int:
    """The same runs, each by a slice's own copy, as many pages at a time; how many."""
    total = 0
    for start, pages in snapshot.frames:
        at, end = start, start + pages
        while at < end:
            copy = memory.run(at, min(CHUNK_PAGES, end - at)).copy()
            at += len(copy)
        total += pages
    return total


def seconds_of(work: Callable[[], int], pages: int) -> float:
    """How long it takes."""
    start = time.perf_counter()
    copied = work()
    taken = time.perf_counter() - start
    assert copied == pages
    return taken


def copy_speed(what: str, path: Path, cr3: int) -> None:
    """One line: both rates and their ratio."""
    with open_memory(path) as source:
        memory = source.memory
        snapshot = hibernate(Machine.from_source(memory, cr3), Fixmap())
        pages = snapshot.frames.total_pages
        pairs = [
            (
                seconds_of(lambda: copied_by_us(snapshot), pages),
                seconds_of(lambda: copied_by_numpy(snapshot, memory), pages),
            )
            for _ in range(ROUNDS)
        ]
        runs = len(snapshot.frames)
    ours, limit = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    mark = "ok" if limit / ours >= 0.5 else "BELOW"
    size_bytes = pages * PAGE_SIZE
    print(
        f"copy of {what} ({size_bytes >> 20} MiB, {runs} runs): {size_bytes / ours / 1e9:.1f} GB/s"
        f"   NumPy {size_bytes / limit / 1e9:.1f} GB/s   ratio {limit / ours:.2f}  target 0.50  {mark}",
        flush=True,
    )


def copies() -> None:
    """A simulated machine's dump, and a real one where there is golden data."""
    folder = Path(os.environ.get("HIBERNAUT_GOLDEN") or REPOSITORY.parent / "shared" / "golden")
    with tempfile.TemporaryDirectory() as name:
        copy_speed("a raw dump, simulated", *simulated_dump(Path(name)))
    packed = folder / "ram-6.1-lzo.elf.zst"
    if packed.exists():
        expected = json.loads((folder / "expected.json").read_text())["ram-6.1-lzo.elf"]
        copy_speed("an ELF dump of a real 6.1", packed, int(expected["cr3"], 16))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Benchmarks of simulated machines.")
    parser.add_argument("--gib", type=int, nargs="+", default=list(SIZES_GIB), help="sizes of RAM")
    parser.add_argument("--largest", choices=("PMD", "PUD"), nargs="+", default=["PMD", "PUD"], help="largest pages")
    parser.add_argument("--copy-only", action="store_true", help="only the speed of the copy")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        gib, holes, largest = options.child
        print(json.dumps(live_through(layout_with(int(gib), int(holes), Level[largest]))))
        return
    copies()
    if options.copy_only:
        return
    for name in options.largest:
        largest = Level[name]
        scaled = [min(HOLES_A_GIB * gib, MOST_HOLES) for gib in options.gib]
        curve(f"{HOLES_A_GIB} holes a GiB, at most {MOST_HOLES}", options.gib, scaled, largest)
        curve(f"{FIXED_HOLES} holes", options.gib, [FIXED_HOLES] * len(options.gib), largest)


if __name__ == "__main__":
    main()
