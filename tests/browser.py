# SPDX-License-Identifier: GPL-2.0-or-later
"""Headless Chromium, and the faults of the pages that it visits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["HEIGHT", "Visitor", "started_browser"]

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


@contextmanager
def started_browser() -> Iterator[Any]:
    """Yield headless Chromium, or a skip with the reason; with HIBERNAUT_BROWSER=required, a failure instead."""
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
