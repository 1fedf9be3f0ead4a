# SPDX-License-Identifier: GPL-2.0-or-later
"""Links: those to files of the repository that have a page here lead to it, and every link inside the site is checked.

A page links to `../CONTRIBUTING.md` as a forge wants it; where the site shows that file as a page of its own, the link
leads there.
"""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit

from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["broken_links", "setup"]

logger = logging.getLogger(__name__)

PAGES = {
    "CHANGELOG.md": "project/changelog",
    "CONTRIBUTING.md": "project/contributing",
    "README.md": "index",
    "RELEASING.md": "project/releasing",
    "SECURITY.md": "project/security",
    "src/hibernaut/lab/README.md": "reference/laboratory",
}
"""Files outside `docs/` that the site shows, and where."""

LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
"""A Markdown link to a file."""

WHOLE_FILE = re.compile(r"```\{include\} (?P<path>\S+)\n```\n")
"""All of a page that shows a file of the repository."""


def _show_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the file in place of a page that includes it, and lead links between files to the pages that show them."""
    page = Path(app.srcdir) / f"{docname}.md"
    whole = WHOLE_FILE.fullmatch(source[0])
    if whole is None:
        source[0] = _led_to_pages(source[0], page, page, Path(app.srcdir))
        return
    file = (page.parent / whole["path"]).resolve()
    app.env.note_dependency(str(file), docname=docname)
    source[0] = _led_to_pages(file.read_text(), file, page, Path(app.srcdir))


def _led_to_pages(text: str, file: Path, page: Path, docs: Path) -> str:
    """Return the text of a file with its links as seen from the page that shows it.

    A link to a file that has no page becomes its text; one to a file that does not exist stays, and is reported.
    """

    def rewritten(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(file.parent / match["path"]))
        shown = PAGES.get(os.path.relpath(target, docs.parent))
        if shown is not None:
            target = docs / f"{shown}.md"
        elif target.exists() and not target.is_relative_to(docs):
            return match["text"]
        return f"[{match['text']}]({os.path.relpath(target, page.parent)}{match['anchor'] or ''})"

    return LINK.sub(rewritten, text)


class _Page(HTMLParser):
    """The links and the anchors of one page."""

    TARGETS: ClassVar[dict[str, str]] = {"a": "href", "img": "src", "link": "href", "script": "src"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.update(filter(None, (found.get("id"), found.get("name") if tag == "a" else None)))
        target = found.get(self.TARGETS.get(tag, ""))
        if target:
            self.links.append(target)


def broken_links(site: Path) -> list[str]:
    """Every link of a built site that leads to no file or no anchor of it; links to other sites are not looked at."""
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            name = path.relative_to(site)
            if not target.is_file():
                broken.append(f"{name}: {link} leads to no file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{name}: {link} leads to no anchor")
    return broken


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for line in broken_links(Path(app.outdir).resolve()):
            logger.warning("%s", line, type="hibernaut", subtype="link")


def setup(app: Sphinx) -> None:
    """Register transform and check."""
    app.connect("source-read", _show_files)
    app.connect("build-finished", _check)
