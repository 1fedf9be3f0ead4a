# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration: its output and its image."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hibernaut.cli.options import OutputOptions
from hibernaut.cli.picture_options import DemoPictureOptions
from hibernaut.report.frame_picture import StyledLine
from tests.cli.run import hibernaut, refused
from tests.swsusp import naive


def test_demo_shows_the_failure_and_the_cure(tmp_path: Path) -> None:
    """Remap crashes if the allocation fails and tears the image if it does not; the fixmap needs none."""
    result = hibernaut("demo", "--json", "--keep", tmp_path / "image")
    assert result.status == 0
    cells = {(cell["way"], cell["situation"]): cell for cell in result.document["cells"]}
    assert len(cells) == len(result.document["ways"]) * len(result.document["situations"])
    assert cells["Remap", "2M hole, 1st allocation fails"]["outcome"] == "died"
    assert any("Failed to remap page" in line for line in result.document["last_words"]["log"])
    torn = cells["Remap", "2M hole, table above"]
    assert torn["outcome"] == "saved"
    assert torn["failed_checks"] == ["tables-closed", "same-direct-map", "allocator-sound"]
    for situation in result.document["situations"]:
        cured = cells["Fixmap", situation["name"]]
        assert (cured["outcome"], cured["allocations"], cured["findings"]) == ("saved", 0, 0)


def test_demo_image_holds_the_unmapped_pages(tmp_path: Path) -> None:
    """The kept image, read by the naive parser: the text in the block that the direct map does not show is there."""
    assert hibernaut("demo", "--quiet", "--keep", tmp_path / "image").status == 0
    pages, _ = naive.parse((tmp_path / "image").read_bytes())
    for pfn in (0x1000, 0x11FF, 0x0815):
        page = pages[pfn]
        assert page is not None
        assert page.startswith(f"frame {pfn:#07x}".encode())
    inspected = hibernaut("inspect", tmp_path / "image", "--json")
    assert (inspected.status, inspected.document["saved_pages"]) == (0, len(pages))
    assert stat.S_IMODE((tmp_path / "image").stat().st_mode) == 0o600


def test_the_module_runs_as_a_program() -> None:
    """`python -m hibernaut` is the console script."""
    told = subprocess.run(
        [sys.executable, "-m", "hibernaut", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith("hibernaut ")


def test_the_demonstration_draws_one_machine() -> None:
    """Behind the text, by both ways; the picture is left out of a document, where it cannot be asked for."""
    result = hibernaut("demo", "--width", 60)
    assert result.status == 0
    text, picture = result.out.split("\n\nRemap, 2M hole, table above: ")
    assert text.splitlines()[-1].startswith("an image by Fixmap, written and read back: ")
    assert max(map(len, picture.splitlines())) <= 60
    assert "table of region 1" in picture
    assert "! a finding names it" in picture
    assert "\x1b" not in picture
    assert "--picture excludes --json" in refused("demo", "--picture", "--json")


def test_the_picture_of_the_demonstration_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """By --no-picture, --json and --quiet; else it is drawn, in 80 columns where there is no terminal."""
    seen: list[int] = []

    def picture(width: int, _plain: bool) -> list[StyledLine]:
        seen.append(width)
        return [[("drawn", "")]]

    for options, output, drawn in (
        (DemoPictureOptions(), OutputOptions(), True),
        (DemoPictureOptions(picture=True, width=50), OutputOptions(), True),
        (DemoPictureOptions(picture=False), OutputOptions(), False),
        (DemoPictureOptions(), OutputOptions(json=True), False),
        (DemoPictureOptions(), OutputOptions(quiet=True), False),
    ):
        options.check(output)
        options.draw(picture, output)
        assert (capsys.readouterr().out == "drawn\n") == drawn
    assert seen == [80, 50]
