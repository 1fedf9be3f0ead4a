# SPDX-License-Identifier: GPL-2.0-or-later
"""`explore --report` and `answers --report`: the numbers of the document, and each shortest run as a strip."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from tests.cli.run import hibernaut, refused
from tests.conftest import Golden

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra report)")
pytest.importorskip("jinja2", reason="jinja2 is not installed (the extra report)")

SMALL = ("explore", "--layout", "kinds=2m", "--layout", "tables=above", "--via", "remap,fixmap")


def text_of(page: Path) -> str:
    """Return the text of a page, its markup left out."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text().split("</style>")[1])).split())


def test_numbers_are_those_of_the_document(tmp_path: Path) -> None:
    """Runs of each way, scope and verdict; a strip for each outcome that breaks something, and for no other."""
    page = tmp_path / "page.html"
    result = hibernaut(*SMALL, "--report", page, "--json")
    assert result.status == 1
    source, text = page.read_text(), text_of(page)
    runs = dict(re.findall(r'data-runs="(\w+)">(\d+)<', source))
    assert {name: int(number) for name, number in runs.items()} == {
        way["way"]: way["runs"] for way in result.document["ways"]
    }
    assert result.document["scope"] in text
    bad = [
        f"{way['way']}: {one['verdict']}"
        for way in result.document["ways"]
        for one in way["endings"]
        if one["violated"]
    ]
    assert len(bad) == 2
    assert re.findall(r'<h3 id="run-\d+">', source) == ['<h3 id="run-1">', '<h3 id="run-2">']
    assert all(title in text for title in bad)
    assert "new table 1" in text
    assert "never copied" in text
    assert "<script" not in source
    assert "default-src 'none'" in source


def test_the_machine_of_a_dump_has_its_strip(golden: Golden, tmp_path: Path) -> None:
    """The block of the golden machine: its table 0x4402 is changed before its copy."""
    page = tmp_path / "page.html"
    result = hibernaut("explore", golden("ram-6.1-low2m.elf"), "--via", "remap", "--report", page)
    assert result.status == 1
    text = text_of(page)
    assert "region 1 0x400 512 pages" in text
    assert "table of region 1 0x4402 1 page: changed before its copy" in text


def test_a_safe_exploration_says_that(tmp_path: Path) -> None:
    """No strip, and the verdict is fine."""
    page = tmp_path / "page.html"
    assert hibernaut(*SMALL[:-1], "fixmap", "--report", page).status == 0
    assert "No run loses or breaks anything" in text_of(page)
    assert 'class="verdict ok"' in page.read_text()
    assert "<h3" not in page.read_text()


def test_answers_have_a_page(tmp_path: Path) -> None:
    """Each claim of a study with its verdict and its run."""
    page = tmp_path / "page.html"
    result = hibernaut("answers", "--study", "owners 6.15", "--report", page, "--json")
    text = text_of(page)
    claims = result.document["claims"]
    assert claims
    assert f"{len(claims)} claim" in text
    assert "each holds" in text
    assert all(claim["title"].replace("`", "") in text.replace("`", "") for claim in claims)


def test_a_report_never_replaces_what_it_is_made_of(golden: Golden, tmp_path: Path) -> None:
    """Neither a SOURCE, nor the results, nor the page of --write."""
    copy = tmp_path / "source"
    copy.symlink_to(golden("ram-6.1-low2m.elf"))
    assert "is the source itself" in refused("explore", copy, "--via", "remap", "--report", copy)
    results = tmp_path / "results"
    results.write_text("")
    assert "is the source itself" in refused(*SMALL, "--results", results, "--report", results)
