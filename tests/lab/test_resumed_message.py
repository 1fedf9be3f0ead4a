# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's message by which the resume of an image without a record is recognized."""

from __future__ import annotations

from hibernaut.lab.laboratory import RESUMED_MESSAGE

REFUSED = """PM: LZO decompression failed
PM: hibernation: Failed to load image, recovering.
OOM killer enabled.
Restarting tasks ... done.
PM: hibernation: resume failed (-5)
"""
RESUMED = "Restarting tasks ... done.\nPM: hibernation: hibernation exit\n"


def test_a_refusing_kernel_restarts_its_tasks_too() -> None:
    """Its tasks were frozen for the image: only the end of `hibernate` tells a resumed kernel."""
    assert RESUMED_MESSAGE.search(REFUSED) is None
    assert RESUMED_MESSAGE.search(RESUMED)
    assert RESUMED_MESSAGE.search("PM: hibernation exit\n")
