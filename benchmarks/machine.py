# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated machines from 1 GiB to 1 TiB, and the copy of plainly present pages against a plain copy of the same runs.

`python benchmarks/machine.py [DUMP]` prints the curve: what a size costs to build, audit, hibernate both ways, resume
and check, each size in a process of its own. With ten holes a GiB the cost follows the holes; with ten holes whatever
the size, it should hardly grow. The copy is measured on DUMP, a RAM dump; without one, on a simulated machine's RAM of
1 GiB, written to a file and mapped.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hibernaut.hibernation import Fixmap, Remap, check_resumed, resume
from hibernaut.hibernation.audit import audit
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.hibernation.swsusp_save import hibernate
from hibernaut.linux import Layout, build_machine
from hibernaut.linux.layout import HoleSpec, hole_2m, hole_4k
from hibernaut.linux.roots import find_root
from hibernaut.memory.page import CHUNK_PAGES
from hibernaut.paging.entries import ENTRIES
from hibernaut.sources import open_memory

SIZES_GIB = (1, 4, 16, 64, 256, 1024)
HOLES_A_GIB = 10
MOST_HOLES = 10_000
FIXED_HOLES = 10
GIB_PAGES = 1 << 18
ROUNDS = 5


def holes_of(pages: int, count: int) -> tuple[HoleSpec, ...]:
    """So many holes, evenly spread above the machine's tables: blocks of 2 MiB and pairs of pages in turn."""
    first = (pages // 32 + 0x10000) // ENTRIES * ENTRIES
    step = (pages - first) // count // ENTRIES * ENTRIES
    return tuple(hole_2m(first + n * step) if n % 2 else hole_4k(first + n * step + 5, 2) for n in range(count))


def measure(gib: int, count: int) -> dict[str, float]:
    """Seconds of each step for a machine of a size, and the peak memory of this process in bytes."""
    pages = gib * GIB_PAGES
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def done(what: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[what] = now - started
        started = now

    layout = Layout(((0, pages),), holes=holes_of(pages, count), tables=0x1000, free_pages=2 * count + 2048)
    machine = build_machine(layout)
    done("build")
    assert audit(machine).safe_by_fixmap
    done("audit")
    for way in (Fixmap(), Remap()):
        snapshot = hibernate(machine.fork(), way)
        done(way.name)
        resumed = resume(snapshot)
        done(f"{way.name} resume")
        findings = check_resumed(machine, snapshot, resumed)
        done(f"{way.name} checks")
        assert way.name != "Fixmap" or not findings
    seconds["peak"] = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds


def curve(holes_of_size: dict[int, int]) -> None:
    """One line a size."""
    steps = ("build", "audit", "Fixmap", "Fixmap resume", "Fixmap checks", "Remap", "Remap resume", "Remap checks")
    print(f"{'RAM':>9} {'holes':>6} " + " ".join(f"{step:>13}" for step in steps) + f" {'peak':>9} {'bytes a GiB':>12}")
    for gib, count in holes_of_size.items():
        told = subprocess.run(
            [sys.executable, __file__, "--measure", str(gib), str(count)], capture_output=True, text=True, check=True
        )
        seconds = json.loads(told.stdout)
        print(
            f"{gib:>5} GiB {count:>6} "
            + " ".join(f"{seconds[step]:>11.2f} s" for step in steps)
            + f" {seconds['peak'] / (1 << 20):>5.0f} MiB {seconds['peak'] / gib:>12.0f}"
        )


def copy_speed(path: Path) -> None:
    """`Snapshot.chunks` of a dump's present pages, to NumPy copying the same runs into one buffer."""
    with open_memory(path) as source:
        machine = machine_from_memory(source.memory, source.cr3 or find_root(source.memory).cr3)
        snapshot = hibernate(machine, Fixmap())
        runs = [source.memory.run(start, pages) for start, pages in snapshot.frames]
        buffer = np.empty((CHUNK_PAGES, 4096), dtype=np.uint8)
        plain = ours = float("inf")
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for run in runs:
                for first in range(0, len(run), CHUNK_PAGES):
                    part = run[first : first + CHUNK_PAGES]
                    np.copyto(buffer[: len(part)], part)
            plain = min(plain, time.perf_counter() - started)
            started = time.perf_counter()
            copied = sum(len(pages) for _, pages in snapshot.chunks())
            ours = min(ours, time.perf_counter() - started)
    size = copied * 4096
    print(
        f"\ncopy of {copied} present pages of {path.name}: {size / ours / 1e9:.1f} GB/s, NumPy's copy of the same runs "
        f"{size / plain / 1e9:.1f} GB/s, ratio {plain / ours:.2f} (aim: 0.5)"
    )


def made_dump(folder: Path) -> Path:
    """The RAM of a simulated machine of 1 GiB, raw."""
    machine = build_machine(Layout(((0, GIB_PAGES),), tables=0x1000))
    path = folder / "ram.raw"
    with path.open("wb") as file:
        for _, pages in machine.memory.blocks():
            file.write(pages.tobytes())
    return path


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
        return
    print(f"{HOLES_A_GIB} holes a GiB, at most {MOST_HOLES}")
    curve({gib: min(HOLES_A_GIB * gib, MOST_HOLES) for gib in SIZES_GIB})
    print(f"\n{FIXED_HOLES} holes")
    curve(dict.fromkeys(SIZES_GIB, FIXED_HOLES))
    with tempfile.TemporaryDirectory() as folder:
        copy_speed(Path(sys.argv[1]) if len(sys.argv) > 1 else made_dump(Path(folder)))


if __name__ == "__main__":
    main()
