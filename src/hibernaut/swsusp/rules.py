# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of kernels for reading an image: one value for each line in which something changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from hibernaut.errors import FormatError
from hibernaut.kernel_line import LineTable, Probe, Probed, ProbedKernel, answers_of, parse_release
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import ARCH_MAGIC, MAGIC_2_6_24, MAGIC_4_8, MAGIC_4_10, MAGIC_TRIMMED

__all__ = ["IMAGE_PROBES", "IMAGE_RULES", "ImageRules", "image_rules_for_release", "image_rules_probed"]


@dataclass(frozen=True)
class ImageRules:
    """Rules of a kernel for reading an image.

    Attributes:
        line: The name of the kernel line, or the version of a release between two.
            Read in kernel_line.py: names of lines.
        magic: `RESTORE_MAGIC` (arch/x86/power/hibernate.c); None where kernels of one version differ.
            Since Linux kernel commit 62a03defeabd ("PM / hibernate: Verify the consistent of e820 memory map by md5
            digest") (in v4.10), it is 0x23456789abcdef01, and 0x23456789abcdef02 from f5d1499ae209 ("PM: hibernate:
            x86: Use crc32 instead of md5 for hibernation e820 integrity check") on. Read in linux-source-5.10
            5.10.262-1: a backport has it. Older ones: see `declarations`.
        other_magics: Magics that some kernels of the version have: those before a backport, or with one.
            Since Linux kernel commit f5d1499ae209 ("PM: hibernate: x86: Use crc32 instead of md5 for hibernation e820
            integrity check") (in v5.13), which the stable tree of 5.10 took in May 2021, perhaps others as well. Red
            Hat, whose change it is, can have it in its 4.18; its 3.10 has the magic of 4.8. The release that
            `MAGIC_TRIMMED` comes with is not known.
        compares_hw_sig: `swsusp_check` (kernel/power/swap.c) compares `hw_sig`; before, those bytes are reserved.
            Since Linux kernel commit 74d9555580c4 ("PM: hibernate: Allow ACPI hardware signature to be honoured")
            (in v5.17), it does.
        compressors: What data can be compressed with, and how the kernel spells it in its messages. A kernel takes data
            whose flag it does not know for LZO; one without any reads the data as it is, and knows no flag for that.
            Since Linux kernel commit 8bc29736357e ("PM: hibernate: Add support for LZ4 compression for hibernation")
            (in v6.9), LZ4 is one. Read in linux-source-6.12 6.12.118-1: messages have the algorithm's own name. LZO
            is from 2.6.37.
        checks_crc32: The kernel compares the CRC-32 of the data (`load_image_lzo`, kernel/power/swap.c).
            Since Linux kernel commit 081a9d043c98 ("PM / Hibernate: Improve performance of LZO/plain hibernation,
            checksum image") (in v3.2), it does.
        checks_compressor: `software_resume` (kernel/power/hibernate.c) refuses at once if the configuration lacks the
            compressor, and the function that loads is `load_compressed_image` (kernel/power/swap.c), not
            `load_image_lzo`.
            Since Linux kernel commit a06c6f5d3cc9 ("PM: hibernate: Move to crypto APIs for LZO compression")
            (in v6.9), it does; 89a807625f97 ("PM: hibernate: Rename lzo* to make it generic"), of the same series,
            renamed the function.
        zero_pages: Bit 63 of a listed frame means a page without data (`ENCODED_PFN_ZERO_FLAG`,
            kernel/power/snapshot.c).
            Since Linux kernel commit 005e8dddd497 ("PM: hibernate: don't store zero pages in the image file")
            (in v6.6), it does.
        read: The source of this version, or of a neighbour without a change in between, was read; else the checks are
            those of the oldest source that was, and the words of messages are not known.
            Read in linux-source-5.10 5.10.262-1: the oldest.
    """

    line: str
    magic: int | None
    other_magics: tuple[int, ...]
    compares_hw_sig: bool
    compressors: Mapping[CompressorName, str]
    checks_crc32: bool
    checks_compressor: bool
    zero_pages: bool
    read: bool


_2_6_24 = ImageRules(
    line="2.6.24",
    magic=MAGIC_2_6_24,
    other_magics=(),
    compares_hw_sig=False,
    compressors={},
    checks_crc32=False,
    checks_compressor=False,
    zero_pages=False,
    read=False,
)
_2_6_37 = replace(_2_6_24, line="2.6.37", compressors={"lzo": "LZO"})
_3_2 = replace(_2_6_37, line="3.2", checks_crc32=True)
_3_10 = replace(_3_2, line="3.10", magic=None, other_magics=(MAGIC_2_6_24, MAGIC_4_8))
_4_8 = replace(_3_2, line="4.8", magic=MAGIC_4_8)
_4_10 = replace(_4_8, line="4.10", magic=MAGIC_4_10)
_4_18 = replace(_4_10, line="4.18", magic=None, other_magics=(MAGIC_4_10, ARCH_MAGIC))
_5_10 = replace(_4_10, line="5.10", magic=ARCH_MAGIC, other_magics=(MAGIC_4_10,), read=True)
_5_11 = replace(_4_18, line="5.11", read=True)
_5_13 = replace(_5_10, line="5.13", other_magics=())
_5_17 = replace(_5_13, line="5.17", compares_hw_sig=True)
_6_6 = replace(_5_17, line="6.6", zero_pages=True)
_6_9 = replace(_6_6, line="6.9", compressors={"lzo": "lzo", "lz4": "lz4"}, checks_compressor=True)
_7_4 = replace(_6_9, line="7.4", magic=None, other_magics=(ARCH_MAGIC, MAGIC_TRIMMED))

IMAGE_RULES: LineTable[ImageRules] = LineTable(
    {
        rules.line: rules
        for rules in (
            *(_2_6_24, _2_6_37, _3_2, _3_10, replace(_3_2, line="3.11"), _4_8, _4_10, _4_18),
            *(replace(_4_10, line="4.19"), _5_10, _5_11, _5_13, _5_17, replace(_5_17, line="6.1"), _6_6, _6_9),
            *(replace(_6_9, line="6.12"), replace(_6_9, line="7.3"), _7_4),
        )
    }
)
"""The rules of each line. Source was read of 5.10, 6.1, 6.12 and 7.3; the others stand for the changes between, each
with its source in `ImageRules`. 3.10 and 4.18 are lines for what Red Hat's kernels of these versions have."""


def image_rules_for_release(release: str) -> ImageRules:
    """Return the rules of a kernel by its release (`uname -r`): those of the newest line that is not newer.

    Their `line` is the version of the release itself: 6.5 for `6.5.0-14-generic`.

    Raises:
        FormatError: not a kernel release, or a kernel older than any line.
    """
    found = IMAGE_RULES.for_release(release)
    if found is None:
        oldest = IMAGE_RULES.oldest.line
        raise FormatError(
            f"kernel {release} is older than any known line",
            expected=f"{oldest} or later",
            advice="no verdict is possible for it",
        )
    return replace(found, line=str(parse_release(release)))


def _compressors(kernel: ProbedKernel) -> Mapping[CompressorName, str] | None:
    """Answer LZ4 if a compressor can be chosen.

    3fec6e5961b7 ("PM: hibernate: Support to select compression algorithm") is of the series that brought LZ4.
    """
    chooses = kernel.has_function("hibernate_compressor_param_set")
    return None if chooses is None else (_6_9 if chooses else _5_10).compressors


IMAGE_PROBES: Mapping[str, Probe] = {
    "compares_hw_sig": lambda kernel: kernel.has_data("swsusp_hardware_signature"),
    "compressors": _compressors,
    "checks_compressor": lambda kernel: kernel.has_function("hibernate_compressor_param_set"),
    "zero_pages": lambda kernel: kernel.has_data("zero_bm"),
}
"""Field of `ImageRules` -> the question to the kernel. The magic is a constant in code, without a symbol; that the CRC
is compared has none either."""


def image_rules_probed(kernel: ProbedKernel | None, release: str) -> Probed[ImageRules]:
    """Return the rules of a real kernel: probed, or those of its line where the probe has no answer.

    Args:
        kernel: the kernel; None if nothing of it can be read.
        release: its release.

    Raises:
        FormatError: as `image_rules_for_release`.
    """
    known = answers_of(kernel, IMAGE_PROBES)
    names = [field.name for field in fields(ImageRules) if field.name != "line"]
    return Probed(
        replace(image_rules_for_release(release), **known),
        tuple(name for name in names if name in known),
        tuple(name for name in names if name not in known),
    )
