# SPDX-License-Identifier: GPL-2.0-or-later
"""The architecture of the kernel that wrote an image, as its info page tells.

Each architecture that keeps a record of its own puts it where the others have `struct new_utsname`:
arch/arm64/kernel/hibernate.c (`struct arch_hibernate_hdr`), arch/riscv/kernel/hibernate.c (the same name),
arch/x86/power/hibernate.c (`struct restore_data_record`, of 32 bits on i386). Read in linux-source-7.3 7.3.4-1~bpo13+1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory import declarations as c
from hibernaut.swsusp.e820 import E820Check
from hibernaut.swsusp.generations import generation_of

__all__ = [
    "I386_E820_AT",
    "OTHER_ARCHITECTURE",
    "X86_64",
    "Architecture",
    "architecture_of",
    "foreign_image",
    "refuse_foreign",
]

OTHER_ARCHITECTURE = "see what `hibernaut inspect` says of it, or take its memory out with `hibernaut convert`"
"""Next step for an image of another one than x86-64."""

UTS_BYTES = 65
"""`__NEW_UTS_LEN` + 1 (include/uapi/linux/utsname.h)."""
NEW_UTSNAME = np.dtype([(name, f"S{UTS_BYTES}") for name in ("sysname", "nodename", "release", "version", "machine")])
"""`struct new_utsname`, without the domain's name."""
I386_RECORD = np.dtype([(name, "<u4") for name in ("jump_address", "jump_address_phys", "cr3", "magic")])
I386_E820_AT = I386_RECORD.itemsize
I386_MAGICS = {0x12345678: E820Check.MD5, 0x12345679: E820Check.CRC32}
"""`RESTORE_MAGIC` on i386 (arch/x86/power/hibernate.c), and how it keeps the e820 map after it: as on x86-64.

The magic of the MD5 was read in a tree of 5.x."""
ARM64_RECORD = np.dtype(
    {
        "names": ["ttbr1_el1", "reenter_kernel", "__hyp_stub_vectors", "sleep_cpu_mpidr"],
        "formats": ["<u8"] * 4,
        "offsets": [72, 80, 88, 96],
        "itemsize": 104,
    }
)
RISCV_RECORD = np.dtype(
    {
        "names": ["hartid", "saved_satp", "restore_cpu_addr"],
        "formats": ["<u8"] * 3,
        "offsets": [72, 80, 88],
        "itemsize": 96,
    }
)
"""The records of arm64 and riscv after `uts_version`: one has a kernel address where the other has `satp`."""
RISCV_SATP_MODES = (8, 9, 10)
"""Sv39, Sv48, Sv57 in the top four bits (RISC-V privileged specification, `satp`)."""
KERNEL_ADDRESS = 0xF
BUILD = re.compile(rb"#[0-9][ -~]{1,62}")
"""`UTS_VERSION` (init/version-timestamp.c): `#1 SMP ...`."""
NAME = re.compile(rb"[ -~]{1,64}")


@dataclass(frozen=True)
class Architecture:
    """An architecture, and the kernel of an image as far as the info page names it.

    Attributes:
        name: as Linux names it: arm64, riscv, i386, x86-64; or the machine of `struct new_utsname`.
        kernel: the kernel with an article and its build string; None for x86-64 with a restore record.
        build: `UTS_VERSION` of the kernel; None where the page does not have it.
        release: its release; None where the page does not have it.
        elf_machine: `e_machine` of an ELF core of such a machine; None where it is not known.
        long_bytes: size of `unsigned long`; None where the architecture has both, and the counts tell.
        record: fields of the architecture's own record by their kernel names; empty for x86-64.
        e820: the way in which the record keeps the firmware's memory map; NONE for x86-64, see `Generation`.
    """

    name: str
    kernel: str | None = None
    build: str | None = None
    release: str | None = None
    elf_machine: int | None = None
    long_bytes: int | None = 8
    record: tuple[tuple[str, int], ...] = ()
    e820: E820Check = E820Check.NONE

    @property
    def is_x86_64(self) -> bool:
        """Whether the page tables of its machines are those of x86-64."""
        return self.name == X86_64.name


X86_64 = Architecture("x86-64", elf_machine=c.EM_X86_64)

BY_MACHINE = (
    (r"x86_64", "x86-64", c.EM_X86_64, 8),
    (r"i[3-6]86", "i386", c.EM_386, 4),
    (r"aarch64", "arm64", c.EM_AARCH64, 8),
    (r"riscv64", "riscv", c.EM_RISCV, 8),
    (r"loongarch64", "loongarch", c.EM_LOONGARCH, 8),
    (r"ppc64le", "powerpc", c.EM_PPC64, 8),
    (r"armv\d.*", "arm", c.EM_ARM, 4),
    (r"mips.*", "mips", c.EM_MIPS, None),
    (r"sh\d.*", "sh", c.EM_SH, 4),
)
"""Machine of `struct new_utsname`: architecture, ELF machine, size of `unsigned long`."""


def foreign_image(architecture: Architecture) -> str:
    """Return the statement that an image is not of an x86-64 kernel with a restore record."""
    not_this = "an image without a restore record" if architecture.is_x86_64 else "not an x86-64 image"
    return f"{not_this}: its info page is that of {architecture.kernel}"


def refuse_foreign(architecture: Architecture | None, name: str) -> None:
    """Raise FormatError if an image is of another machine, whose page tables are not read.

    Args:
        architecture: that of its info page; None if it names none.
        name: name of the file.
    """
    if architecture is not None and not architecture.is_x86_64:
        raise FormatError(
            f"{foreign_image(architecture)}, whose page tables are not read",
            source=name,
            advice=OTHER_ARCHITECTURE,
        )


def architecture_of(page: bytes) -> Architecture | None:
    """Return the architecture of the kernel that wrote an info page; None if the page names none.

    Args:
        page: the page, at least its first 4096 bytes.
    """
    if generation_of(page[:4096]) is not None:
        return X86_64
    record = np.frombuffer(page, dtype=I386_RECORD, count=1)[0]
    check = I386_MAGICS.get(int(record["magic"]))
    if check is not None:
        fields = _fields(record, I386_RECORD.names or ())
        return Architecture("i386", "an i386 kernel", None, None, c.EM_386, 4, fields, check)
    build = page[:UTS_BYTES].rstrip(b"\0")
    if BUILD.fullmatch(build):
        return _arm64_or_riscv(page, build.decode())
    return _utsname(page)


def _arm64_or_riscv(page: bytes, build: str) -> Architecture:
    """Return the architecture of a record that begins with the build string."""
    riscv = np.frombuffer(page, dtype=RISCV_RECORD, count=1)[0]
    top = int(riscv["saved_satp"]) >> 60
    if top in RISCV_SATP_MODES:
        fields = _fields(riscv, RISCV_RECORD.names or ())
        return Architecture("riscv", f"a riscv kernel, {build}", build, None, c.EM_RISCV, 8, fields)
    if top == KERNEL_ADDRESS:
        fields = _fields(np.frombuffer(page, dtype=ARM64_RECORD, count=1)[0], ARM64_RECORD.names or ())
        return Architecture("arm64", f"an arm64 kernel, {build}", build, None, c.EM_AARCH64, 8, fields)
    return Architecture("arm64 or riscv", f"an arm64 or riscv kernel, {build}", build, long_bytes=None)


def _fields(record: np.void, names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    return tuple((name, int(record[name])) for name in names)


def _utsname(page: bytes) -> Architecture | None:
    """Return the architecture by `struct new_utsname`."""
    names = np.frombuffer(page, dtype=NEW_UTSNAME, count=1)[0]
    machine, release, version = (names[field] for field in ("machine", "release", "version"))
    if names["sysname"] != b"Linux" or not all(NAME.fullmatch(text) for text in (machine, release, version)):
        return None
    kind = machine.decode()
    article = "an" if kind[0] in "aeiox" or kind.startswith("s390") else "a"
    kernel = f"{article} {kind} kernel {release.decode()}, {version.decode()}"
    for pattern, name, elf_machine, long_bytes in BY_MACHINE:
        if re.fullmatch(pattern, kind):
            return Architecture(name, kernel, version.decode(), release.decode(), elf_machine, long_bytes)
    return Architecture(kind, kernel, version.decode(), release.decode(), None, None)
