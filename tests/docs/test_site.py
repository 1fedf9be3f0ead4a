# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation site: it builds without a warning, leaves out nothing public, and its links lead somewhere."""

from __future__ import annotations

import enum
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

import hibernaut
from hibernaut.cli.app import app_with
from hibernaut.report.documents import DOCUMENTS as JSON_DOCUMENTS
from hibernaut.report.schema import schema_of
from hibernaut.swsusp import declarations
from tests.docs.conftest import DOCS, REPOSITORY, Site
from tests.test_house import PACKAGE, ROOMS

DOCUMENTS = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(group: Any, words: tuple[str, ...] = ("hibernaut",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its full name, as Typer makes it of the declarations."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands(typer.main.get_command(app_with())))


def test_site_builds_without_a_warning(site: Site) -> None:
    """Unknown references, broken links, malformed pages: each is a warning, and each warning ends the build."""
    assert site.told == ""
    assert site.status == 0
    assert len(site.pages) > 25


def test_every_document_is_a_page(site: Site) -> None:
    """Each Markdown file below docs/ is on the site, at its path."""
    expected = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert expected <= {path.relative_to(site.folder) for path in site.pages}


def test_every_public_name_is_described(site: Site) -> None:
    """The reference of the library has an entry for each name of `hibernaut.__all__`."""
    described = site.ids("reference/api.html")
    assert [name for name in hibernaut.__all__ if f"hibernaut.{name}" not in described] == []


def test_every_member_of_a_public_class_is_described(site: Site) -> None:
    """Methods and properties with a docstring are in the reference."""
    described = site.ids("reference/api.html")
    for name in hibernaut.__all__:
        found = getattr(hibernaut, name)
        if isinstance(found, type):
            members = [
                member
                for member, value in vars(found).items()
                if not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod))
            ]
            assert [member for member in members if f"hibernaut.{name}.{member}" not in described] == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_described(site: Site, words: tuple[str, ...]) -> None:
    """Each option and argument that Typer makes of a command is on the page of its command line, but for --help."""
    page = "reference/cli-lab.html" if "lab" in words else "reference/cli.html"
    described = site.ids(page)
    assert "-".join(words) in described
    for parameter in COMMANDS[words].params:
        if not parameter.hidden and parameter.name != "help":
            option = parameter.opts[0].startswith("-")
            for spelled in (*parameter.opts, *parameter.secondary_opts) if option else ():
                assert f"cmdoption-{'-'.join(words)}-{spelled.lstrip('-')}" in described, spelled


def paths_of(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, description) of every key below a schema, as the page names them."""
    if "$ref" in schema:
        yield from paths_of(definitions[schema["$ref"].split("/")[-1]], definitions, path)
    for one in schema.get("anyOf", ()):
        yield from paths_of(one, definitions, path)
    if "items" in schema:
        yield from paths_of(schema["items"], definitions, f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from paths_of(schema["additionalProperties"], definitions, f"{path}.NAME")
    for name, value in schema.get("properties", {}).items():
        inner = f"{path}.{name}" if path else name
        yield inner, value.get("description", "").replace("`", "")
        yield from paths_of(value, definitions, inner)


@pytest.mark.parametrize("command", JSON_DOCUMENTS)
def test_every_key_of_a_document_is_described(site: Site, command: str) -> None:
    """Each key of a command's document is in the command's section, with its description."""
    page = (site.folder / "reference/documents.html").read_text()
    anchor = f'id="document-{command.replace(" ", "-")}"'
    section = page.split(anchor)[1].split('id="document-')[0]
    rows = [
        [html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr.*?</tr>", section, re.DOTALL)
    ]
    described = {(row[0], row[2].replace("’", "'")) for row in rows if row}  # noqa: RUF001
    schema = schema_of(command)
    found = list(paths_of(schema, schema["$defs"]))
    assert bool(found) is (command != "schema")
    for path, text in found:
        assert any(key == path and (value == text or (value and not text)) for key, value in described), path


FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def options_of(words: tuple[str, ...]) -> set[str]:
    """Return every spelling of a command's options."""
    return {spelled for one in COMMANDS[words].params for spelled in (*one.opts, *one.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_options_in_the_text_exist(path: Path) -> None:
    """Inline code that begins with `hibernaut COMMAND` names only options of that command; any other, of some."""
    everywhere = set().union(*map(options_of, COMMANDS)) | {"--version", "--verbose"}
    for code in INLINE.findall(FENCED.sub("", path.read_text())):
        words = tuple(code.split())
        command = next((words[:length] for length in (3, 2) if words[:length] in COMMANDS), None)
        if command is not None:
            assert set(OPTION.findall(code)) <= options_of(command), code
        elif words[0].startswith("-"):
            assert set(OPTION.findall(code)) <= everywhere, code


def test_structures_on_the_page_are_those_declared(site: Site) -> None:
    """Every field of the header and of the info page, with its place."""
    text = re.sub(r"<[^>]+>", " ", (site.folder / "reference/formats.html").read_text())
    rows = " ".join(text.split())
    for declared in (declarations.HEADER, declarations.INFO):
        assert isinstance(declared, np.dtype)
        assert declared.fields
        for name, (_, offset, *_) in declared.fields.items():
            assert re.search(rf"\b{offset} (?:[us]\d+|\d+ bytes) {name}\b", rows), name
    assert issubclass(declarations.Flags, enum.IntFlag)
    for flag in declarations.Flags:
        assert f"{flag.value} {flag.name}" in rows


def test_rooms_on_the_page_are_those_of_the_house() -> None:
    """The page on the rooms lists those that exist, in the order of imports."""
    block = re.search(r"```\{hibernaut-rooms\}\n(.*?)\n```", (DOCS / "explanation/house.md").read_text(), re.DOTALL)
    assert block
    there = [room for room in ROOMS if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()]
    assert block[1].split() == there


def test_documents_use_public_names_only() -> None:
    """No Python example imports from below the package, and each name that one uses is public."""
    for path in DOCUMENTS:
        for block in PYTHON.findall(path.read_text()):
            assert not re.search(r"^\s*(?:from|import) hibernaut\.|^\s*from hibernaut\b", block, re.MULTILINE), path
            assert set(re.findall(r"\bhibernaut\.(\w+)", block)) <= set(hibernaut.__all__), path


def test_diagrams_show_what_the_model_does(part_of_site: Callable[[str], dict[str, Any]]) -> None:
    """Each diagram is the one that today's runs draw, and each has a title and a description."""
    drawn = {drawing.name: drawing for drawing in part_of_site("diagrams/draw.py")["drawings"]()}
    assert {path.stem for path in (DOCS / "diagrams").glob("*.svg")} == set(drawn)
    for name, drawing in drawn.items():
        text = (DOCS / f"diagrams/{name}.svg").read_text()
        assert text == drawing.svg(), "draw them again: python docs/diagrams/draw.py"
        assert f'aria-labelledby="{name}-title {name}-desc"' in text


def test_diagrams_are_part_of_the_pages(site: Site) -> None:
    """Each is inside a page that shows it, so that it takes the page's colours, and a screen reader its text."""
    pages = [path.read_text() for path in site.pages]
    for path in (DOCS / "diagrams").glob("*.svg"):
        assert any(f'<title id="{path.stem}-title">' in page for page in pages)


def test_a_broken_link_is_found(tmp_path: Path, part_of_site: Callable[[str], dict[str, Any]]) -> None:
    """The check of links, which the build makes, can fail: no such file, no such anchor."""
    pytest.importorskip("sphinx", reason="sphinx is not installed (the dependency group docs)")
    (tmp_path / "other.html").write_text('<p id="here">')
    (tmp_path / "index.html").write_text(
        '<a href="other.html#here">good</a> <a href="https://kernel.org/">elsewhere</a>'
        '<a href="gone.html">bad</a> <a href="other.html#gone">bad</a> <a href="#gone">bad</a> <img src="gone.svg">'
    )
    found = part_of_site("hibernaut_docs/links.py")["broken_links"](tmp_path)
    assert found == [
        "index.html: gone.html leads to no file",
        "index.html: other.html#gone leads to no anchor",
        "index.html: #gone leads to no anchor",
        "index.html: gone.svg leads to no file",
    ]
