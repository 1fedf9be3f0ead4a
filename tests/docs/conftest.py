# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation site, built once for all test processes."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


@dataclass(frozen=True)
class Site:
    """A built site.

    Attributes:
        folder: where it is.
        status: exit status of the build.
        told: what the build printed.
    """

    folder: Path
    status: int
    told: str

    @cached_property
    def pages(self) -> list[Path]:
        """All pages."""
        return sorted(self.folder.rglob("*.html"))

    def ids(self, page: str) -> set[str]:
        """The anchors of a page."""
        return set(re.findall(r'\bid="([^"]+)"', (self.folder / page).read_text()))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site as `make docs` builds it."""
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason=f"{module} is not installed (the dependency group docs)")
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    told, status = base / "site.told", base / "site.status"
    with (base / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not status.exists():
            command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
            # Python's warnings are those of Sphinx's dependencies; those about the pages are Sphinx's own.
            built = subprocess.run(
                [*command, "-d", str(base / "doctrees"), str(DOCS), str(base / "site")],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"},
            )
            told.write_text(built.stdout + built.stderr)
            status.write_text(str(built.returncode))
    return Site(base / "site", int(status.read_text()), told.read_text())


@pytest.fixture(scope="session")
def part_of_site() -> Callable[[str], dict[str, object]]:
    """The names in a module of the site's extension, or beside the diagrams: `part_of_site("diagrams/draw.py")`."""

    def load(name: str) -> dict[str, object]:
        import runpy

        return runpy.run_path(str(DOCS / name))

    return load
