# SPDX-License-Identifier: GPL-2.0-or-later
"""Sanitizers of a kernel: faults are provoked by its own LKDTM, and must be reported.

A sanitizer that is off, or whose report does not reach the serial log, would let each image pass. LKDTM
(drivers/misc/lkdtm, CONFIG_LKDTM) is the kernel's own module that provokes faults. `sanitizers.config` has the settings
of a kernel with all of them, for `hibernaut lab build --config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabError
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.host.trees import CONFIG, Configuration
from hibernaut.lab.parser.waiting import WaitingMachine

__all__ = ["SANITIZERS", "SANITIZERS_CONFIG", "Sanitizer", "refuse_silent", "sanitizers_of"]

SANITIZERS_CONFIG = Path(__file__).parent / "sanitizers.config"
PROVOKE = (
    "mkdir -p /sys/kernel/debug; mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; "
    "echo {} > /sys/kernel/debug/provoke-crash/DIRECT"
)


@dataclass(frozen=True)
class Sanitizer:
    """A sanitizer and the fault by which it is tried.

    Attributes:
        option: its option in the kernel's configuration.
        fault: name of the fault in LKDTM.
        report: begin of its report, see `waiting.SANITIZER`.
    """

    option: str
    fault: str
    report: str


SANITIZERS = (
    Sanitizer("KASAN", "WRITE_AFTER_FREE", "BUG: KASAN: "),
    Sanitizer("UBSAN_BOUNDS", "ARRAY_BOUNDS", "UBSAN: array-index-out-of-bounds"),
    Sanitizer("DEBUG_LIST", "CORRUPT_LIST_ADD", "list_add corruption"),
)


def sanitizers_of(kernel: GuestKernel) -> tuple[Sanitizer, ...]:
    """Return the sanitizers of a kernel that can be tried: those of a kernel with LKDTM from its build tree."""
    if kernel.tree is None or not (kernel.tree / CONFIG).is_file():
        return ()
    config = Configuration.read(kernel.tree / CONFIG)
    return tuple(one for one in SANITIZERS if config.has(one.option) and config.has("LKDTM"))


def refuse_silent(kernel: GuestKernel, waiting: WaitingMachine, disk: Path) -> None:
    """Provoke a fault for each sanitizer of a kernel, and resume from a whole image afterwards.

    Args:
        kernel: the kernel.
        waiting: machine with it.
        disk: disk with an image that resumes.

    Raises:
        LabError: the outcome does not have the sanitizer's report, or the image does not resume.
    """
    for one in sanitizers_of(kernel):
        found = waiting.resume(disk, before=[PROVOKE.format(one.fault)])
        if found.outcome != "whole":
            raise LabError(f"after the fault {one.fault} of LKDTM the image does not resume: {found.outcome}")
        if not any(report.startswith(one.report) for report in found.reports):
            raise LabError(f"CONFIG_{one.option} does not report the fault {one.fault} of LKDTM")
