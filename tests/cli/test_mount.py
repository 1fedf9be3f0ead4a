# SPDX-License-Identifier: GPL-2.0-or-later
"""Real mounts: their files are those that convert writes, and nothing stays when they end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest

from hibernaut.errors import HibernautError
from hibernaut.memory import declarations
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.writers import write_lime
from hibernaut.mount import fuse
from hibernaut.mount.contents import files_of
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from hibernaut.volumes.output import replacing
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.kernel.test_swapped_pages import BUSYBOX
from tests.memory.naive import page_of

IMAGE = "swap-6.1-lzo.img"
FORMATS = {"vmcore": "elf", "memory.lime": "lime", "memory.raw": "raw"}
MACHINE = ("symbols.json", "log.txt", "processes", "files")
MUST_MOUNT = "HIBERNAUT_FUSE"
"""required: where nothing can be mounted the tests fail, in place of a skip."""
SECONDS = 60
Program = Sequence[str | Path]
HIBERNAUT: Program = ("-m", "hibernaut")
"""Arguments of the interpreter that run the command line."""


class Mounted:
    """A command that serves a mount.

    Attributes:
        folder: the folder.
        server: its process.
    """

    def __init__(
        self, source: Path, folder: Path, *options: str, program: Program = HIBERNAUT, **environment: str
    ) -> None:
        self.folder = folder
        self._out, self._err = (folder.with_name(f"{folder.name}.{name}") for name in ("out", "err"))
        command = [sys.executable, *map(str, program), "mount", str(source), str(folder), *options]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.server = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **environment})
        until = time.monotonic() + SECONDS
        while not os.path.ismount(folder) or not self.out:
            if self.server.poll() is not None or time.monotonic() > until:
                self.server.kill()
                raise HibernautError(f"not mounted: {self.err}")
            time.sleep(0.02)

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return self._err.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its exit status."""
        self.server.send_signal(number)
        return self.server.wait(SECONDS)


@contextmanager
def mounted(
    source: Path, folder: Path, *options: str, program: Program = HIBERNAUT, **environment: str
) -> Iterator[Mounted]:
    """Mount a source on a new folder; at the end nothing is mounted."""
    folder.mkdir()
    found = Mounted(source, folder, *options, program=program, **environment)
    try:
        yield found
    finally:
        if found.server.poll() is None:
            found.end()
        assert not os.path.ismount(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LiME dump of five frames."""
    path = tmp_path_factory.mktemp("small") / "small.lime"
    pfns = np.array([1, 2, 3, 9, 10])
    pages = np.frombuffer(b"".join(page_of(pfn) for pfn in pfns.tolist()), dtype=np.uint8).reshape(-1, PAGE_SIZE)
    with replacing(path) as fd:
        write_lime([(pfns, pages)], fd, FrameRanges.of_pfns(pfns))
    return path


@pytest.fixture(scope="module")
def _fuse(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A system that mounts, or a skip with the reason; with HIBERNAUT_FUSE=required, a failure instead."""
    try:
        with mounted(small, tmp_path_factory.mktemp("fuse") / "folder"):
            pass
    except HibernautError as error:
        if os.environ.get(MUST_MOUNT) == "required":
            pytest.fail(str(error))
        pytest.skip(str(error))


needs_fuse = pytest.mark.usefixtures("_fuse")


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_at_once(path: Path, asked: list[tuple[int, int]]) -> list[bytes]:
    """Return parts of a file, places and lengths, that four threads read."""
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(4) as readers:
        return list(readers.map(lambda one: os.pread(file.fileno(), one[1], one[0]), asked))


@needs_fuse
@pytest.mark.golden
def test_the_machine_inside(golden: Golden, tmp_path: Path) -> None:
    """Log, symbols, processes and files, swapped-out pages included; several readers at once."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    image = golden(IMAGE)
    with mounted(image, tmp_path / "folder") as found:
        init = found.folder / "processes" / "1"
        paths = [found.folder / "files/bin/busybox", init / "core", found.folder / "files/tmp/data", init / "maps"]
        with ThreadPoolExecutor(4) as readers:
            content = dict(zip(paths, readers.map(Path.read_bytes, paths), strict=True))
        assert hashlib.sha256(content[paths[0]]).hexdigest() == BUSYBOX
        assert content[paths[2]].count(b"HLAB-MARKER-PAGE") == 1024
        assert os.listdir(found.folder / "processes") == ["1"]
        assert (init / "cmdline").read_bytes() == b"/bin/busybox\0sh\0/init\0nokaslr\0"
        assert (init / "environ").read_bytes().startswith(b"HOME=/\0")
        assert content[init / "maps"].splitlines()[1].startswith(b"401000-585000 r-xp 00001000 ")
        assert (found.folder / "log.txt").read_text() == hibernaut("dmesg", image).out
        core = tmp_path / "core"
        hibernaut("process", image, "1", "--core", core)
        assert content[init / "core"] == core.read_bytes()
        symbols = tmp_path / "symbols.json"
        assert hibernaut("isf", image, "-o", symbols).status == 0
        assert (found.folder / "symbols.json").read_bytes() == symbols.read_bytes()


@needs_fuse
@pytest.mark.golden
def test_the_files_are_those_that_convert_writes(golden: Golden, tmp_path: Path) -> None:
    """All three formats, byte for byte, and the document of inspect; several readers at once, anywhere."""
    image = golden(IMAGE)
    places = random.Random(7)
    with mounted(image, tmp_path / "folder") as found:
        assert sorted(os.listdir(found.folder)) == sorted([*FORMATS, "image.json", *MACHINE])
        for name, to in FORMATS.items():
            out = tmp_path / "out"
            assert hibernaut("convert", image, out, "--to", to, "--quiet").status == 0
            whole = out.read_bytes()
            asked = [(places.randrange(len(whole)), places.choice((1, 5000, 300_000))) for _ in range(200)]
            assert read_at_once(found.folder / name, asked) == [whole[at : at + size] for at, size in asked]
            assert (found.folder / name).stat().st_size == len(whole)
            assert sha256(found.folder / name) == hashlib.sha256(whole).hexdigest()
        assert (found.folder / "image.json").read_text() == hibernaut("inspect", image, "--no-machine", "--json").out
        assert found.end() == 0
        assert found.err == ""


@needs_fuse
@pytest.mark.parametrize("library", ["fuse", "fuse3"])
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
def test_it_ends_cleanly(small: Path, tmp_path: Path, library: str, ending: signal.Signals | None) -> None:
    """By a signal or when it is unmounted: exit status 0, an empty folder, nothing on standard error but remarks."""
    if find_library(library) is None:
        pytest.skip(f"lib{library} is not installed")
    if ending is not None and signal.getsignal(ending) is signal.SIG_IGN:
        pytest.skip(f"{ending.name} is ignored here, as under nohup")
    with mounted(small, tmp_path / "folder", "--json", FUSE_LIBRARY_NAME=library) as found:
        assert (found.folder / "memory.raw").read_bytes()[PAGE_SIZE : 2 * PAGE_SIZE] == page_of(1)
        if ending is None:
            subprocess.run(fuse.unmount_command(found.folder), check=True)
            assert found.server.wait(SECONDS) == 0
        else:
            assert found.end(ending) == 0
        assert json.loads(found.out)["files"] == [*FORMATS, *MACHINE]
        assert [line for line in found.err.splitlines() if "virtual addresses are left out" not in line] == []
    assert os.listdir(tmp_path / "folder") == []


@needs_fuse
def test_it_is_read_only_and_private(small: Path, tmp_path: Path) -> None:
    """Files of mode 0400 in a folder of mode 0500, of the mounting user; nothing can be written, made or removed."""
    with mounted(small, tmp_path / "folder") as found:
        assert found.out.startswith(f"mounted on {found.folder}: {', '.join([*FORMATS, *MACHINE])}; unmount with `")
        for path in (found.folder, *found.folder.iterdir()):
            status = path.stat()
            assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
            assert stat.S_IMODE(status.st_mode) == (0o500 if stat.S_ISDIR(status.st_mode) else 0o400)
            assert status.st_mtime == small.stat().st_mtime
        actions = (
            lambda: (found.folder / "new").touch(),
            lambda: (found.folder / "vmcore").write_bytes(b""),
            lambda: (found.folder / "vmcore").unlink(),
            lambda: (found.folder / "vmcore").chmod(0o600),
        )
        for act in actions:
            with pytest.raises(OSError) as failure:  # noqa: PT011 - the number follows
                act()
            assert failure.value.errno == errno.EROFS
        for missing in ("nothing", "vmcore/inside"):
            assert not (found.folder / missing).exists()


def test_nothing_is_mounted_elsewhere(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not there, is a file or has entries; a source that is not there: one line each."""
    monkeypatch.setattr(fuse, "_library", lambda: None)
    monkeypatch.setattr(fuse, "DEVICE", Path("/dev/null"))
    monkeypatch.setattr(fuse, "_unmounter", lambda: "fusermount3")
    (tmp_path / "file").write_bytes(b"no memory")
    (tmp_path / "empty").mkdir()
    assert "does not exist" in refused("mount", small, tmp_path / "nothing")
    assert "is not a folder" in refused("mount", small, tmp_path / "file")
    assert "is not empty" in refused("mount", small, tmp_path)
    assert "nothing" in refused("mount", tmp_path / "nothing", tmp_path / "empty")
    assert "no memory that can be read" in refused("mount", tmp_path / "file", tmp_path / "empty")


def test_a_missing_need_is_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mfusepy, without libfuse, without the device: one line with what to install or load."""
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    assert "pip install mfusepy" in refused("mount", small, tmp_path)
    monkeypatch.delitem(sys.modules, "mfusepy")
    monkeypatch.setenv("FUSE_LIBRARY_PATH", str(tmp_path / "libfuse.so"))
    assert "install libfuse" in refused("mount", small, tmp_path)
    monkeypatch.setattr(fuse, "_library", lambda: None)
    monkeypatch.setattr(fuse, "DEVICE", tmp_path / "fuse")
    assert "modprobe fuse" in refused("mount", small, tmp_path)
    monkeypatch.setattr(fuse, "DEVICE", Path("/dev/null"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "fusermount is not installed" in refused("mount", small, tmp_path)


@needs_fuse
@pytest.mark.golden
def test_a_damaged_unit_is_an_error_of_its_reads(golden_copy: object, tmp_path: Path) -> None:
    """Reads of its pages fail with EIO and are reported once; all others succeed."""
    assert callable(golden_copy)
    path = golden_copy(IMAGE)
    with open_image(path) as image:
        unit = 300
        entry = int(image.stream.index.first_entry[unit])
        damaged_at = image.area.offset_of(int(image.swap_map.entries[entry])) + 8
        rows = image.stream.rows_of(unit, unit + 1)
        pfns = image.stored_pfns[rows[0] - image.meta_rows : rows[1] - image.meta_rows].tolist()
        before = image.memory().page(pfns[0] - 200)
        assert before is not None
    with path.open("r+b") as file:
        file.seek(damaged_at)
        file.write(b"\xff" * 64)
    with mounted(path, tmp_path / "folder") as found, (found.folder / "memory.raw").open("rb", buffering=0) as raw:
        for _ in range(2):
            with pytest.raises(OSError) as failure:  # noqa: PT011 - the number follows
                os.pread(raw.fileno(), PAGE_SIZE, pfns[5] * PAGE_SIZE)
            assert failure.value.errno == errno.EIO
        assert os.pread(raw.fileno(), PAGE_SIZE, (pfns[0] - 200) * PAGE_SIZE) == before.tobytes()
        assert json.loads((found.folder / "image.json").read_text())["problems"]
        assert found.end() == 0
        lines = found.err.splitlines()
        assert lines
        assert all(f"unit {unit}" in line and line.startswith("hibernaut: memory.raw, byte ") for line in lines)
        assert len(set(lines)) == len(lines)


@needs_fuse
@pytest.mark.golden
def test_a_used_up_image_is_mounted_as_far_as_it_goes(golden_copy: object, tmp_path: Path) -> None:
    """With --consumed; the files and the exit status are those of convert."""
    assert callable(golden_copy)
    path = golden_copy(IMAGE)
    with path.open("r+b") as file:
        file.seek(PAGE_SIZE - 10)
        file.write(b"SWAPSPACE2")
        file.seek(3000 * PAGE_SIZE)
        file.write(bytes(64 * PAGE_SIZE))
    for name, to in FORMATS.items():
        assert hibernaut("convert", path, tmp_path / name, "--to", to, "--consumed", "--quiet").status == 1
    inspected = hibernaut("inspect", path, "--consumed", "--json").out
    with mounted(path, tmp_path / "folder", "--consumed", "--json") as found:
        assert [sha256(found.folder / name) for name in FORMATS] == [sha256(tmp_path / name) for name in FORMATS]
        assert (found.folder / "image.json").read_text() == inspected
        assert json.loads(found.out)["salvage"] == json.loads(inspected)["salvage"]
        assert found.end() == 1


def test_a_format_that_has_no_room_is_left_out(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As convert refuses it: more ranges than LiME or a core is read with."""
    with open_memory(small) as source:
        assert list(files_of(source, vaddr_base=None, root=None)[0]) == [*FORMATS, *MACHINE]
        monkeypatch.setattr(declarations, "MOST_LIME_RANGES", 1)
        monkeypatch.setattr(declarations, "MOST_ELF_HEADERS", 2)
        files, remarks = files_of(source, vaddr_base=None, root=None)
    assert list(files) == ["memory.raw", *MACHINE]
    assert remarks == (
        "vmcore is left out: 2 separate ranges of frames, more than the 1 of a core",
        "memory.lime is left out: 2 separate ranges of frames, more than the 1 of a LiME file",
    )
