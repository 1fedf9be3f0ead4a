# SPDX-License-Identifier: GPL-2.0-or-later
"""The published JSON Schemas: complete, valid, and strict enough to notice a changed document.

That the commands' documents validate is checked wherever a test runs a command with --json (`tests.cli.run`).
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import typer
import typer.main

from hibernaut.cli.app import app_with
from hibernaut.lab.variants import VARIANTS
from hibernaut.report.documents import DOCUMENTS
from hibernaut.report.schema import schema_of
from tests.cli.run import command_of, hibernaut, refused
from tests.report.published_keys import PUBLISHED, keys_of

LAB_DOCUMENTS: dict[str, dict[str, Any]] = {
    "lab boot": {"kernel": "6.1.0-56-amd64", "answers": [{"command": "true", "status": 0, "lines": []}]},
    "lab build": {
        "tree": "built/6.1/fixmap",
        "release": "6.1.192",
        "source": "6.1",
        "cure": "fixmap",
        "fresh": True,
        "seconds": 61.5,
        "unset": ["CONFIG_KFENCE=y"],
        "patch": None,
    },
    "lab resume": {"passed": True, "reason": "2048 pages", "seconds": 5.1, "facts": {"pages": "2048"}},
    "lab prove": {
        "passed": True,
        "results": [
            {
                "kernel": "6.1",
                "release": "6.1.0-56-amd64",
                "case": "read: LZO",
                "must": "equal",
                "passed": None,
                "seen": "no QEMU",
                "seconds": 0,
                "result": "SKIP",
            }
        ],
    },
    "lab variants": json.loads(json.dumps({"variants": [dataclasses.asdict(one) for one in VARIANTS]})),
    "takeover": {
        "passed": False,
        "kernel": "6.1.0-56-amd64",
        "variant": "hole-2m",
        "steps": [{"step": "guest", "what": "Linux"}],
        "stock": {"outcome": "died", "reason": "a fault"},
        "stock_resumed": None,
        "resumed": "nothing",
        "direct_map_findings": [],
    },
}
"""Documents in the form of commands that boot guests."""


def commands() -> Iterator[str]:
    """Yield the words of every command that takes --json."""
    group = typer.main.get_command(app_with())
    assert isinstance(group, typer.core.TyperGroup)
    for name, command in group.commands.items():
        inner = command.commands if isinstance(command, typer.core.TyperGroup) else {}
        for words, one in [(f"{name} {sub}", each) for sub, each in inner.items()] or [(name, command)]:
            if any("--json" in parameter.opts for parameter in one.params):
                yield words


def test_every_command_with_a_document_has_a_schema() -> None:
    """The commands that take --json are exactly those with a schema."""
    assert sorted(commands()) == sorted(DOCUMENTS)


def test_published_keys_stay() -> None:
    """No key of a document is renamed or dropped; a new one is added to the list of published keys."""
    today = {path for command in DOCUMENTS for path in keys_of(command)}
    published = set(PUBLISHED.read_text().splitlines())
    assert published - today == set(), "keys that scripts read are gone"
    assert today - published == set(), f"add these to {PUBLISHED.name}"
    assert {"demo: last_words.log", "map: holes[].start_pfn", "explore: ways[].endings[].verdict"} <= published


@pytest.mark.parametrize("command", DOCUMENTS)
def test_every_schema_is_valid_and_described(command: str) -> None:
    """A schema obeys the meta-schema, and each of its types and keys has a description or a definition."""
    schema = schema_of(command)
    jsonschema.Draft202012Validator.check_schema(schema)
    for definition in schema["$defs"].values():
        assert definition["description"]
        assert all("description" in value or "$ref" in value for value in definition["properties"].values())
        assert definition["additionalProperties"] is False
    used = set(json.dumps(schema).split("#/$defs/")[1:])
    assert {one.split('"')[0] for one in used} == set(schema["$defs"])


@pytest.mark.parametrize("command", LAB_DOCUMENTS)
def test_documents_of_guests_validate(command: str) -> None:
    """Documents in the form that a lab command prints validate."""
    jsonschema.validate(LAB_DOCUMENTS[command], schema_of(command), jsonschema.Draft202012Validator)


def dropped(document: dict[str, Any]) -> None:
    """Drop a key."""
    del document["branches"][0]["today"]["outcome"]


def added(document: dict[str, Any]) -> None:
    """Add a key."""
    document["branches"][0]["new"] = 1


def renamed(document: dict[str, Any]) -> None:
    """Rename a key."""
    document["branchs"] = document.pop("branches")


def retyped(document: dict[str, Any]) -> None:
    """Change the type of a value."""
    document["branches"][0]["today"]["allocations"] = "1"


@pytest.mark.parametrize("change", [dropped, added, renamed, retyped])
def test_a_changed_document_is_noticed(change: Callable[[dict[str, Any]], None]) -> None:
    """A dropped, added or renamed key or a changed type fails validation; the document itself passes."""
    document = hibernaut("explain", "--json").document
    mutant = copy.deepcopy(document)
    change(mutant)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(mutant, schema_of("explain"), jsonschema.Draft202012Validator)


def test_hexadecimal_text_is_checked() -> None:
    """An address that is not hexadecimal text fails validation."""
    document = {"levels": 4, "cr3": "4096", "base": "0x0", "end_pfn": "0x1", "present_bytes": {}}
    document |= {"holes": [], "mismatches": []}
    with pytest.raises(jsonschema.ValidationError, match="4096"):
        jsonschema.validate(document, schema_of("map"), jsonschema.Draft202012Validator)


def test_the_command_prints_schemas() -> None:
    """`schema` lists the commands, `schema COMMAND` prints one; an unknown command is refused with the known ones."""
    assert hibernaut("schema").out.split("\n")[:-1] == list(DOCUMENTS)
    assert json.loads(hibernaut("schema", "lab", "prove").out) == schema_of("lab prove")
    assert hibernaut("schema", "--json").document == {"commands": list(DOCUMENTS)}
    assert "expected answers, audit" in refused("schema", "nothing")
    assert command_of(["lab", "prove"]) == "lab prove"
    assert command_of(["map", "file"]) == "map"
