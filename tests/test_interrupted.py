# SPDX-License-Identifier: GPL-2.0-or-later
"""An interrupted call ends all of its threads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hibernaut import Fixmap, build_machine, hibernate, parallel
from hibernaut.linux.layout import Layout, hole_4k
from hibernaut.memory.writers import write_raw
from hibernaut.paging import bulk, scan
from hibernaut.paging.tables import PageTables
from hibernaut.swsusp import open_image, rewrite_image
from hibernaut.swsusp.image import Image
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.stream import UnitStream
from hibernaut.swsusp.writer import NewArea, write_image
from hibernaut.volumes.output import replacing
from tests.conftest import Golden
from tests.interrupts import Interrupts

LAYOUT = Layout(ram=((0, 0xA0), (0x100, 0x3F00)), holes=tuple(hole_4k(0x400 + 512 * n) for n in range(16)))


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of a machine of 64 MiB."""
    machine = build_machine(LAYOUT)
    snapshot = hibernate(machine, Fixmap())
    path = tmp_path_factory.mktemp("interrupted") / "image"
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=machine.memory.ranges.total_pages)
    write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    return path


@pytest.fixture(autouse=True)
def _four_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "worker_count", lambda: 4)


def write_new(image: Image, out: Path, *, zero_pages: bool) -> None:
    """Write the memory of an image as a new image."""
    write_image(out, image.memory(), image.pfns, image.info, NewArea(), compressor="lz4", zero_pages=zero_pages)


def convert(image: Image, out: Path) -> None:
    """Write the memory of an image as a raw dump."""
    memory = image.memory()
    with replacing(out) as fd:
        write_raw(image.for_each, fd, memory.ranges)


READERS: dict[str, Callable[[Image, Path], object]] = {
    "all pages, in any order": lambda image, _out: image.for_each(lambda _pfns, _pages: None),
    "all pages at once": lambda image, _out: image.read_all(),
    "all pages in order": lambda image, _out: list(image.chunks()),
    "CRC": lambda image, _out: image.computed_crc(),
    "scattered pages": lambda image, _out: image.memory().gather(image.pfns[::40]),
    "new image": lambda image, out: write_new(image, out, zero_pages=False),
    "new image without zero pages": lambda image, out: write_new(image, out, zero_pages=True),
    "rewritten image": rewrite_image,
    "raw dump": convert,
}
"""Everything that reads an image on several threads."""


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("reader", READERS)
def test_interrupted_readers_and_writers_of_images(
    interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch, reader: str, times: int, image_file: Path, tmp_path: Path
) -> None:
    """The interrupt comes while units are read: no thread and no file is left."""
    with open_image(image_file) as image:
        monkeypatch.setattr(UnitStream, "_read_entries", interrupts.once(UnitStream._read_entries, times))
        with interrupts.expected():
            READERS[reader](image, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_of_images_whose_memory_is_slow(
    interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same where the pages come from elsewhere."""
    memory = build_machine(LAYOUT).memory
    info = ImageInfo.blank(cr3=0, physical_pages=memory.ranges.total_pages)
    monkeypatch.setattr(type(memory), "run", interrupts.once(type(memory).run))
    with interrupts.expected():
        write_image(tmp_path / "out", memory, memory.ranges.pfns(), info, NewArea(), compressor="lzo", zero_pages=False)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_page_tables(interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans and translations leave no thread that reads memory."""
    machine = build_machine(LAYOUT)
    tables = PageTables(machine.memory, machine.cr3, machine.levels)
    monkeypatch.setattr(scan, "MIXED_CHUNK", 2)
    with monkeypatch.context() as patch, interrupts.expected():
        patch.setattr(scan._Scanner, "_mixed", interrupts.once(scan._Scanner._mixed))
        tables.scan()
    monkeypatch.setattr(bulk, "CHUNK_ADDRESSES", 100)
    vaddrs = np.uint64(machine.base) + np.arange(10_000, dtype=np.uint64) * np.uint64(4096)
    with monkeypatch.context() as patch, interrupts.expected():
        patch.setattr(bulk._Walker, "chunk", interrupts.once(bulk._Walker.chunk))
        tables.translate(vaddrs)
    assert (tables.translate(vaddrs[:100]).pfns == np.arange(100)).all()


COMMANDS = {
    "rewrite": ("rewrite", "IMAGE", "OUT", "--compressor", "none"),
    "convert": ("convert", "IMAGE", "OUT", "--to", "raw"),
    "save": ("save", "IMAGE", "OUT", "--via", "fixmap", "--compressor", "none"),
}


def grown(pid: int, folder: Path) -> bool:
    """Return whether a process has a new file in a folder open, with or without a name, that holds something."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link).startswith(f"{folder}/") and link.stat().st_blocks > 1000:
                return True
    return False


@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_commands(command: str, golden: Golden, tmp_path: Path) -> None:
    """Ctrl-C while the output grows: status 130, no traceback, the old output is there and nothing else."""
    out = tmp_path / "out"
    out.write_bytes(b"old")
    words = [{"IMAGE": str(golden("swap-6.1-lzo.img")), "OUT": str(out)}.get(word, word) for word in COMMANDS[command]]
    program = [sys.executable, "-c", "from hibernaut.cli import main; main()", *words]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not grown(process.pid, tmp_path):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        told, error = process.communicate()
    assert (process.returncode, told) == (130, "")
    assert "Traceback" not in error
    assert (os.listdir(tmp_path), out.read_bytes()) == (["out"], b"old")
