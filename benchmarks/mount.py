# SPDX-License-Identifier: GPL-2.0-or-later
"""A mounted image: random reads of its core, as a ratio against the converted file, and what first looks decompress.

    python benchmarks/mount.py [IMAGE]

IMAGE is an image, by default the golden one `swap-6.1-lzo.img`. Every ratio is measured in this run. Reads of the mount
are measured twice: for the first time, when each unit is decompressed, to the same reads of the file and to the
decompression of the whole image alone on all cores; and again, when the page cache has them.
What a first look decompresses is counted in units, those of the list of frames included.
Needs the extra `mount`, FUSE, and drgn for the last lines.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hibernaut.kernel.drgn_plugin import drgn_prog_set
from hibernaut.memory.page import Bytes
from hibernaut.swsusp import open_image
from hibernaut.volumes.copying import copy_sparse
from hibernaut.volumes.files import open_plain

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "swap-6.1-lzo.img.zst"
COMMAND = [sys.executable, "-m", "hibernaut"]
SIZES = (4 << 10, 128 << 10, 1 << 20)
READERS = 4
COUNT = "--count"
TASKS = """from drgn.helpers.linux.pid import for_each_task
print(len([(task.pid.value_(), task.comm.string_()) for task in for_each_task(prog)]), end=" ", flush=True)
"""
MIB = 1 << 20


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path, nargs="?", default=GOLDEN)
    given = parser.parse_args().image
    with tempfile.TemporaryDirectory() as name:
        image, core = Path(name, "image"), Path(name, "core")
        with open_plain(given) as file, image.open("wb") as copy:
            copy_sparse(file, copy.fileno())
        subprocess.run([*COMMAND, "convert", image, core, "--to", "elf", "--quiet"], check=True)
        for size in SIZES:
            for readers in (1, READERS):
                _print_reads(image, core, size, readers)
        _print_first_looks(image)


def _print_reads(image: Path, core: Path, size: int, readers: int) -> None:
    """Print the rates of random reads of one size, by some readers at a time, each part of the file once."""
    places = list(range(0, core.stat().st_size - size, size))
    random.Random(1).shuffle(places)
    with mounted(image) as folder:
        first = _rate(folder / "vmcore", places, size, readers)
        again = _rate(folder / "vmcore", places, size, readers)
    plain, codec = _rate(core, places, size, readers), _decompression(image)
    print(
        f"random reads of {size >> 10:4} KiB, {readers} at a time: first {first:5.0f} MiB/s, ratio to decompression"
        f" {first / codec:.2f}, to the file {first / plain:.2f}; again {again:5.0f} MiB/s, ratio to the file"
        f" {again / plain:.2f}"
    )


def _decompression(image: Path) -> float:
    """Return MiB a second of decompressing an image on all cores, the results dropped."""
    with open_image(image) as opened:
        started = time.perf_counter()
        opened.for_each(lambda _pfns, _pages: None)
        return len(opened.pfns) * 4096 / MIB / (time.perf_counter() - started)


def _rate(path: Path, places: list[int], size: int, readers: int) -> float:
    """Return MiB a second."""
    fd = os.open(path, os.O_RDONLY)
    try:
        started = time.perf_counter()
        with ThreadPoolExecutor(readers) as pool:
            done = sum(pool.map(lambda at: len(os.pread(fd, size, at)), places, chunksize=16))
        return done / MIB / (time.perf_counter() - started)
    finally:
        os.close(fd)


def _print_first_looks(image: Path) -> None:
    """Print how many units of an image are decompressed until drgn answers, from the mount on, and in place."""
    try:
        import drgn
        from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
        from drgn.helpers.linux.pid import for_each_task
    except ImportError:
        return

    def first_task(program: drgn.Program) -> None:
        place = program.symbol("init_task")
        program.read(place.address, place.size).index(b"swapper/0")

    def with_its_own_symbols(program: drgn.Program) -> None:
        program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
        first_task(program)

    def tasks(program: drgn.Program) -> None:
        print(len([(task.pid.value_(), task.comm.string_()) for task in for_each_task(program)]), end=" ")

    for what, look in (
        ("mounted", None),
        ("symbol and init_task", first_task),
        ("the same, by drgn's own reader of kallsyms", with_its_own_symbols),
        ("processes", tasks),
    ):
        with mounted(image, count=True) as folder:
            if look is not None:
                program = drgn.Program()
                program.set_core_dump(folder / "vmcore")
                drgn_prog_set(program)
                look(program)
                del program
        _print_counts(image, what)
    script = image.with_name("tasks.py")
    script.write_text(TASKS)
    subprocess.run([sys.executable, __file__, COUNT, "drgn", image, script], check=True)
    _print_counts(image, "processes in place")


def _print_counts(image: Path, what: str) -> None:
    units, total = json.loads((image.parent / "counts").read_text())
    print(f"{what}: {units} of {total} units are decompressed ({units / total:.1%} of the image)")


@contextmanager
def mounted(image: Path, *, count: bool = False) -> Iterator[Path]:
    """Yield a folder on which an image is mounted; with `count` the number of its units read is kept beside it."""
    folder = image.parent / "mount"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, COUNT] if count else COMMAND
    server = subprocess.Popen([*command, "mount", image, folder], stdout=subprocess.PIPE)
    try:
        if not server.stdout or not server.stdout.readline():
            raise SystemExit("the image could not be mounted")
        yield folder
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def count_units() -> None:
    """Run the command line of this process, and write the number of units that are read, and of all."""
    from hibernaut.cli.app import run
    from hibernaut.swsusp.stream import UnitStream

    units: set[int] = set()
    read_entries = UnitStream._read_entries

    def counted(stream: UnitStream, first: int, last: int, out: Bytes) -> None:
        begin, end = np.searchsorted(stream.index.first_entry, [first, last - 1], side="right").tolist()
        units.update(range(begin - 1, end))
        read_entries(stream, first, last, out)

    UnitStream._read_entries = counted  # type: ignore[method-assign, assignment]
    arguments = sys.argv[2:]
    try:
        run(arguments)
    finally:
        with open_image(arguments[1]) as image:
            counts = [len(units), len(image.stream.index)]
        Path(arguments[1]).with_name("counts").write_text(json.dumps(counts))


if __name__ == "__main__":
    if sys.argv[1:2] == [COUNT]:
        count_units()
    else:
        main()
