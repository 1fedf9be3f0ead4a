# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that run out of pages for tables in the copy, with nothing injected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hibernaut.lab.depletion import deplete_guest, depletion_variant, resume_depleted

if TYPE_CHECKING:
    from hibernaut.lab.laboratory import Lab

BLOCKS, MEMORY_MIB = 64, 1024
ON_DEMAND = pytest.mark.skipif(
    "HIBERNAUT_DEPLETED" not in os.environ, reason="minutes of guests, which may hang; HIBERNAUT_DEPLETED=1"
)


def test_a_split_that_finds_no_page_kills_the_machine(lab_61: Lab, tmp_path: Path) -> None:
    """As many splits as predicted are served; the next allocation fails by itself, and the copy faults."""
    found = deplete_guest(lab_61, depletion_variant(BLOCKS, MEMORY_MIB), tmp_path, wanted=BLOCKS // 2)
    assert found.as_predicted, found
    assert found.served < BLOCKS
    assert found.failed
    assert found.outcome == "died"
    assert "page fault" in found.reason


@ON_DEMAND
def test_with_files_in_memory_the_copy_reclaims_them_and_the_image_is_torn(lab_61: Lab, tmp_path: Path) -> None:
    """The copy continues with interrupts enabled. If an image is written all the same, its machine crashes."""
    found = deplete_guest(lab_61, depletion_variant(BLOCKS, MEMORY_MIB), tmp_path, wanted=BLOCKS // 2, cached_mib=100)
    assert found.as_predicted, found
    assert found.interrupts
    assert found.outcome in ("hibernated", "hung", "died")
    if found.outcome == "hibernated":
        assert found.splits == BLOCKS
        assert not resume_depleted(lab_61, found, tmp_path).passed


@ON_DEMAND
def test_with_pages_enough_the_same_machine_comes_back(lab_61: Lab, tmp_path: Path) -> None:
    """The control: as many blocks, as many files, and pages for all splits."""
    found = deplete_guest(lab_61, depletion_variant(BLOCKS, MEMORY_MIB), tmp_path, wanted=50 * BLOCKS, cached_mib=100)
    assert found.as_predicted, found
    assert (found.served, found.failed, found.interrupts) == (BLOCKS, False, False)
    assert resume_depleted(lab_61, found, tmp_path).passed
