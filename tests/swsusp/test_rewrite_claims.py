# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewriting in place: files and devices that are in use, changed, compressed or full."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.swsusp import open_image, rewrite_image
from hibernaut.swsusp import rewrite as rewriting
from tests.swsusp import naive
from tests.swsusp.images import LAYOUT, PAGES, WRITES, image_file, state_of


def test_an_area_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Active swap by /proc/swaps (names with blanks are escaped there), locks of other programs and of QEMU's kind."""
    import fcntl

    folder = tmp_path / "a folder"
    folder.mkdir()
    path = image_file(folder)
    before = path.read_bytes()

    def refuse(match: str) -> None:
        with open_image(path, offset=LAYOUT.header_block) as image, pytest.raises(HibernautError, match=match):
            rewrite_image(image)
        assert path.read_bytes() == before

    swaps = tmp_path / "swaps"
    head = "Filename\tType\tSize\tUsed\tPriority\n/dev/nonexistent partition 1 0 -2\n"
    swaps.write_text(head + str(path).replace(" ", "\\040") + "\tfile\t1 0 -3\n")
    with monkeypatch.context() as patched:
        patched.setattr(rewriting, "SWAPS", swaps)
        refuse("swapping to it")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        refuse("locked")
    with path.open("rb") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0))
        refuse("locked")
    with open_image(path, offset=LAYOUT.header_block) as image:
        monkeypatch.setattr(rewriting, "SWAPS", tmp_path / "missing")
        rewrite_image(image, writes=WRITES)
    assert path.read_bytes() != before


def test_a_compressed_or_changed_file_is_refused(tmp_path: Path) -> None:
    """Only plain bytes can be written in place; a file that is not the one that was read is left alone."""
    import gzip

    path = image_file(tmp_path)
    packed = tmp_path / "image.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with open_image(packed, offset=LAYOUT.header_block) as image, pytest.raises(FormatError, match="gzip"):
        rewrite_image(image)
    with open_image(path, offset=LAYOUT.header_block) as image:
        other = tmp_path / "other"
        other.write_bytes(b"precious")
        other.rename(path)
        with pytest.raises(CorruptImage, match="another file"):
            rewrite_image(image)
    assert path.read_bytes() == b"precious"
    device = bytearray(naive.build(PAGES, LAYOUT))
    path.write_bytes(device)
    with open_image(path, offset=LAYOUT.header_block) as image:
        device[LAYOUT.header_block * 4096 + 4086 : LAYOUT.header_block * 4096 + 4096] = b"SWAPSPACE2"
        path.write_bytes(device)
        with pytest.raises(CorruptImage, match="header was changed"):
            rewrite_image(image)
    assert path.read_bytes() == device


def test_no_room_for_the_new_image_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file cannot grow: nothing in the area has been touched by then."""
    path = image_file(tmp_path)
    before = path.read_bytes()

    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def fileno(self) -> int:
            return os.open("/dev/full", os.O_RDWR)

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with open_image(path, offset=LAYOUT.header_block) as image, pytest.raises(OSError, match="No space"):
        rewrite_image(image)
    assert path.read_bytes() == before


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A block device, and the file behind it; a skip where the system gives none."""
    path = image_file(tmp_path)
    if os.geteuid() != 0 or not shutil.which("losetup"):
        pytest.skip("needs root and losetup(8)")
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device, path
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_device(loop_device: tuple[Path, Path]) -> None:
    """Written in place; refused while another process has claimed it, as mount(8) and swapon(8) do."""
    device, path = loop_device
    before = path.read_bytes()
    claim = os.open(device, os.O_RDONLY | os.O_EXCL)
    with open_image(device, offset=LAYOUT.header_block) as image:
        with pytest.raises(HibernautError, match="in use"):
            rewrite_image(image, writes=WRITES)
        os.close(claim)
        assert path.read_bytes() == before
        rewrite_image(image, writes=WRITES)
    assert state_of(path.read_bytes()) == "new"
