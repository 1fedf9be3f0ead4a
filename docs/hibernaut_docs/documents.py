# SPDX-License-Identifier: GPL-2.0-or-later
"""The directive `hibernaut-documents`: the reference of the JSON documents, from the schemas of `hibernaut schema`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sphinx.util.docutils import SphinxDirective

from hibernaut.report.documents import DOCUMENTS
from hibernaut.report.schema import schema_of
from hibernaut_docs.commands import add_sections

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

__all__ = ["document_text", "keys_of", "setup"]

HEX = "^0x"
"""Start of the pattern of addresses and page frames."""

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~^])")
"""Characters that Markdown would take for markup."""

PLURALS = {"string": "strings", "integer": "integers", "number": "numbers", "object": "objects", "array": "arrays"}

Schema = dict[str, Any]


class Documents(SphinxDirective):
    """A section for each command: its document, each key with path, type and description."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        lines = [line for command in DOCUMENTS for line in document_text(command)]
        return add_sections(self, "\n".join(lines))


def document_text(command: str) -> Iterator[str]:
    """Yield the lines of the section of a command's document, in Markdown."""
    schema = schema_of(command)
    yield f"(document-{command.replace(' ', '-')})="
    yield f"## {command}"
    yield ""
    for shape in schema.get("anyOf", [schema]):
        yield from (_markup(_resolved(shape, schema["$defs"])["description"]), "")
        rows = list(keys_of(shape, schema["$defs"]))
        if not rows:
            continue
        yield from ("| key | type | value |", "|---|---|---|")
        yield from (f"| `{path}` | {kind} | {_markup(text)} |" for path, kind, text in rows)
        yield ""


def keys_of(schema: Schema, definitions: Schema, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, type, description) of each key of an object and of the objects in it.

    Args:
        schema: schema of the object.
        definitions: schemas that references name.
        prefix: path of the object.
    """
    found = _resolved(schema, definitions)
    for name, value in found.get("properties", {}).items():
        path = prefix + name
        one = _resolved(value, definitions)
        optional = "" if name in found["required"] else ", optional"
        text = value.get("description") or _clause(one.get("description", ""))
        yield path, _type_text(value, definitions) + optional, text
        for shape in one.get("anyOf", [one]):
            inner = _resolved(shape, definitions)
            if inner.get("type") == "array":
                yield from keys_of(inner["items"], definitions, f"{path}[].")
            elif isinstance(inner.get("additionalProperties"), dict):
                yield from keys_of(inner["additionalProperties"], definitions, f"{path}.NAME.")
            else:
                yield from keys_of(inner, definitions, f"{path}.")


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """Return a schema, or the one that it refers to."""
    if "$ref" in schema:
        found: Schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return found
    return schema


def _type_text(schema: Schema, definitions: Schema) -> str:
    """Return the type of a value in words."""
    one = _resolved(schema, definitions)
    if "anyOf" in one:
        return " or ".join(_type_text(each, definitions) for each in one["anyOf"])
    if "enum" in one:
        return " or ".join(f'`"{value}"`' for value in one["enum"])
    if one.get("pattern", "").startswith(HEX):
        return "hex string"
    kind = str(one.get("type", "any"))
    if kind == "array":
        items = _type_text(one["items"], definitions)
        return f"array of {PLURALS.get(items, items + 's')}"
    if kind == "object" and one.get("additionalProperties"):
        values = _type_text(one["additionalProperties"], definitions)
        return f"object of {PLURALS.get(values, values + 's')} by name"
    return kind


def _clause(sentence: str) -> str:
    """Return the docstring of an object as the description of a key."""
    return sentence.rstrip(".") if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:].rstrip(".")


def _markup(text: str) -> str:
    """Return text for Markdown; text in backquotes stays code."""
    parts = " ".join(text.split()).split("`")
    return "".join(f"`{part}`" if at % 2 else SPECIAL.sub(r"\\\1", part) for at, part in enumerate(parts))


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("hibernaut-documents", Documents)
