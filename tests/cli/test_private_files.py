# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that hold the memory of a machine are private, whichever command writes them and whatever the umask."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hibernaut import Fixmap, build_machine, hibernate
from hibernaut.linux.layout import Layout
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image
from tests.cli.run import hibernaut

NOBODY = 65534
"""The user and group that own nothing else (Linux' overflowuid)."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "convert raw": ("convert", "SOURCE", "OUT", "--to", "raw"),
    "convert elf": ("convert", "SOURCE", "OUT", "--to", "elf"),
    "convert lime": ("convert", "SOURCE", "OUT", "--to", "lime"),
    "save": ("save", "SOURCE", "OUT", "--via", "fixmap"),
    "save like": ("save", "SOURCE", "OUT", "--via", "fixmap", "--like", "SOURCE"),
    "rewrite": ("rewrite", "SOURCE", "OUT"),
    "report": ("report", "SOURCE", "--output", "OUT"),
}
"""Every command that makes such a file, but for `demo --keep` (test_demo.py) and the laboratory's."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of a machine of 4 MiB."""
    machine = build_machine(Layout(ram=((0, 0xA0), (0x100, 0x300))))
    snapshot = hibernate(machine, Fixmap())
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=machine.memory.ranges.total_pages)
    path = tmp_path_factory.mktemp("private") / "source"
    write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    return path


@pytest.fixture(params=[0, 0o022], ids=["umask 0", "umask 022"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def run(command: str, source: Path, out: Path) -> None:
    """Run a command on a source, as `COMMANDS` has it, and check that it succeeds."""
    words = [{"SOURCE": str(source), "OUT": str(out)}.get(word, word) for word in COMMANDS[command]]
    result = hibernaut(*words, "--quiet")
    assert result.status == 0, result.err


def mode(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_new_file_is_private(command: str, source: Path, tmp_path: Path) -> None:
    """Mode 0600, and nothing else is left beside it."""
    out = tmp_path / "out"
    run(command, source, out)
    assert mode(out) == 0o600
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("before", "after"), [(0o400, 0o400), (0o600, 0o600), (0o640, 0o600), (0o666, 0o600)])
def test_a_replaced_file_stays_as_private_as_it_was(
    command: str, before: int, after: int, source: Path, tmp_path: Path
) -> None:
    """No bit of the mode that the old file lacks, and none for others; root keeps its owner and group."""
    out = tmp_path / "out"
    out.write_bytes(b"old")
    out.chmod(before)
    if os.geteuid() == 0:
        os.chown(out, NOBODY, NOBODY)
    old = out.stat()
    run(command, source, out)
    new = out.stat()
    assert new.st_size > len(b"old")
    assert stat.S_IMODE(new.st_mode) == after
    assert (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize("before", [0o600, 0o640])
def test_an_area_that_is_rewritten_in_place_keeps_its_mode(before: int, source: Path, tmp_path: Path) -> None:
    """The file stays the same one: inode, mode and owner."""
    area = tmp_path / "area"
    shutil.copyfile(source, area)
    area.chmod(before)
    if os.geteuid() == 0:
        os.chown(area, NOBODY, NOBODY)
    old = area.stat()
    assert hibernaut("rewrite", area, "--in-place", "--write", "0x1000=a5", "--quiet").status == 0
    new = area.stat()
    assert area.read_bytes() != source.read_bytes()
    assert (new.st_ino, new.st_mode, new.st_uid, new.st_gid) == (old.st_ino, old.st_mode, old.st_uid, old.st_gid)
