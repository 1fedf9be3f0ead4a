# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of `swsusp_save`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hibernaut.errors import MachineFault
from hibernaut.hibernation import Remap, hibernate
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.layout import Layout, hole_2m
from tests.machines import RAM

if TYPE_CHECKING:
    pass


def test_log_reads_like_the_kernels() -> None:
    """swsusp_save's own lines, the model's between them marked; nothing depends on a clock."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)))
    snapshot = hibernate(machine, Remap())
    pages = snapshot.frames.total_pages
    assert machine.log.kernel_lines == (
        "PM: hibernation: Creating image:",
        f"PM: hibernation: Need to copy {pages} pages",
        f"PM: hibernation: Image created ({pages} pages copied)",
    )
    extra = [line for line in snapshot.log if line not in machine.log.kernel_lines]
    assert len(extra) == 2
    assert all(line.startswith("  [model] ") for line in extra)


def test_the_warning_is_printed_once_since_boot() -> None:
    """pr_warn_once: a second hibernation of the same machine that fails alike crashes without the warning."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)), FailAllocations(1, 2))
    for expected in (1, 1):
        with pytest.raises(MachineFault):
            hibernate(machine, Remap())
        assert machine.log.kernel_lines.count("PM: hibernation: Failed to remap page") == expected
