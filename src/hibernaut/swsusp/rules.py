# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of kernels for reading an image: one value for each line in which something changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from hibernaut.errors import FormatError
from hibernaut.kernel_line import LineTable, Probe, Probed, ProbedKernel, answers_of
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import ARCH_MAGIC

__all__ = ["IMAGE_PROBES", "IMAGE_RULES", "ImageRules", "image_rules_for_release", "image_rules_probed"]


@dataclass(frozen=True)
class ImageRules:
    """Rules of a kernel for reading an image.

    Attributes:
        line: The name of the kernel line.
            Read in kernel_line.py: names of lines.
        magic: `RESTORE_MAGIC` (arch/x86/power/hibernate.c).
            Since Linux kernel commit f5d1499ae209 ("PM: hibernate: x86: Use crc32 instead of md5 for hibernation e820
            integrity check") (in v5.13), it is 0x23456789abcdef02. Read in linux-source-5.10 5.10.262-1: a backport
            has it.
        compares_hw_sig: `swsusp_check` (kernel/power/swap.c) compares `hw_sig`; before, those bytes are reserved.
            Since Linux kernel commit 74d9555580c4 ("PM: hibernate: Allow ACPI hardware signature to be honoured")
            (in v5.17), it does.
        compressors: What data can be compressed with, and how the kernel spells it in its messages. A kernel takes data
            whose flag it does not know for LZO.
            Since Linux kernel commit 8bc29736357e ("PM: hibernate: Add support for LZ4 compression for hibernation")
            (in v6.9), LZ4 is one. Read in linux-source-6.12 6.12.118-1: messages have the algorithm's own name.
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
    """

    line: str
    magic: int
    compares_hw_sig: bool
    compressors: Mapping[CompressorName, str]
    checks_compressor: bool
    zero_pages: bool


_5_10 = ImageRules(
    line="5.10",
    magic=ARCH_MAGIC,
    compares_hw_sig=False,
    compressors={"lzo": "LZO"},
    checks_compressor=False,
    zero_pages=False,
)
_6_1 = replace(_5_10, line="6.1", compares_hw_sig=True)
_6_6 = replace(_6_1, line="6.6", zero_pages=True)
_6_9 = replace(_6_6, line="6.9", compressors={"lzo": "lzo", "lz4": "lz4"}, checks_compressor=True)

IMAGE_RULES: LineTable[ImageRules] = LineTable(
    {rules.line: rules for rules in (_5_10, _6_1, _6_6, _6_9, replace(_6_9, line="6.12"), replace(_6_9, line="7.3"))}
)
"""The rules of each line. Source was read of 5.10, 6.1, 6.12 and 7.3; 6.6 and 6.9 stand for the commits between."""


def image_rules_for_release(release: str) -> ImageRules:
    """Return the rules of a kernel by its release (`uname -r`): those of the newest line that is not newer.

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
    return found


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
"""Field of `ImageRules` -> the question to the kernel. The magic is a constant in code, without a symbol."""


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
