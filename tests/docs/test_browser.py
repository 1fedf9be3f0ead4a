# SPDX-License-Identifier: GPL-2.0-or-later
"""The site in a browser: on a screen and on a phone nothing overflows, nothing throws, without network requests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import Site

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HEIGHT = 1600
"""Of a screen, and so of each screenshot: the longest page is many times as tall."""
WIDTHS = {"desktop": 1280, "phone": 390}

STICKS_OUT = """() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push("the page");
  const scrolls = (element) => {
    for (let at = element.parentElement; at; at = at.parentElement)
      if (["auto", "scroll", "hidden"].includes(getComputedStyle(at).overflowX)) return true;
    return false;
  };
  for (const element of document.querySelectorAll("article *, main *")) {
    const box = element.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !scrolls(element)) found.push(element.outerHTML.slice(0, 120));
  }
  return found;
}"""
"""Elements beyond the right edge that do not scroll on their own, as a wide table or a session does."""


class Visitor:
    """A browser at one width, and what was wrong with the pages that it saw."""

    def __init__(self, browser: Any, width: int, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on(
            "console", lambda said: self.problems.append(f"console: {said.text}") if said.type == "error" else 0
        )
        self.page.on("request", self._asked)
        # A request that is made all the same goes nowhere.
        self.page.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.problems.append(f"request: {request.url}")

    def visit(self, path: Path) -> list[str]:
        """Open a page; everything wrong with it."""
        self.problems = []
        self.page.goto(path.as_uri(), wait_until="load")
        self.problems += [f"sticks out: {what}" for what in self.page.evaluate(STICKS_OUT)]
        return self.problems

    def screenshot(self, path: Path) -> None:
        """Keep what the page looks like, its first screen."""
        self.page.screenshot(path=str(path))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip with the reason; with HIBERNAUT_BROWSER=required, a failure instead."""
    missing: Callable[[str], Any] = pytest.fail if os.environ.get("HIBERNAUT_BROWSER") == "required" else pytest.skip
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        missing("Chromium is not installed (Debian: chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed (the dependency group test)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield started
        started.close()


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
