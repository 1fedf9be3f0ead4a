# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages that `make man` makes: whole, without a warning of groff or mandoc, and readable."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hibernaut.cli.declared import commands_of, parameters_of
from tests.cli.declared import ALL

REPOSITORY = Path(__file__).resolve().parents[2]
EVERY = dict([*commands_of(ALL), *commands_of(ALL, "lab")])
PAGES = ["hibernaut", "hibernaut-lab", *(name.replace(" ", "-") for name in EVERY)]
NASTY = ".text 'begins` \\fB with \\ and -- ^ ~ 'a' \"b\" ...\n.so /etc/passwd"
"""Text with requests and escapes of roff."""


@pytest.fixture(scope="session")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all pages."""
    folder = tmp_path_factory.mktemp("man")
    program = [sys.executable, str(REPOSITORY / "docs/man_pages.py"), str(folder), "2026-01-31"]
    subprocess.run(program, check=True, timeout=300)
    return folder


def shown(page: Path) -> str:
    """Return a page as man(1) shows it, in one line."""
    environment = {**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(["man", "-l", str(page)], env=environment, capture_output=True, text=True, check=True)
    return " ".join(re.sub(".\b", "", done.stdout).split())


def complaints(page: Path, program: str) -> str:
    """Return what groff or mandoc has to say about a page."""
    arguments = {"groff": ["-man", "-Tutf8", "-ww", "-z"], "mandoc": ["-Tlint"]}[program]
    done = subprocess.run([program, *arguments, str(page)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test where a program is not installed."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def test_every_command_has_a_page(manual: Path) -> None:
    """And the program and its group have one, which lists the others."""
    assert sorted(path.name for path in manual.iterdir()) == sorted(f"{name}.1" for name in PAGES)
    for name in PAGES[2:]:
        group = "hibernaut-lab" if name.startswith("hibernaut-lab-") else "hibernaut"
        assert name.replace("-", "\\-") in (manual / f"{group}.1").read_text()


@pytest.mark.parametrize("program", [pytest.param(name, marks=needs(name)) for name in ("groff", "mandoc")])
def test_no_warning(manual: Path, program: str) -> None:
    """Neither groff nor mandoc complains about a page; both do about a broken one."""
    assert {name: told for name in PAGES if (told := complaints(manual / f"{name}.1", program))} == {}
    broken = manual.parent / "broken.1"
    broken.write_text((manual / "hibernaut.1").read_text() + ".XY\n\\[nothing]\n")
    assert complaints(broken, program)


@needs("man")
@needs("groff")
@pytest.mark.parametrize("name", EVERY)
def test_man_shows_all_options(manual: Path, name: str) -> None:
    """As the user types them, each with its help; the example can be copied."""
    command = EVERY[name]
    text = shown(manual / f"{name.replace(' ', '-')}.1")
    assert f"{name.replace(' ', '-')} - " in text
    for one in parameters_of(command):
        assert one.term in text, one.term
        told = " ".join(one.sentences()).replace("`", "")
        assert told.replace(", ", ",") in text.replace(", ", ","), one.term  # a long list breaks after its commas
    assert f"$ {command.epilog}" in text


@needs("man")
@needs("groff")
def test_text_is_not_taken_for_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that begins as a request does, or holds roff's escapes, is shown as it is."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import man_pages  # type: ignore[import-not-found, unused-ignore]

    command = EVERY["hibernaut completion"]
    monkeypatch.setattr(command, "help", f"Print.\n\n{NASTY}")
    monkeypatch.setattr(man_pages, "commands_of", lambda _, group=None: [] if group else [("hibernaut x", command)])
    man_pages.write_pages(tmp_path, "2026-01-31")
    text = shown(tmp_path / "hibernaut-x.1")
    assert " ".join(NASTY.split()) in text
