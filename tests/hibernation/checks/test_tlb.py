# SPDX-License-Identifier: GPL-2.0-or-later
"""`nothing_stale`: translations that a CPU still caches."""

from __future__ import annotations

from hibernaut.hibernation import (
    Fixmap,
    check_resumed,
    hibernate,
    resume,
)
from hibernaut.hibernation.resume import BootKernel
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout, hole_4k
from hibernaut.memory.ranges import FrameRanges
from tests.hibernation.machines import RAM


def test_a_resume_that_does_not_flush_is_caught() -> None:
    """The temporary tables map all RAM by GLOBAL pages; if these outlive the load of CR3, holes are mapped for a CPU.

    The boot kernel uses the frames around a hole, so the restore writes through the block that has the hole.
    """
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),), free_pages=600))
    snapshot = hibernate(machine.fork(), Fixmap())
    boot = BootKernel.beside(snapshot, FrameRanges.of([(0x700, 0x180)]))
    assert check_resumed(machine, snapshot, resume(snapshot, boot)) == ()
    found = check_resumed(machine, snapshot, resume(snapshot, boot, flush=False))
    assert {violation.invariant for violation in found} == {"nothing-stale"}
