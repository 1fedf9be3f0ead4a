# SPDX-License-Identifier: GPL-2.0-or-later
"""Words, colours and signs for the classes of page frames: the same in a page, in a terminal and in a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from hibernaut.hibernation.frame_map import Fate, FrameUse, MappedBy

__all__ = [
    "DIFFERENCES",
    "DIFFERENCE_LAYER",
    "FATES",
    "LAYERS",
    "MAPPED",
    "USES",
    "FrameComparison",
    "FrameLayer",
    "FrameWords",
]


@dataclass(frozen=True)
class FrameWords:
    """Words for a class of frames.

    Attributes:
        key: key in documents, and name of the colour in style sheets.
        label: words of the legend.
        meaning: a clause about a frame of the class, for readers of any knowledge.
        sign: character in pictures of a terminal.
        ascii: the same where the encoding has ASCII only.
        style: style of `rich` for the sign.
        alarming: whether a single frame of it must be visible, however many other frames share its cell.
    """

    key: str
    label: str
    meaning: str
    sign: str
    ascii: str
    style: str
    alarming: bool = False

    @property
    def signs(self) -> tuple[str, str]:
        """The sign and the one of ASCII."""
        return self.sign, self.ascii


@dataclass(frozen=True)
class FrameLayer:
    """A question about each frame, with the words of its answers by code.

    Attributes:
        key: key in documents.
        title: the question.
        words: answers by code, one for each.
    """

    key: str
    title: str
    words: Mapping[int, FrameWords]


MAPPED: Mapping[int, FrameWords] = {
    MappedBy.NO_ENTRY: FrameWords(
        "no-entry", "no entry", "the direct map has no entry for it", "·", ".", "bright_black"
    ),
    MappedBy.PRESENT_4K: FrameWords(
        "present-4k", "present by 4K", "mapped by an entry of its own (4 KiB)", "░", "4", "cyan"
    ),
    MappedBy.PRESENT_2M: FrameWords("present-2m", "present by 2M", "mapped by an entry of 2 MiB", "▒", "2", "blue"),
    MappedBy.PRESENT_1G: FrameWords(
        "present-1g", "present by 1G", "mapped by an entry of 1 GiB", "▓", "1", "bright_blue"
    ),
    MappedBy.NOT_PRESENT_4K: FrameWords(
        "not-present-4k",
        "not present, 4K",
        "taken out of the direct map by an entry of its own",
        "x",
        "x",
        "yellow",
        True,
    ),
    MappedBy.NOT_PRESENT_2M: FrameWords(
        "not-present-2m",
        "not present, 2M",
        "taken out of the direct map by an entry of 2 MiB",
        "X",
        "X",
        "bold yellow",
        True,
    ),
    MappedBy.NOT_PRESENT_1G: FrameWords(
        "not-present-1g",
        "not present, 1G",
        "taken out of the direct map by an entry of 1 GiB",
        "G",
        "G",
        "bold yellow",
        True,
    ),
    MappedBy.TABLE_MISSING: FrameWords(
        "table-missing", "table missing", "the page table that decides is not in the file", "!", "!", "bold red", True
    ),
    MappedBy.WRONG: FrameWords(
        "wrong",
        "wrong entry",
        "its entry of the direct map names another frame, or is damaged",
        "#",
        "#",
        "bold red",
        True,
    ),
    MappedBy.UNKNOWN: FrameWords(
        "mapped-unknown", "not known", "the direct map was not found", "?", "?", "bright_black"
    ),
}

FATES: Mapping[int, FrameWords] = {
    Fate.NO_MEMORY: FrameWords("no-memory", "no memory", "no memory is known here", "·", ".", "bright_black"),
    Fate.SAVED: FrameWords("saved", "saved", "saved: hibernation copies it", "█", "S", "green"),
    Fate.ZERO: FrameWords("zero", "saved, all zeroes", "saved, and all its bytes are zero", "▒", "0", "cyan"),
    Fate.FREE: FrameWords("free", "free", "free by the page allocator, so it is not saved", "░", "f", "bright_black"),
    Fate.SET_ASIDE: FrameWords(
        "set-aside",
        "set aside for a copy",
        "set aside by hibernation for the copy of another page",
        "▫",
        "c",
        "magenta",
    ),
    Fate.LEFT_OUT: FrameWords(
        "left-out",
        "not saved",
        "not saved, and the file does not have the reason (nosave, reserved, or set aside for a copy)",
        "-",
        "-",
        "white",
    ),
    Fate.LOST: FrameWords(
        "lost",
        "lost table",
        "lost: page tables name it as one of them, and the file does not have it",
        "!",
        "!",
        "bold red",
        True,
    ),
    Fate.IN_FILE: FrameWords(
        "in-file", "in the file", "in the file; whether hibernation would save it is not known", "▓", "M", "green"
    ),
    Fate.ZERO_IN_FILE: FrameWords(
        "zero-in-file",
        "in the file, all zeroes",
        "in the file, all its bytes are zero; whether hibernation would save it is not known",
        "o",
        "o",
        "cyan",
    ),
    Fate.MISSING: FrameWords(
        "missing",
        "not in the file",
        "the direct map has an entry for it, and the file does not have it",
        "~",
        "~",
        "yellow",
    ),
    Fate.LOST_PAGE: FrameWords(
        "lost-page",
        "lost page",
        "lost: it is on the list of the image, and its data cannot be read any more",
        "¤",
        "x",
        "bold red",
        True,
    ),
    Fate.UNCERTAIN: FrameWords(
        "uncertain",
        "not known",
        "not in what is left of the image; whether it was saved is not known, since that part of the list is lost",
        "?",
        "?",
        "yellow",
    ),
}

USES: Mapping[int, FrameWords] = {
    FrameUse.UNKNOWN: FrameWords("use-unknown", "not known", "its use is not known", "·", ".", "bright_black"),
    FrameUse.PAGE_TABLE: FrameWords("page-table", "page table", "a page table", "T", "T", "bold magenta"),
    FrameUse.KERNEL_TEXT: FrameWords("kernel-text", "kernel text", "code of the kernel", "▓", "t", "blue"),
    FrameUse.KERNEL_RODATA: FrameWords("kernel-rodata", "kernel rodata", "constants of the kernel", "▒", "r", "cyan"),
    FrameUse.KERNEL_DATA: FrameWords("kernel-data", "kernel data", "data of the kernel image", "░", "d", "bright_blue"),
    FrameUse.MEM_MAP: FrameWords(
        "mem-map", "mem_map", "part of the kernel's list of all page frames (struct page)", "m", "m", "green"
    ),
    FrameUse.SLAB: FrameWords("slab", "slab", "objects of the kernel (slab)", "s", "s", "yellow"),
    FrameUse.ANONYMOUS: FrameWords("anonymous", "anonymous", "memory of a process (anonymous)", "a", "a", "red"),
    FrameUse.PAGE_CACHE: FrameWords("page-cache", "page cache", "content of a file (page cache)", "c", "c", "white"),
}


class FrameComparison(IntEnum):
    """A frame in two sources."""

    NEITHER = 0
    EQUAL = 1
    DIFFERENT = 2
    ONLY_FIRST = 3
    ONLY_SECOND = 4


DIFFERENCES: Mapping[int, FrameWords] = {
    FrameComparison.NEITHER: FrameWords("neither", "in neither", "neither file has it", "·", ".", "bright_black"),
    FrameComparison.EQUAL: FrameWords("equal", "equal", "it has the same bytes in both files", "░", "=", "green"),
    FrameComparison.DIFFERENT: FrameWords(
        "different", "different", "it has other bytes in the other file", "!", "!", "bold red", True
    ),
    FrameComparison.ONLY_FIRST: FrameWords("only-first", "in SOURCE alone", "SOURCE alone has it", "<", "<", "blue"),
    FrameComparison.ONLY_SECOND: FrameWords("only-second", "in OTHER alone", "OTHER alone has it", ">", ">", "yellow"),
}

LAYERS = (
    FrameLayer("mapped", "How the direct map maps it", MAPPED),
    FrameLayer("fate", "Whether hibernation saves it", FATES),
    FrameLayer("use", "Its use", USES),
)
"""The three questions, in the order of `FrameMap`'s codes."""

DIFFERENCE_LAYER = FrameLayer("difference", "What differs", DIFFERENCES)
