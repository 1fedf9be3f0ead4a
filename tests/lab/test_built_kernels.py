# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that `lab build` made, as guests: the kernel as its source is, and with the cure. Nothing is built here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hibernaut.lab.laboratory import Lab, Resumed
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME
from hibernaut.lab.variants import variant_named


def resumed(lab: Lab, variant: str, folder: Path) -> Resumed:
    """Let a guest hibernate and another machine resume."""
    folder.mkdir()
    done = lab.hibernate(variant_named(variant), folder)
    assert done.outcome == "hibernated", done.summary
    return lab.resume(done.record, [folder / IMAGE_NAME, folder / SPARE_NAME], folder)


@pytest.mark.parametrize("variant", ["hole-2m", "none-entry", "holes"])
def test_the_cured_kernel_saves_what_is_not_mapped(
    lab_built: Callable[[str], Lab], tmp_path: Path, variant: str
) -> None:
    """It hibernates and resumes with its data and its direct map."""
    done = resumed(lab_built("fixmap"), variant, tmp_path / "guest")
    assert done.passed, done.reason


def test_the_kernel_without_the_cure_loses_a_table(lab_built: Callable[[str], Lab], tmp_path: Path) -> None:
    """The same source, as it is: the table of the split is not in the image."""
    done = resumed(lab_built("stock"), "hole-2m", tmp_path / "guest")
    assert not done.passed
    assert "direct map garbage" in done.reason
