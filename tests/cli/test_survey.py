# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab survey` without a guest: its document, its page, lines that are gone and their neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hibernaut.cli.lab.options import LabOptions
from hibernaut.errors import LabUnavailable
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.survey.reading import Hidden, Reading
from hibernaut.lab.survey.steps import STEPS
from hibernaut.lab.survey.survey import StepTaken
from hibernaut.paging.entries import Level
from tests.cli.run import hibernaut, refused

POOL = Hidden(Level.PTE, "not present", "KFENCE pool", "yes", 500, 500)
EDGE = Hidden(Level.PMD, "no table", "reserved", "no", 1024, 2)
TAKEN = [
    StepTaken(STEPS[0], "booted", Reading({"4K": 26.5, "2M": 2022.0, "1G": 1024.0}, (EDGE,))),
    StepTaken(STEPS[1], "9 modules|loaded", Reading({"4K": 30.0, "2M": 2018.0, "1G": 1024.0}, (POOL,))),
    StepTaken(STEPS[2], "", None, "no rmmod"),
]
GONE = ("6.19", "7.0", "7.1")


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the lines that the command surveys; the packages of some lines are gone."""
    names: list[str] = []

    def survey(lab: Lab, progress: Any) -> list[StepTaken]:
        names.append(lab.kernel.name)
        for one in TAKEN:
            progress(one)
        return TAKEN

    def lab(options: LabOptions) -> Lab:
        if options.kernel in GONE:
            raise LabUnavailable(f"no modules of {options.kernel}", advice="none")
        return Lab(GuestKernel(options.kernel, f"{options.kernel}.1-amd64", tmp_path / "vmlinuz", tmp_path))

    monkeypatch.setattr("hibernaut.cli.lab.survey.survey", survey)
    monkeypatch.setattr("hibernaut.cli.lab.survey.program", str)
    monkeypatch.setattr("hibernaut.cli.lab.options.LabOptions.lab", lab)
    return names


def test_the_document_and_the_text(surveyed: list[str]) -> None:
    """Each step says what was done and what is hidden, or why nothing was read."""
    (kernel,) = hibernaut("lab", "survey", "--kernel", "6.12", "--json").document["kernels"]
    assert (kernel["kernel"], kernel["release"]) == ("6.12", "6.12.1-amd64")
    assert [one["unable"] for one in kernel["steps"]] == ["", "", "no rmmod"]
    assert [one["present_mib"] is None for one in kernel["steps"]] == [False, False, True]
    hidden = {"size": "4K", "kind": "not present", "owner": "KFENCE pool", "saved": "yes", "pages": 500, "entries": 500}
    assert kernel["steps"][1]["hidden"] == [hidden]
    text = hibernaut("lab", "survey", "--kernel", "6.12").out
    assert "Linux 6.12.1-amd64: None seen: in 2 readings" in text
    assert "1024 pages in 2 of 2M no table (reserved, not saved)" in text
    assert "500 pages not present (KFENCE pool, saved)" in text
    assert surveyed == ["6.12", "6.12"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["7.1"], ["7.2"]),
        (["6.19"], ["6.18"]),
        (["7.0"], ["7.2"]),
        (["7.1", "7.2"], ["7.2"]),
        (["5.10", "7.1", "7.0"], ["5.10", "7.2"]),
    ],
)
def test_the_neighbour_of_a_line_that_is_gone(surveyed: list[str], asked: list[str], expected: list[str]) -> None:
    """It is surveyed in its place, once; the line is listed with the reason."""
    words = [word for name in asked for word in ("--kernel", name)]
    document = hibernaut("lab", "survey", *words, "--json").document
    assert surveyed == expected
    answers = {one["kernel"]: one["answer"] for one in document["kernels"]}
    assert set(answers) == {*asked, *expected}
    for name in set(asked) & set(GONE):
        neighbour = "6.18" if name == "6.19" else "7.2"
        assert answers[name] == f"not surveyed: no modules of {name}; its nearest neighbour is {neighbour}"


def test_the_page_has_all_kernels_in_order(surveyed: list[str], tmp_path: Path) -> None:
    """Each is kept in a folder beside the page, a newer result replaces an older one; a neighbour is not repeated."""
    page = tmp_path / "survey.md"
    for name in ("6.12", "6.1", "7.2", "7.1", "6.1"):
        assert hibernaut("lab", "survey", "--kernel", name, "--write", str(page)).status == 0
    assert surveyed == ["6.12", "6.1", "7.2", "6.1"]
    assert sorted(path.name for path in (tmp_path / "survey").iterdir()) == [
        "6.1.json",
        "6.12.json",
        "7.1.json",
        "7.2.json",
    ]
    text = page.read_text()
    places = [text.index(f"\n- Linux {name}") for name in ("6.1.1", "6.12.1", "7.1: not surveyed", "7.2.1")]
    assert places == sorted(places)
    assert (
        "| many modules loaded | 9 modules\\|loaded | 30, 2018, 1024 | 500 pages not present (KFENCE pool, saved) |"
        in text
    )
    assert "| most of them unloaded | not done |  | no rmmod |" in text
    assert "## Linux 7.1" not in text


def test_refusals(surveyed: list[str], tmp_path: Path) -> None:
    """An unknown line, a page in no folder, a damaged file beside the page: before any guest boots."""
    assert "no kernel line '6.5'" in refused("lab", "survey", "--kernel", "6.5")
    assert "is not a folder" in refused("lab", "survey", "--write", str(tmp_path / "no" / "page.md"))
    (tmp_path / "survey").mkdir()
    (tmp_path / "survey" / "6.1.json").write_text(json.dumps({"kernel": "6.1"}))
    assert "not a surveyed kernel" in refused("lab", "survey", "--write", str(tmp_path / "survey.md"))
    assert surveyed == []
