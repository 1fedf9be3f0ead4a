# SPDX-License-Identifier: GPL-2.0-or-later
"""A mounted image: random reads of its core, as a ratio against the converted file, and what drgn's first look reads.

    python benchmarks/mount.py [IMAGE]

IMAGE is an image, by default the golden one `swap-6.1-lzo.img`. Every ratio is measured in this run. Reads of the mount
are measured twice: for the first time, when each unit is decompressed, to the same reads of the file and to the
decompression of the whole image alone on all cores; and again, when the page cache has them.
Needs the extra `mount`, FUSE, and drgn for the last line.
"""

from __future__ import annotations

import argparse
import contextlib
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

from hibernaut.swsusp import open_image
from hibernaut.volumes.copying import copy_sparse
from hibernaut.volumes.files import open_plain

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "swap-6.1-lzo.img.zst"
COMMAND = [sys.executable, "-m", "hibernaut"]
SIZES = (4 << 10, 128 << 10, 1 << 20)
READERS = 4
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
        _print_first_look(image)


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


def _print_first_look(image: Path) -> None:
    """Print how much of an image drgn reads until it has the kernel's symbols and the name of its first task."""
    with contextlib.suppress(ImportError), mounted(image, count=True) as folder:
        import drgn
        from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

        program = drgn.Program()
        program.set_core_dump(folder / "vmcore")
        program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
        address = program.symbol("init_task").address
        program.read(address, 4096).index(b"swapper/0")
    units, total = json.loads((image.parent / "counts").read_text())
    print(f"drgn, symbols and init_task: {units} of {total} units are decompressed ({units / total:.1%} of the image)")


@contextmanager
def mounted(image: Path, *, count: bool = False) -> Iterator[Path]:
    """Yield a folder on which an image is mounted; with `count` the number of its units read is kept beside it."""
    folder = image.parent / "mount"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__] if count else COMMAND
    server = subprocess.Popen([*command, "mount", image, folder], stdout=subprocess.PIPE)
    try:
        if not server.stdout or not server.stdout.readline():
            raise SystemExit("the image could not be mounted")
        yield folder
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def count_units() -> None:
    """Run the command line of this process, and write the number of units that were read, and of all."""
    from hibernaut.cli.app import run
    from hibernaut.swsusp.image import ImageMemory

    read: set[int] = set()
    unpacked = ImageMemory._unpacked

    def noted(memory: ImageMemory, unit: int) -> object:
        read.add(unit)
        return unpacked(memory, unit)

    ImageMemory._unpacked = noted  # type: ignore[method-assign, assignment]
    run(sys.argv[1:])
    with open_image(sys.argv[2]) as image:
        counts = [len(read), len(image.stream.index)]
    Path(sys.argv[2]).with_name("counts").write_text(json.dumps(counts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["mount"]:
        count_units()
    else:
        main()
