# SPDX-License-Identifier: GPL-2.0-or-later
"""Areas that a loss of power leaves of `rewrite --in-place`, given to a real kernel."""

from __future__ import annotations

from pathlib import Path

from hibernaut.lab.laboratory import Lab
from tests.crashes.booted import booted_states

WANTED = ("nothing", "half of the blocks", "the header", "all blocks, not given up")
"""An instant of each verdict: old, none, new, and one that a rewrite without its first sync may leave."""


def test_a_kernel_resumes_the_old_image_none_or_the_new_one(lab_61: Lab, tmp_path: Path) -> None:
    """Old: the guest has its memory. None: it swaps to the area. New: it sees the change. Half: it does not resume."""
    found = list(booted_states(lab_61, "lzo", tmp_path, names=WANTED))
    assert [one.instant for one in found] == list(WANTED)
    assert [one.judged.partition(":")[0] for one in found] == ["old", "none", "new", "half"], found
    assert [one.outcome for one in found[:3]] == ["old", "none", "new"], found
    assert found[3].outcome not in ("old", "none", "new"), found
