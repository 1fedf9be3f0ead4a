# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats that are not read: each is named for what it is, by every command that opens a source."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from hibernaut.memory.foreign import foreign_format
from tests.cli.run import hibernaut, refused
from tests.memory.naive import PAGE, lime, page_of
from tests.swsusp.images import PAGES, image_file
from tests.swsusp.naive import Layout

TUXONICE = b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"
LUKS = b"LUKS\xba\xbe\0\2"
HIBERFIL = bytes(4096) + b"\x81\x81xpress"


def device(*marks: tuple[int, bytes]) -> bytes:
    """Return 64 pages with marks at their bytes."""
    data = bytearray(64 * PAGE)
    for at, mark in marks:
        data[at : at + len(mark)] = mark
    return bytes(data)


def uswsusp(flags: int, at: int = 8 * PAGE, pages: int = 5000) -> bytes:
    """Return an area with an image of suspend-utils: the header's tail and the start of the image header."""
    tail = struct.pack("<q10s10s", at, b"SWAPSPACE2", b"ULSUSPEND\0")
    return device((PAGE - len(tail), tail), (8 * PAGE, struct.pack("<QI", pages, flags)))


def xen_core(names: bytes = b"\0.shstrtab\0.note.Xen\0.xen_prstatus\0.xen_p2m\0.xen_pages\0") -> bytes:
    """Return an ELF core as `xl dump-core` makes it: no program header, memory in sections."""
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, 1, 0)
    section = struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 128, len(names), 0, 0, 1, 0)
    return (head + section + names).ljust(8 * PAGE, b"\0")


def xen_crash() -> bytes:
    """Return an ELF core with a segment of memory and a note of Xen's crash dumps."""
    note = struct.pack("<III4s", 4, 8, 0x1000001, b"Xen\0") + bytes(8)
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    headers = struct.pack("<IIQQQQQQ", 4, 0, 176, 0, 0, len(note), len(note), 0)
    headers += struct.pack("<IIQQQQQQ", 1, 7, 4096, 0, 0, PAGE, PAGE, 0)
    return (head + headers + note).ljust(8 * PAGE, b"\0")


RANDOM = np.random.default_rng(1).bytes(4 * PAGE)
LIME = lime([(0, RANDOM), (8 * PAGE, page_of(8))])
FORMATS = {
    "linhib": (device((4086, b"LINHIB0001")), "a release candidate of 2.6.37 (LINHIB0001"),
    "tuxonice": (device((0, TUXONICE)), "this is an image of TuxOnIce"),
    "tuxonice-in-swap": (device((0, TUXONICE), (4086, b"SWAPSPACE2")), "this is an image of TuxOnIce"),
    "luks": (device((0, LUKS)), "this is a LUKS-encrypted device"),
    "luks-over-swap": (device((0, LUKS), (4086, b"SWAPSPACE2")), "this is a LUKS-encrypted device"),
    "luks-over-image": (device((0, LUKS), (4076, b"SWAPSPACE2S1SUSPEND\0")), "this is a LUKS-encrypted device"),
    "luks-second-header": (device((16384, b"SKUL\xba\xbe\0\2")), "this is a LUKS-encrypted device"),
    "uswsusp-old": (device((4086, b"S2SUSPEND\0")), "this is an image of suspend-utils (uswsusp)"),
    "uswsusp-encrypted": (uswsusp(7), "this is an encrypted image of suspend-utils (uswsusp), which"),
    "uswsusp-rsa": (uswsusp(12), "this is an encrypted image of suspend-utils (uswsusp), with an RSA key"),
    "xen-guest": (xen_core(), "a dump of a Xen guest (xl dump-core)"),
    "xen-crash": (xen_crash(), "a crash dump of Xen, whose page tables hold machine frames"),
    "xen-saved": (device((0, b"Xen saved domain, xl format\n \0 \r")), "this is a saved guest of Xen"),
    "lime-zlib": (zlib.compress(LIME, 1), "this is a LiME dump compressed with zlib"),
    "raw-zlib": (zlib.compress(bytes(100) + RANDOM), "this is a zlib stream"),
    "hiberfil-resumed": (HIBERFIL.ljust(64 * PAGE, b"\0"), "this is a Windows hibernation file"),
    "hiberfil": (device((0, b"HIBR")), "this is a Windows hibernation file"),
    "pages-of-16k": (device((1024, b"\1"), (16374, b"SWAPSPACE2")), "SWAPSPACE2 (pages of 16384 bytes)"),
    "pages-of-64k": (device((1024, b"\1"), (65526, b"SWAP-SPACE")), "SWAP-SPACE (pages of 65536 bytes)"),
}
ONLY_DUMPS = {"xen-guest", "xen-crash"}
"""`inspect` does not find a swap area in them, and leaves the rest to `map`."""


@pytest.mark.parametrize("name", FORMATS)
def test_each_is_named_by_every_command(tmp_path: Path, name: str) -> None:
    """One line, exit status 2, nothing written."""
    content, words = FORMATS[name]
    path = tmp_path / name
    path.write_bytes(content)
    out = tmp_path / "out"
    commands = [("map", path), ("convert", path, out, "--to", "raw"), ("audit", path)]
    if name not in ONLY_DUMPS:
        commands += [("inspect", path), ("rewrite", path, out)]
    for command in commands:
        assert words in refused(*command), command
    assert not out.exists()


def test_an_area_inside_an_encrypted_device_is_encrypted(tmp_path: Path) -> None:
    """A swap file's header is not searched for in ciphertext."""
    path = tmp_path / "device"
    path.write_bytes(device((0, LUKS)))
    assert "this is a LUKS-encrypted device" in refused("inspect", path, "--offset", 9)
    path.write_bytes(bytes(4096) + device((0, LUKS)))
    assert "this is a LUKS-encrypted device" in refused("inspect", path, "--base", 4096)


@pytest.mark.parametrize(
    "content", [uswsusp(7, at=1 << 40), uswsusp(1 << 7 | 4), uswsusp(4, pages=0), uswsusp(4, at=-5)]
)
def test_an_implausible_header_does_not_tell_of_encryption(tmp_path: Path, content: bytes) -> None:
    """There is no version field: what cannot be a header is not believed."""
    path = tmp_path / "area"
    path.write_bytes(content)
    assert "header of an image of suspend-utils (uswsusp)" in refused("inspect", path, status=1)


def test_a_kernel_s_image_with_an_older_mark_of_tuxonice(tmp_path: Path) -> None:
    """The mark is in a part of the header that hibernation leaves: the image is read, with a remark."""
    path = image_file(tmp_path, PAGES, Layout())
    with path.open("r+b") as file:
        file.write(TUXONICE)
    result = hibernaut("inspect", path, "--json")
    assert (result.status, result.document["problems"]) == (0, [])
    assert "TuxOnIce's mark" in result.document["remarks"][0]


def test_memory_is_not_taken_for_a_foreign_format() -> None:
    """Two bytes of a zlib header, or a signature without a swap header before it, are not enough."""
    assert foreign_format(b"\x78\x9c" + bytes(range(256)) * 16) is None
    assert foreign_format(b"\x78\x9c") is not None  # all that there is decompresses
    assert foreign_format(b"\x78\x9d" + zlib.compress(LIME)[2:]) is None


def test_a_signature_of_larger_pages_in_memory(tmp_path: Path) -> None:
    """Without the version of a swap header at byte 1024 it is memory."""
    path = tmp_path / "ram"
    path.write_bytes(device((16374, b"S1SUSPEND\0")))
    assert hibernaut("convert", path, tmp_path / "out", "--to", "lime").status == 0
