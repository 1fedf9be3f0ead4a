# SPDX-License-Identifier: GPL-2.0-or-later
"""On-disk structures of the dump formats, as data: nothing here reads or writes.

ELF: System V ABI, Object Files (gABI chapters 4 and 5, in glibc's <elf.h>). QEMU's CPU note: `QEMUCPUState` in QEMU's
target/i386/arch_dump.c. VMCOREINFO: Linux's Documentation/admin-guide/kdump/vmcoreinfo.rst. LiME:
`lime_mem_range_header` in its doc/README. kdump-compressed: makedumpfile's IMPLEMENTATION and diskdump_mod.h. All
integers are little-endian.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "AVML_MAGIC",
    "AVML_VERSION",
    "CR0_PG",
    "CR3_FRAME",
    "CR4_LA57",
    "DISKDUMP_MAGIC",
    "ELFCLASS64",
    "ELFDATA2LSB",
    "ELF_HEADER",
    "ELF_INCOMPLETE",
    "ELF_MAGIC",
    "EM_386",
    "EM_AARCH64",
    "EM_ARM",
    "EM_LOONGARCH",
    "EM_MIPS",
    "EM_PPC64",
    "EM_RISCV",
    "EM_SH",
    "EM_X86_64",
    "ET_CORE",
    "EV_CURRENT",
    "FOREIGN",
    "HIBERFIL_BLOCK",
    "KDUMP_COMPRESSED",
    "KDUMP_FLAGS",
    "KDUMP_HEADER",
    "KDUMP_INCOMPLETE",
    "KDUMP_MAGIC",
    "KDUMP_PAGE",
    "KDUMP_SUB_HEADER",
    "LIME_MAGIC",
    "LIME_RANGE",
    "LIME_VERSION",
    "LUKS",
    "MOST_ELF_HEADERS",
    "MOST_LIME_RANGES",
    "NOTE_HEADER",
    "PADDR_LIMIT",
    "PADDR_UNKNOWN",
    "PF_RWX",
    "PN_XNUM",
    "PROGRAM_HEADER",
    "PTI_USER_PGTABLE",
    "PT_LOAD",
    "PT_NOTE",
    "QEMU_CPU_STATE",
    "QEMU_CPU_VERSION",
    "QEMU_NOTE",
    "SECTION_HEADER",
    "SNAPPY_CHUNK_BYTES",
    "SNAPPY_COMPRESSED",
    "SNAPPY_NAME",
    "SNAPPY_PLAIN",
    "SNAPPY_SKIPPABLE",
    "SNAPPY_START",
    "SNAPPY_STREAM",
    "START_KERNEL_MAP",
    "TUXONICE",
    "VMCOREINFO_NOTE",
    "XEN_NOTES",
    "XEN_SECTIONS",
    "Foreign",
]

PADDR_LIMIT = 1 << 52
"""Bound of physical addresses on x86-64 (Intel SDM volume 3, 5.1.4: MAXPHYADDR is at most 52)."""

MOST_ELF_HEADERS = 1 << 22
"""Most program headers of a core, read or written: as many as 16 GiB of RAM in which every second frame is missing."""
MOST_LIME_RANGES = 1 << 20
"""Most ranges of a LiME file, read or written: LiME itself writes one for each range of System RAM in /proc/iomem."""

# ELF64 ------------------------------------------------------------------------------------------------------------

ELF_MAGIC = b"\x7fELF"
ELFCLASS64 = 2
ELFDATA2LSB = 1
EV_CURRENT = 1
ET_CORE = 4
EM_386, EM_MIPS, EM_PPC64, EM_ARM, EM_SH, EM_X86_64 = 3, 8, 21, 40, 42, 62
EM_AARCH64, EM_RISCV, EM_LOONGARCH = 183, 243, 258
"""Machines (include/uapi/linux/elf-em.h)."""
PT_LOAD = 1
PT_NOTE = 4
PF_RWX = 7
PN_XNUM = 0xFFFF
"""Value of e_phnum if sh_info of section header 0 holds the number of program headers."""
PADDR_UNKNOWN = (1 << 64) - 1
"""p_paddr of memory without a fixed physical address: `elf_kcore_store_hdr` / `read_kcore_iter` in fs/proc/kcore.c."""

ELF_HEADER = np.dtype(
    [
        ("e_ident", "u1", 16),  # magic, class, data encoding, version, OS ABI, padding
        ("e_type", "<u2"),
        ("e_machine", "<u2"),
        ("e_version", "<u4"),
        ("e_entry", "<u8"),
        ("e_phoff", "<u8"),
        ("e_shoff", "<u8"),
        ("e_flags", "<u4"),
        ("e_ehsize", "<u2"),
        ("e_phentsize", "<u2"),
        ("e_phnum", "<u2"),
        ("e_shentsize", "<u2"),
        ("e_shnum", "<u2"),
        ("e_shstrndx", "<u2"),
    ]
)
PROGRAM_HEADER = np.dtype(
    [
        ("p_type", "<u4"),
        ("p_flags", "<u4"),
        ("p_offset", "<u8"),
        ("p_vaddr", "<u8"),
        ("p_paddr", "<u8"),
        ("p_filesz", "<u8"),
        ("p_memsz", "<u8"),
        ("p_align", "<u8"),
    ]
)
SECTION_HEADER = np.dtype(
    [
        ("sh_name", "<u4"),
        ("sh_type", "<u4"),
        ("sh_flags", "<u8"),
        ("sh_addr", "<u8"),
        ("sh_offset", "<u8"),
        ("sh_size", "<u8"),
        ("sh_link", "<u4"),
        ("sh_info", "<u4"),
        ("sh_addralign", "<u8"),
        ("sh_entsize", "<u8"),
    ]
)
NOTE_HEADER = np.dtype([("n_namesz", "<u4"), ("n_descsz", "<u4"), ("n_type", "<u4")])
"""Header of a note; name (with its NUL) and description follow, each padded to 4 bytes."""

# Notes --------------------------------------------------------------------------------------------------------------

QEMU_NOTE = b"QEMU"
QEMU_CPU_VERSION = 1
_QEMU_SEGMENT = np.dtype([("selector", "<u4"), ("limit", "<u4"), ("flags", "<u4"), ("pad", "<u4"), ("base", "<u8")])
QEMU_CPU_STATE = np.dtype(
    [
        ("version", "<u4"),
        ("size", "<u4"),  # of the whole structure, this field included
        ("registers", "<u8", 16),  # rax rbx rcx rdx rsi rdi rsp rbp r8 ... r15
        ("rip", "<u8"),
        ("rflags", "<u8"),
        ("cs", _QEMU_SEGMENT),
        ("segments", _QEMU_SEGMENT, 9),  # ds es fs gs ss ldt tr gdt idt
        ("cr", "<u8", 5),
        # A u64 kernel_gs_base follows since QEMU 3.0; nothing here needs it.
    ]
)
CR0_PG = 1 << 31
CR3_FRAME = 0x000F_FFFF_FFFF_F000
"""Bits of CR3 that hold an address; the rest is PCID, or PWT and PCD (Intel SDM volume 3, 2.5)."""
CR4_LA57 = 1 << 12
PTI_USER_PGTABLE = 1 << 12
"""Bit of CR3 that page-table isolation sets for user mode: its two roots are neighbours (PTI_USER_PGTABLE_BIT)."""

VMCOREINFO_NOTE = b"VMCOREINFO"
XEN_NOTES = (b"Xen", b"VMCOREINFO_XEN")
"""Names of notes that Xen's crash dumps have (xen/include/public/elfnote.h, `XEN_ELFNOTE_CRASH_INFO`), and of the note
of its dumped guests (`XEN_ELFNOTE_DUMPCORE_HEADER`)."""
XEN_SECTIONS = b".xen_pages\0"
"""In the names of sections of a guest that `xl dump-core` dumped (Xen, docs/misc/dump-core-format.txt)."""
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map (arch/x86/include/asm/page_64_types.h): base of the mapping of kernel text."""

# LiME -------------------------------------------------------------------------------------------------------------

LIME_MAGIC = 0x4C694D45
LIME_VERSION = 1
LIME_RANGE = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u4"),
        ("s_addr", "<u8"),
        ("e_addr", "<u8"),  # the last byte, not one past it
        ("reserved", "u1", 8),
    ]
)

# AVML ---------------------------------------------------------------------------------------------------------------

AVML_MAGIC = 0x4C4D5641
AVML_VERSION = 2
"""Magic and version of a range (`LIME_RANGE`) whose bytes are a stream of Snappy frames (avml, src/image.rs)."""
SNAPPY_NAME = b"sNaPpY"
SNAPPY_STREAM = 0xFF
SNAPPY_START = b"\xff\x06\0\0" + SNAPPY_NAME
SNAPPY_COMPRESSED, SNAPPY_PLAIN, SNAPPY_SKIPPABLE = 0, 1, 0x80
"""Kinds of chunks (snappy, framing_format.txt); all from the last one on are skipped, but for the identifier."""
SNAPPY_CHUNK_BYTES = 65536
"""Most bytes of data in a chunk."""

# kdump-compressed -------------------------------------------------------------------------------------------------

KDUMP_MAGIC = b"KDUMP   "
DISKDUMP_MAGIC = b"DISKDUMP"
"""Magic of the preceding format, which has another layout."""

KDUMP_HEADER = np.dtype(
    {  # struct disk_dump_header, block 0; struct new_utsname begins at 12, the time is at 408
        "names": [
            "signature", "header_version", "sysname", "release", "version", "machine",
            "status", "block_size", "sub_hdr_size", "bitmap_blocks", "max_mapnr", "nr_cpus",
        ],
        "formats": ["S8", "<u4", "S65", "S65", "S65", "S65", "<u4", "<u4", "<u4", "<u4", "<u4", "<u4"],
        "offsets": [0, 8, 12, 142, 207, 272, 424, 428, 432, 436, 440, 460],
        "itemsize": 464,
    }
)  # fmt: skip
KDUMP_SUB_HEADER = np.dtype(
    [  # struct kdump_sub_header, block 1; each field since a header_version
        ("phys_base", "<u8"),
        ("dump_level", "<u4"),  # 1
        ("split", "<u4"),  # 2: this is one of several files
        ("start_pfn", "<u8"),
        ("end_pfn", "<u8"),
        ("offset_vmcoreinfo", "<u8"),  # 3
        ("size_vmcoreinfo", "<u8"),
        ("offset_note", "<u8"),  # 4
        ("size_note", "<u8"),
        ("offset_eraseinfo", "<u8"),  # 5
        ("size_eraseinfo", "<u8"),
        ("start_pfn_64", "<u8"),  # 6
        ("end_pfn_64", "<u8"),
        ("max_mapnr_64", "<u8"),
    ]
)
KDUMP_INCOMPLETE = 8
"""`DUMP_DH_COMPRESSED_INCOMPLETE` of `status`: makedumpfile ran out of space; descriptors of missing pages are zero."""
ELF_INCOMPLETE = 1
"""`DUMP_ELF_INCOMPLETE` of e_flags (makedumpfile, elf_info.h): the same of an ELF core, whose segments are cut."""
KDUMP_PAGE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
"""struct page_desc: one for each dumped page, ascending."""
KDUMP_FLAGS = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
"""`DUMP_DH_COMPRESSED_*`, in `flags` of a page and in `status` of the header, by name."""
KDUMP_COMPRESSED = {flags: name for name, flags in KDUMP_FLAGS.items()}
"""The names by flags."""

# Foreign formats, refused by name and never taken for raw memory --------------------------------------------------


class Foreign(NamedTuple):
    """A format that is not read.

    Attributes:
        what: its name, with an article.
        offset: byte offset of its magic.
        magics: possible values of its magic.
        advice: what to do with such a file.
        is_dump: whether a variety of it is read as a memory dump.
    """

    what: str
    offset: int
    magics: tuple[bytes, ...]
    advice: str
    is_dump: bool = False

    def begins(self, head: bytes) -> bool:
        """Whether a file with these first bytes is of the format."""
        return head[self.offset : self.offset + 64].startswith(self.magics)


HIBERFIL_BLOCK = b"\x81\x81xpress"
"""Head of each compressed block of a Windows hibernation file, whose first page Windows clears on resume."""

LUKS = Foreign(
    "a LUKS-encrypted device",
    0,
    (b"LUKS\xba\xbe", b"SKUL\xba\xbe"),
    "run `hibernaut find` on it with --passphrase-file, or unlock it with `cryptsetup open --readonly`",
)
TUXONICE = Foreign(
    "an image of TuxOnIce",
    0,
    (b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c",),
    "use a kernel with TuxOnIce for it: no other reads it",
)
"""TuxOnIce's mark is at the start of the swap header's block (util-linux, libblkid/src/superblocks/swap.c)."""

_OTHER_FILE = "give the dump or the image itself"
_TO_RAW = "convert it first: qemu-img convert -O raw"
_UNPACK = "unpack it first"
_PLACE = "name the swap area in it: --partition, --offset or --base"

FOREIGN = (
    Foreign(
        "a Windows hibernation file",
        0,
        (b"HIBR", b"hibr", b"WAKE", b"wake", b"RSTR", b"rstr"),
        "use a tool for Windows: there is no Linux in it",
    ),
    Foreign(
        "a Windows crash dump",
        0,
        (b"PAGEDU64", b"PAGEDUMP", b"MDMP"),
        "use a tool for Windows: there is no Linux in it",
    ),
    Foreign("a qcow disk image", 0, (b"QFI\xfb",), _TO_RAW),
    Foreign("a VMDK disk image", 0, (b"KDMV", b"COWD", b"# Disk DescriptorFile"), _TO_RAW),
    Foreign("a VDI disk image", 64, (b"\x7f\x10\xda\xbe",), _TO_RAW),
    Foreign("a VHD disk image", 0, (b"conectix", b"vhdxfile"), _TO_RAW),
    Foreign("an EWF disk image", 0, (b"EVF\x09\r\n\xff\x00", b"EVF2\r\n\x81\x00"), "export it first: ewfexport -f raw"),
    LUKS,
    Foreign(LUKS.what, 16384, (b"SKUL\xba\xbe",), LUKS.advice),  # LUKS2's second header, if the first is wiped
    TUXONICE,
    Foreign(
        "a saved guest of Xen",
        0,
        (b"Xen saved domain, ", b"libvirt-xml\n \0 \r", b"LibvirtXenSave", b"\xff" * 8 + b"XENF"),
        "start the guest again, and take a dump from inside it: makedumpfile, LiME or AVML",
    ),
    Foreign(
        "a VMware suspended state",
        0,
        (b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xbe\xd2\xbe"),
        "give the .vmem file beside it",
    ),
    Foreign(
        "a QEMU migration stream",
        0,
        (b"QEVM", b"LibvirtQemudSave", b"LibvirtQemudPart"),
        "load it in QEMU and dump its memory: dump-guest-memory, or virsh dump --memory-only",
    ),
    Foreign("an AVML dump of a version other than 2", 0, (b"AVML",), "convert it first: avml-convert", True),
    Foreign("a Mach-O file", 0, (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe"), _OTHER_FILE),
    Foreign("a RIFF file", 0, (b"RIFF",), _OTHER_FILE),
    Foreign("a bzip2 file", 0, (b"BZh",), _UNPACK),
    Foreign("an LZ4 file", 0, (b"\x04\x22\x4d\x18",), _UNPACK),
    Foreign("an archive", 0, (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"!<arch>\n"), _UNPACK),
    Foreign("an ELF file", 0, (ELF_MAGIC,), "give an ELF core of an x86-64 machine's physical memory", True),
    Foreign("a LiME dump", 0, (LIME_MAGIC.to_bytes(4, "little"),), "take the dump again with format=lime", True),
    Foreign("a kdump-compressed dump", 0, (KDUMP_MAGIC, DISKDUMP_MAGIC), "convert it with crash or makedumpfile", True),
    Foreign(
        "a swap area",
        4086,
        (b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"),
        "see what `hibernaut inspect` says of it",
    ),
    Foreign("a disk with a GPT partition table", 512, (b"EFI PART",), _PLACE),
    Foreign("a boot sector or a disk with partitions", 510, (b"\x55\xaa",), _PLACE),
)
