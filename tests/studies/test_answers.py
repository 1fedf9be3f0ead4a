# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of answers: it has the results of the studies, its runs replay, and its claims can fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hibernaut.exploration.replay import replay
from hibernaut.hibernation.ways import MUTANTS
from hibernaut.report.answers import answers_page
from hibernaut.studies.answers import Answers, answer
from hibernaut.studies.claims import CLAIMS
from hibernaut.studies.questions import MUTANTS_IN_QUESTION, STUDIES

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = REPOSITORY / "docs" / "answers.md"
RUNS = sorted((REPOSITORY / "docs" / "answers").glob("*.json"))
LINE = next(study for study in STUDIES if study.name == "line 7.3")


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The smallest study once more, by today's code."""
    return answer(tmp_path_factory.mktemp("answers"), [LINE])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_of_the_page_replays(path: Path) -> None:
    """Each run replays byte for byte: the page is as new as the code."""
    assert replay(path)[1] is None


def test_every_claim_has_its_scope_and_its_run() -> None:
    """Every claim is on the page, holds, and names its studies and its file; every file belongs to a claim."""
    page = PAGE.read_text()
    for claim in CLAIMS:
        section = page.split(f"### {claim.title}\n")[1].split("\n### ")[0].split("\n## ")[0]
        assert "**Holds** on all of" in section
        assert f"studies: {', '.join(claim.studies)}" in section
        assert f"(answers/{claim.name}.json)" in section
    assert [path.stem for path in RUNS] == sorted(claim.name for claim in CLAIMS)


def test_the_page_has_the_results_of_the_studies(again: Answers) -> None:
    """One study, run again: introduction, row and scope are on the page, number for number; all scopes are covered."""
    page = PAGE.read_text()
    assert page.startswith(answers_page(again, "answers").split("## Scopes")[0])
    rows = [
        line for line in answers_page(again, "answers").splitlines() if line.startswith((f"| {LINE.name} |", "- **"))
    ]
    assert len(rows) == 2
    for row in rows:
        assert row in page
    assert "CUT" not in page


def test_the_scope_is_what_was_asked_for() -> None:
    """All layouts of three regions x {4K, 2M, 1G} x {table below, above}, with and without stale translations."""
    row = re.search(r"^\| regions \|.*?\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| all \|$", PAGE.read_text(), re.MULTILINE)
    assert row is not None
    assert int(row[1]) == 1 + 2 * (6 + 36 + 216)


def test_every_mutant_is_caught() -> None:
    """The table of mutants on the page has "yes" for each."""
    section = PAGE.read_text().split("## Mutants")[1].split("\n## ")[0]
    assert section.count(": yes |") == len(MUTANTS)
    assert set(MUTANTS_IN_QUESTION) <= set(MUTANTS)
    assert "NO" not in section


def test_the_null_on_a_cpu_list_is_a_write() -> None:
    """list_del writes through the NULL link: the kernel's message for a write, at the offset of `prev`."""
    log = replay(PAGE.parent / "answers" / "null-on-a-cpu-list.json")[0].run.machine.log.kernel_lines
    assert log[-4:-1] == (
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "#PF: supervisor write access in kernel mode",
        "#PF: error_code(0x0002) - not-present page",
    )
