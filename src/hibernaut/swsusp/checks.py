# SPDX-License-Identifier: GPL-2.0-or-later
"""One check that a resuming kernel makes, its answer, and the facts of the machine that it compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hibernaut.kernel_line import ProbedKernel
from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.e820 import E820Sums

__all__ = ["Answer", "Check", "ResumingMachine"]


@dataclass(frozen=True)
class ResumingMachine:
    """Facts of a machine that a resuming kernel compares with the image; None where unknown.

    Attributes:
        name: name of the machine in messages.
        e820: checksums of the firmware's memory map.
        physical_pages: present pages of all nodes.
        hw_sig: the hardware signature in ACPI's FACS; 0 if the machine has none.
        release: release of its kernel, as `uname -r` prints it.
        build: build string of its kernel (`UTS_VERSION`), as `uname -v` prints it.
        kernel: the kernel itself, as far as it can be asked.
        frames: page frames in its populated zones, holes included, as /proc/zoneinfo lists them.
    """

    name: str
    e820: E820Sums = field(default_factory=E820Sums)
    physical_pages: int | None = None
    hw_sig: int | None = None
    release: str | None = None
    build: str | None = None
    kernel: ProbedKernel | None = field(default=None, compare=False, repr=False)
    frames: FrameRanges | None = field(default=None, compare=False, repr=False)


class Answer(StrEnum):
    """Answer of a check."""

    OK = "ok"
    REFUSES = "would refuse"
    CRASHES = "would crash"
    DEPENDS = "depends"
    """It refuses or resumes: the remark has the condition, which is one of the resuming machine."""
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Check:
    """One check of the kernel.

    Attributes:
        check: name of the check in this package.
        answer: its answer.
        where: function and file of the kernel.
        message: message of the kernel when it refuses; `?` stands for a number that depends on the system.
        remark: explanation.
        source: commit that brought the rule, or the source that it was read in.
    """

    check: str
    answer: Answer
    where: str
    message: str | None = None
    remark: str | None = None
    source: str = ""
