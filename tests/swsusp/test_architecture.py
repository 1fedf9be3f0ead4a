# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of other architectures: named with their kernel, and never called damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hibernaut.swsusp.architecture import foreign_kernel
from tests.cli.run import refused
from tests.swsusp.images import PAGES
from tests.swsusp.naive import PAGE, Layout, build

BUILD = b"#1 SMP PREEMPT_DYNAMIC Tue Mar 3 10:11:12 UTC 2026"
KERNEL_ADDRESS = 0xFFFF800080012345


def record(at_72: int, at_80: int) -> bytes:
    """Return a record that begins with the build string, as arm64 and riscv have."""
    return BUILD.ljust(72, b"\0") + struct.pack("<QQ", at_72, at_80) + struct.pack("<QQ", 0x40210000, 0)


def utsname(machine: bytes, release: bytes = b"4.9.0-19-686-pae") -> bytes:
    """Return `struct new_utsname`."""
    return b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"host", release, b"#1 SMP Debian", machine, b""))


PAGES_OF = {
    "arm64": (record(0x41A00000, KERNEL_ADDRESS), f"an arm64 kernel, {BUILD.decode()}"),
    "riscv": (record(1, 0x9000000000081234), f"a riscv kernel, {BUILD.decode()}"),
    "riscv-sv57": (record(3, 0xA000000000081234), f"a riscv kernel, {BUILD.decode()}"),
    "either": (record(3, 0x1234), f"an arm64 or riscv kernel, {BUILD.decode()}"),
    "i386": (struct.pack("<5I", 0xC10A5000, 0x10A5000, 0x2A00000, 0x12345679, 0x11223344), "an i386 kernel"),
    "i386-md5": (struct.pack("<4I", 0xC10A5000, 0x10A5000, 0x2A00000, 0x12345678), "an i386 kernel"),
    "i686": (utsname(b"i686"), "an i686 kernel 4.9.0-19-686-pae, #1 SMP Debian"),
    "loongarch": (utsname(b"loongarch64", b"6.12"), "a loongarch64 kernel 6.12, #1 SMP Debian"),
}


def image(folder: Path, page: bytes) -> Path:
    """Write an image whose info page begins with some bytes and has no other record."""
    device = bytearray(build(PAGES, Layout(magic=0)))
    (first_map,) = struct.unpack_from("<Q", device, 4064)
    (info,) = struct.unpack_from("<Q", device, first_map * PAGE)
    device[info * PAGE : info * PAGE + len(page)] = page
    path = folder / "image"
    path.write_bytes(device)
    return path


@pytest.mark.parametrize("name", PAGES_OF)
def test_each_architecture_is_named_with_its_kernel(tmp_path: Path, name: str) -> None:
    """By every command, with exit status 2: the image may be whole."""
    page, kernel = PAGES_OF[name]
    path = image(tmp_path, page)
    for command in (("inspect", path), ("map", path), ("convert", path, tmp_path / "out", "--to", "raw")):
        line = refused(*command)
        assert f"not an x86-64 image: its info page is that of {kernel}: {path}, byte " in line


def test_kernels_of_x86_64_without_a_restore_record(tmp_path: Path) -> None:
    """Before 2.6.24 an image had no CR3; it is of this architecture all the same."""
    line = refused("inspect", image(tmp_path, utsname(b"x86_64", b"2.6.18-419.el5")))
    expected = "an image without a restore record: its info page is that of an x86_64 kernel 2.6.18-419.el5, #1 SMP"
    assert expected in line


@pytest.mark.parametrize("size", [16384, 65536])
def test_larger_pages(tmp_path: Path, size: int) -> None:
    """The header ends with its page, and blocks are pages: the kernel is found through the swap map."""
    device = bytearray(8 * size)
    device[1024] = 1
    struct.pack_into("<QI10s10s", device, size - 32, 3, 4, b"SWAPSPACE2", b"S1SUSPEND\0")
    struct.pack_into("<Q", device, 3 * size, 5)
    page = record(0x41A00000, KERNEL_ADDRESS)
    device[5 * size : 5 * size + len(page)] = page
    path = tmp_path / "area"
    path.write_bytes(device)
    kernel = f"an arm64 kernel, {BUILD.decode()} (pages of {size} bytes)"
    expected = f"not an x86-64 image: its info page is that of {kernel}"
    assert expected in refused("inspect", path)
    assert expected in refused("map", path)
    for wrong in (0, 8, 1 << 40):
        struct.pack_into("<Q", device, size - 32, wrong)
        path.write_bytes(device)
        assert f"this is a swap area with pages of {size} bytes" in refused("inspect", path)


def test_big_endian_headers(tmp_path: Path) -> None:
    """The block of the first map page is inside the device when read the other way round."""
    path = tmp_path / "image"
    device = bytearray(build(PAGES, Layout()))
    device[4064:4072] = device[4064:4072][::-1]
    path.write_bytes(device)
    assert "not an x86-64 image: its header is that of a big-endian kernel" in refused("inspect", path)


@pytest.mark.parametrize(
    "page",
    [bytes(4096), b"\xff" * 4096, b"# \x07".ljust(4096, b"\0"), b"#" * 4096, utsname(b"\x1b[2J").ljust(4096, b"\0"),
     b"Linux".ljust(4096, b"\0")],
)  # fmt: skip
def test_damaged_pages_do_not_name_a_kernel(page: bytes) -> None:
    """Text that a kernel does not write stays a matter of damage."""
    assert foreign_kernel(page) is None


def test_an_image_of_x86_64_is_never_foreign() -> None:
    """Its magic decides, whatever the other fields look like."""
    page = bytearray(utsname(b"i686").ljust(4096, b"\0"))
    struct.pack_into("<Q", page, 24, 0x23456789ABCDEF02)
    assert foreign_kernel(bytes(page)) is None
