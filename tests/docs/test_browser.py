# SPDX-License-Identifier: GPL-2.0-or-later
"""The site in a browser: on a screen and on a phone nothing overflows, nothing throws, without network requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Visitor, started_browser
from tests.docs.conftest import Site

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """See `started_browser`."""
    with started_browser() as started:
        yield started


@pytest.mark.parametrize("device", WIDTHS)
def test_every_page_fits_and_works(site: Site, browser: Any, device: str, tmp_path: Path) -> None:
    """Each page at this width; what it looks like is kept in the test's folder."""
    visitor = Visitor(browser, WIDTHS[device])
    wrong = {}
    for path in site.pages:
        name = str(path.relative_to(site.folder))
        if problems := visitor.visit(path):
            wrong[name] = problems
        visitor.screenshot(tmp_path / f"{name.replace('/', '-')}.png")
    assert wrong == {}
    assert len(list(tmp_path.glob("*.png"))) == len(site.pages)


def test_diagrams_follow_the_theme(site: Site, browser: Any) -> None:
    """The ink of a diagram is the text's colour, in light and in dark."""
    colours = []
    for scheme in ("light", "dark"):
        visitor = Visitor(browser, WIDTHS["phone"], scheme)
        assert visitor.visit(site.folder / "explanation/copy-loop.html") == []
        ink, text = visitor.page.evaluate(
            "[...['figure.diagram svg text', 'article p']].map(one => {"
            " const style = getComputedStyle(document.querySelector(one));"
            " return one.includes('svg') ? style.fill : style.color })"
        )
        assert ink == text
        colours.append(ink)
    assert colours[0] != colours[1]


def test_search_finds_pages(site: Site, browser: Any) -> None:
    """The search works from a folder, without a server."""
    visitor = Visitor(browser, WIDTHS["desktop"])
    visitor.page.goto(f"{(site.folder / 'search.html').as_uri()}?q=fixmap")
    visitor.page.wait_for_selector("#search-results ul.search li a")
    assert visitor.page.locator("#search-results ul.search li").count() > 3
    assert visitor.problems == []


def test_a_bad_page_is_noticed(browser: Any, tmp_path: Path) -> None:
    """Each thing that is looked for is found on a page that has it."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<article><p style='width: 3000px'>wide</p></article>"
        "<script>fetch('http://127.0.0.1:9/').catch(() => 0); throw new Error('broken')</script>"
    )
    problems = "\n".join(Visitor(browser, 390).visit(page))
    assert "sticks out: the page" in problems
    assert "sticks out: <p style=" in problems
    assert "error: broken" in problems
    assert "request: http://127.0.0.1:9/" in problems
