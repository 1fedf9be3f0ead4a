# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of other architectures: named with their kernel, and never called damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hibernaut.swsusp.architecture import X86_64, architecture_of
from tests.cli.run import hibernaut, refused
from tests.swsusp.elsewhere import Elsewhere
from tests.swsusp.elsewhere import build as build_elsewhere
from tests.swsusp.images import PAGES
from tests.swsusp.naive import Layout, build

BUILD = b"#1 SMP PREEMPT_DYNAMIC Tue Mar 3 10:11:12 UTC 2026"
KERNEL_ADDRESS = 0xFFFF800080012345


def record(at_72: int, at_80: int) -> bytes:
    """Return a record that begins with the build string, as arm64 and riscv have."""
    return BUILD.ljust(72, b"\0") + struct.pack("<QQ", at_72, at_80) + struct.pack("<QQ", 0x40210000, 0)


def utsname(machine: bytes, release: bytes = b"4.9.0-19-686-pae") -> bytes:
    """Return `struct new_utsname`."""
    return b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"host", release, b"#1 SMP Debian", machine, b""))


PAGES_OF = {
    "arm64": (record(0x41A00000, KERNEL_ADDRESS), "arm64", f"an arm64 kernel, {BUILD.decode()}"),
    "riscv": (record(1, 0x9000000000081234), "riscv", f"a riscv kernel, {BUILD.decode()}"),
    "riscv-sv57": (record(3, 0xA000000000081234), "riscv", f"a riscv kernel, {BUILD.decode()}"),
    "either": (record(3, 0x1234), "arm64 or riscv", f"an arm64 or riscv kernel, {BUILD.decode()}"),
    "i386": (struct.pack("<5I", 0xC10A5000, 0x10A5000, 0x2A00000, 0x12345679, 0x11223344), "i386", "an i386 kernel"),
    "i386-md5": (struct.pack("<4I", 0xC10A5000, 0x10A5000, 0x2A00000, 0x12345678), "i386", "an i386 kernel"),
    "i686": (utsname(b"i686"), "i386", "an i686 kernel 4.9.0-19-686-pae, #1 SMP Debian"),
    "loongarch": (utsname(b"loongarch64", b"6.12"), "loongarch", "a loongarch64 kernel 6.12, #1 SMP Debian"),
    "unknown": (utsname(b"newarch", b"9.1"), "newarch", "a newarch kernel 9.1, #1 SMP Debian"),
    "x86-64-old": (utsname(b"x86_64", b"2.6.18"), "x86-64", "an x86_64 kernel 2.6.18, #1 SMP Debian"),
}


@pytest.mark.parametrize("name", PAGES_OF)
def test_each_architecture_is_named_with_its_kernel(name: str) -> None:
    """By its own record, or by `struct new_utsname`."""
    page, architecture, kernel = PAGES_OF[name]
    found = architecture_of(page.ljust(4096, b"\0"))
    assert found is not None
    assert (found.name, found.kernel) == (architecture, kernel)


def test_big_endian_headers(tmp_path: Path) -> None:
    """The block of the first map page is inside the device when read the other way round."""
    path = tmp_path / "image"
    device = bytearray(build(PAGES, Layout()))
    device[4064:4072] = device[4064:4072][::-1]
    for version in (0, 1 << 24):
        struct.pack_into("<I", device, 1024, version)
        path.write_bytes(device)
        assert "not an x86-64 image: its header is that of a big-endian kernel" in refused("inspect", path)
    struct.pack_into("<I", device, 1024, 1)
    path.write_bytes(device)
    assert "big-endian" not in hibernaut("inspect", path).out


def test_either_record_is_read_but_names_no_machine(tmp_path: Path) -> None:
    """Neither a kernel address nor a mode of `satp`: no ELF core, but its pages."""
    machine = Elsewhere(record(3, 0x1234))
    path = tmp_path / "image"
    path.write_bytes(build_elsewhere({7: b"\x11" * 4096}, machine))
    assert hibernaut("inspect", path).status == 2
    assert "the number for arm64 or riscv is not known" in refused("convert", path, tmp_path / "o", "--to", "elf")


@pytest.mark.parametrize(
    "page",
    [bytes(4096), b"\xff" * 4096, b"# \x07".ljust(4096, b"\0"), b"#" * 4096, utsname(b"\x1b[2J").ljust(4096, b"\0"),
     b"Linux".ljust(4096, b"\0")],
)  # fmt: skip
def test_damaged_pages_do_not_name_a_kernel(page: bytes) -> None:
    """Text that a kernel does not write stays a matter of damage."""
    assert architecture_of(page) is None


def test_an_image_of_x86_64_is_never_foreign() -> None:
    """Its magic decides, whatever the other fields look like."""
    page = bytearray(utsname(b"i686").ljust(4096, b"\0"))
    struct.pack_into("<Q", page, 24, 0x23456789ABCDEF02)
    assert architecture_of(bytes(page)) is X86_64
