# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel line makes of an image when it resumes: one value for each line in which something changed.

Read in the source of Debian's 5.10.223, 6.1.176, 6.12.117 and 7.3.4 (`kernel/power/swap.c`, `snapshot.c`,
`hibernate.c`, `arch/x86/power/hibernate.c`). The lines 6.6 and 6.9 stand for what came in between: zero pages without
a data page (v6.6) and a choice of compressor (v6.9); their source was not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hibernaut.errors import FormatError
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import ARCH_MAGIC

__all__ = ["KERNELS", "ImageRules", "rules_for"]


@dataclass(frozen=True)
class ImageRules:
    """How the kernels of a line read an image.

    Attributes:
        line: the first version that this holds for.
        magic: `RESTORE_MAGIC` (arch/x86/power/hibernate.c).
        hw_sig: whether `swsusp_check` compares `hw_sig`; before, those bytes are nobody's.
        compressors: what data can be compressed with, and how the kernel spells it in its messages. A kernel takes data
            whose flag it does not know for LZO.
        asks_for_compressor: whether `software_resume` refuses at once if its configuration lacks the compressor.
        zero_pages: whether bit 63 of a listed frame means a page without data (`ENCODED_PFN_ZERO_FLAG`).
    """

    line: str
    magic: int
    hw_sig: bool
    compressors: Mapping[CompressorName, str]
    asks_for_compressor: bool
    zero_pages: bool

    @property
    def version(self) -> tuple[int, int]:
        """The line as numbers."""
        major, minor = self.line.split(".")
        return int(major), int(minor)


_5_10 = ImageRules(
    line="5.10",
    magic=ARCH_MAGIC,
    hw_sig=False,
    compressors={"lzo": "LZO"},
    asks_for_compressor=False,
    zero_pages=False,
)
_6_1 = replace(_5_10, line="6.1", hw_sig=True)
_6_6 = replace(_6_1, line="6.6", zero_pages=True)
_6_9 = replace(_6_6, line="6.9", compressors={"lzo": "lzo", "lz4": "lz4"}, asks_for_compressor=True)

KERNELS: tuple[ImageRules, ...] = (
    _5_10,
    _6_1,
    _6_6,
    _6_9,
    replace(_6_9, line="6.12"),
    replace(_6_9, line="7.3"),
)
"""Oldest first."""

RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})(?:[.~+-]\S*)?")


def rules_for(release: str) -> ImageRules:
    """The rules of a kernel by its release (`uname -r`): those of the newest line that is not newer.

    Args:
        release: 6.1, or in full: 6.1.0-56-amd64.

    Raises:
        FormatError: not a release, or of a kernel older than any line known.
    """
    match = RELEASE.fullmatch(release)
    if not match:
        raise FormatError(f"{release!r} is no kernel release", expected="6.1, or in full: 6.1.0-56-amd64")
    wanted = int(match[1]), int(match[2])
    known = [rules for rules in KERNELS if rules.version <= wanted]
    if not known:
        raise FormatError(f"kernel {release} is older than what is known here", expected=f"{KERNELS[0].line} or later")
    return known[-1]
